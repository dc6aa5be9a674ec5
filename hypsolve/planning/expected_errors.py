"""`error_lines`: the error to expect of a plan's forecast, where servers were measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hypsolve.calibration.servers import describe_errors, fitted_servers
from hypsolve.catalog import gpus
from hypsolve.planning.fitted_costs import FITTED
from hypsolve.planning.platforms import weights_of

ASSUMED = "assumed"  # basis of an interconnect that was not measured

if TYPE_CHECKING:
    from hypsolve.planning.plan import Plan


def error_lines(plan: Plan) -> Iterator[str]:
    """Yield the error to expect of the forecast for each kind of GPU in use.

    The measured servers hold all blocks. Nothing is known of the error of a forecast for
    several stages.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> plan = hs.plan("llama-3-8b", hs.Network(name="box", tiers=(box,)), with_upgrades=False)
    >>> print(*error_lines(plan), sep=chr(10))
    expected error: unknown, for no server of RTX 4090 under runtime ideal was measured
    """
    runtime = plan.query.runtime.name
    slugs = {profile.name: slug for slug, profile in gpus().items()}
    used = dict.fromkeys(node.gpu for node in plan.nodes if node.is_used and node.blocks)
    is_fitted, weights = plan.query.costs == FITTED, weights_of(plan.model)
    model = plan.model.name.removesuffix(f"-{weights}")
    servers = {gpu: fitted_servers().get((slugs.get(gpu, gpu), runtime)) for gpu in used}
    n_stages = sum(bool(stage.blocks) for stage in plan.stages)
    for gpu, found in servers.items():
        if found is not None:
            errors = found.three_numbers
            models = f"{found.n_runs} measured runs of {' and '.join(found.models)}"
            of = f"the mean of {models}"
            models += f", with at most {found.max_users} users,"
            if is_fitted and model in found.models:
                errors, of = found.simulated_lengths, f"of a fit to other lengths of {models}"
            elif is_fitted:
                errors, of = (
                    found.simulated_groups,
                    f"of a fit to other models than in {models}",
                )
            alone = " as one stage; that of several stages is unknown" if n_stages > 1 else ""
            less = found.simulated_groups["tpot"]
            by_fit = ""
            if not is_fitted and less < found.three_numbers["tpot"]:
                by_fit = f" (time per output token {less:.0%} with --costs fitted)"
            yield (
                f"expected error: {describe_errors(errors)}{by_fit}, {of} on {gpu} under"
                f" runtime {runtime}{alone}"
            )
    if unknown := [gpu for gpu, found in servers.items() if found is None]:
        yield (
            f"expected error: unknown, for no server of {' or '.join(unknown)} under runtime"
            f" {runtime} was measured"
        )
    yield from _assumed_links(plan)


def _assumed_links(plan: Plan) -> Iterator[str]:
    """Yield a line where all-reduces take the times of another card or link."""
    used = {node.node for node in plan.nodes if node.is_used and node.blocks}
    nodes = [node for tier in plan.deployment.network.tiers for node in tier.nodes]
    names = {
        f"{node.interconnect.name} of {node.gpu.name}": node.interconnect.source
        for node in nodes
        if node.name in used
        and node.gpus > 1
        and node.interconnect is not None
        and node.interconnect.basis == ASSUMED
    }
    if names:
        yield (
            f"assumed: all-reduces over {', '.join(names)}, which were not measured:"
            f" {next(iter(names.values())).partition(': ')[2].partition(';')[0]}"
        )

"""`ExpectedError`: the error to expect of a forecast, where servers were measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypsolve import catalog
from hypsolve.calibration.fitted_profile import fitted_gpu
from hypsolve.calibration.servers import QUANTITIES, FittedServer, MeanErrors, fitted_servers
from hypsolve.planning.fitted_costs import FITTED
from hypsolve.planning.platforms import weights_of
from hypsolve.problem import evaluation
from hypsolve.problem.deployment import Deployment, Model
from hypsolve.problem.instance import Instance
from hypsolve.problem.network import GpuProfile, Node
from hypsolve.problem.profile_errors import ProfileErrors
from hypsolve.problem.solution import Partition
from hypsolve.problem.units import count

if TYPE_CHECKING:
    from hypsolve.planning.forecast import Forecast
    from hypsolve.planning.plan import Plan

ASSUMED = "assumed"  # basis of an interconnect that was not measured
UNMEASURED = "expected error: unknown, for no server of"
ONE_STAGE = "as one stage; that of several stages is unknown"
PHASES = {"prefill": "prefill", "decode": "decode"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedError:
    """The error to expect of a forecast on one kind of GPU, or that it is not known.

    Attributes
    ----------
    gpu, runtime : str
        Name of the GPU's profile, and of the runtime.
    tpot, tokens_per_s, ttft : float
        Mean relative errors of times per output token, of tokens/s and of times to first token
        on measured servers (0.05 is 5 %); nan if unknown.
    n_runs : int
        Measured runs whose mean error it is; 0 if unknown.
    models : tuple of str
        Models of these runs.
    max_users : int
        Largest number of users in these runs; 0 if unknown.
    is_fitted : bool
        Whether the forecast uses rates that were fitted to measured servers or to a benchmark.
        The error is of runs that they were not fitted to.
    words : str
        All of it in a sentence.
    """

    gpu: str
    runtime: str
    tpot: float = math.nan
    tokens_per_s: float = math.nan
    ttft: float = math.nan
    n_runs: int = 0
    models: tuple[str, ...] = ()
    max_users: int = 0
    is_fitted: bool = False
    words: str


def expected_errors(
    deployment: Deployment,
    instance: Instance,
    partition: Partition,
    *,
    at_once: float = math.nan,
    model: Model | None = None,
    may_fit: bool = True,
) -> tuple[ExpectedError, ...]:
    """Return the error to expect of a forecast for each kind of GPU that a split uses.

    The measured servers hold all blocks. Nothing is known of the error of a forecast for
    several stages.

    Parameters
    ----------
    deployment : Deployment
        Of the forecast: nodes whose GPU has `OperatorRates` are forecast by them.
    instance : Instance
        Its costs, which say which nodes can hold their stage.
    partition : Partition
    at_once : float
        Requests under way at once; nan if unknown. They are shared among the nodes of a tier.
    model : Model, optional
        The model that was asked for. Default: that of the deployment.
    may_fit : bool
        Whether fitted costs could be asked for instead, which the words then say.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> network = hs.Network(name="box", tiers=(box,))
    >>> one = hs.Requests([0.0], [512], [64])
    >>> lone = hs.Deployment(model=hs.model("llama-3-8b"), network=network, requests=one)
    >>> (found,) = expected_errors(lone, hs.to_instance(lone), hs.Partition((0, 34)))
    >>> found.words
    'expected error: unknown, for no server of RTX 4090 under runtime ideal was measured'
    """
    stages = list(used_nodes(deployment, instance, partition))
    runtime = deployment.runtime.name
    return errors_of_stages(
        stages, runtime, model or deployment.model, at_once=at_once, may_fit=may_fit
    )


def errors_of_stages(
    stages: Sequence[Sequence[Node]],
    runtime: str,
    model: Model,
    *,
    at_once: float = math.nan,
    may_fit: bool = True,
) -> tuple[ExpectedError, ...]:
    """Return the error to expect of a forecast for each kind of GPU, by the nodes of stages.

    See `expected_errors`.
    """
    of_gpu: dict[GpuProfile, float] = {}  # the most requests at once that a node has
    for nodes in stages:
        for node in nodes:
            most = max(of_gpu.get(node.gpu, -math.inf), at_once / len(nodes))
            of_gpu[node.gpu] = most
    n_stages = len(stages)
    found, unknown = [], []
    for gpu, users in of_gpu.items():
        slug = fitted_gpu(gpu, runtime)
        if gpu.errors is not None:
            found.append(_of_profile(gpu, gpu.errors, runtime, model, n_stages))
        elif slug is not None and catalog.gpu(slug).name == gpu.name:
            server = fitted_servers()[slug, runtime]
            found.append(_of_server(gpu, server, model, users, n_stages, may_fit))
        else:
            unknown.append(gpu.name)
    return (*found, *unknown_errors(dict.fromkeys(unknown), runtime))


def used_nodes(
    deployment: Deployment, instance: Instance, partition: Partition
) -> Iterator[list[Node]]:
    """Yield the nodes of each tier that hold blocks."""
    for k, tier in enumerate(deployment.network.tiers):
        if blocks := partition.stage(k):
            holds = evaluation.can_hold(instance, k, blocks.start, blocks.stop)
            if nodes := [node for node, can in zip(tier.nodes, holds, strict=True) if can]:
                yield nodes


def unknown_errors(gpus: Iterable[str], runtime: str) -> Iterator[ExpectedError]:
    """Yield the errors of GPUs of which no server was measured; they share their words."""
    names = list(gpus)
    words = f"{UNMEASURED} {' or '.join(names)} under runtime {runtime} was measured"
    for name in names:
        yield ExpectedError(gpu=name, runtime=runtime, words=words)


def _of_server(
    gpu: GpuProfile,
    server: FittedServer,
    model: Model,
    users: float,
    n_stages: int,
    may_fit: bool,
) -> ExpectedError:
    """Return the error of a server of the catalogue, on the runs of the model if it has any."""
    name = _measured_model(model, server)
    of: MeanErrors = server if name is None else server.by_model[name]
    models = tuple(server.by_model) if name is None else (name,)
    errors, about = of.three_numbers, "the mean"
    is_fitted = gpu.operators is not None
    if is_fitted and name in server.models:
        errors, about = of.simulated_lengths, "of a fit to other lengths, the mean"
    elif is_fitted:
        errors, about = of.simulated_groups, "of a fit to other models, the mean"
    hint, less = "", of.simulated_groups["tpot"]
    if may_fit and not is_fitted and less < of.three_numbers["tpot"]:
        hint = f" (time per output token {_percent(less)} with --costs fitted)"
    most = of.max_counted_users
    words = (
        f"expected error: {_describe(errors)}{hint}, {about} of {of.n_counted} measured runs of"
        f" {' and '.join(models)} with at most {most} users on {gpu.name} under runtime"
        f" {server.runtime}{f' {ONE_STAGE}' if n_stages > 1 else ''}"
    )
    if users > most:
        words += f"; more of them extrapolate: this load has {users:.3g} on a GPU or group"
    return ExpectedError(
        gpu=gpu.name, runtime=server.runtime, **errors, n_runs=of.n_counted, models=models,
        max_users=most, is_fitted=is_fitted, words=words,
    )  # fmt: skip


def _measured_model(model: Model, server: FittedServer) -> str | None:
    """Return the measured model of the same shape as a model; None if there is none."""
    name = model.name.removesuffix(f"-{weights_of(model)}")
    if name in server.by_model or name not in catalog.models():
        return name if name in server.by_model else None
    blocks = catalog.model(name).blocks
    alike = (each for each in server.by_model if catalog.model(each).blocks == blocks)
    return next(alike, None)


def _of_profile(
    gpu: GpuProfile, errors: ProfileErrors, runtime: str, model: Model, n_stages: int
) -> ExpectedError:
    """Return the error of a profile that `hypsolve calibrate` or `hypsolve measure` fitted."""
    if not errors.is_of_server:
        known = _describe({name: getattr(errors, name) for name in PHASES}, PHASES)
        about = f", which held out shapes of blocks: {known}" if known else ""
        words = (
            f"expected error: unknown, for {gpu.name} was fitted to steps of blocks and not to"
            f" a server{about}"
        )
        return ExpectedError(gpu=gpu.name, runtime=runtime, is_fitted=True, words=words)
    runs = f"{count(errors.n_runs, 'run')} of {errors.file or 'a benchmark'}"
    served = f"{errors.model} under runtime {errors.runtime}"
    if errors.runtime != runtime:
        words = (
            f"expected error: unknown under runtime {runtime}, for {gpu.name} was fitted to"
            f" {runs}, {served}"
        )
        return ExpectedError(gpu=gpu.name, runtime=runtime, is_fitted=True, words=words)
    if not errors.is_known:
        words = (
            f"expected error: unknown, for {gpu.name} was fitted to {runs}, too few to hold"
            " some out"
        )
        return ExpectedError(gpu=gpu.name, runtime=runtime, is_fitted=True, words=words)
    means = {"tpot": errors.tpot, "ttft": errors.ttft}
    other = "" if model.name == errors.model else f"of {model.name}, and "
    words = (
        f"expected error: {_describe(means)}, held out of {runs}, {served}, on {gpu.name}"
        f"{f' {ONE_STAGE}' if n_stages > 1 else ''}; the error {other}of other lengths and"
        " numbers of users than in these runs is unknown"
    )
    return ExpectedError(
        gpu=gpu.name, runtime=runtime, n_runs=errors.n_runs, models=(errors.model,),
        tpot=math.nan if errors.tpot is None else errors.tpot,
        ttft=math.nan if errors.ttft is None else errors.ttft,
        is_fitted=True, words=words,
    )  # fmt: skip


def _describe(errors: dict[str, Any], names: dict[str, str] = QUANTITIES) -> str:
    """Write the errors that are known in words."""
    return ", ".join(
        f"{words} {_percent(errors[name])}"
        for name, words in names.items()
        if errors.get(name) is not None
    )


def _percent(share: float) -> str:
    """Write an error in whole per cent, or with a digit more where that would be 0 or 1."""
    return f"{share:.0%}" if share >= 0.015 else f"{share:.1%}"


def errors_of_plan(plan: Plan) -> tuple[ExpectedError, ...]:
    """Return the errors to expect of a plan's forecast; none if nothing fits."""
    if plan.result.partition is None:
        return ()
    return expected_errors(
        plan.deployment, plan.result.instance, plan.result.partition,
        at_once=requests_at_once(plan.forecast), model=plan.model,
    )  # fmt: skip


def requests_at_once(forecast: Forecast | None) -> float:
    """Return the requests under way in a forecast: its users, or the mean; nan if unknown."""
    if forecast is None:
        return math.nan
    users = forecast.load.users
    return forecast.mean_in_flight if users is None else float(users)


def distinct_words(errors: Iterable[ExpectedError]) -> list[str]:
    """Return the sentences of errors, each once."""
    return list(dict.fromkeys(error.words for error in errors))


def error_lines(plan: Plan) -> Iterator[str]:
    """Yield the error to expect of the forecast for each kind of GPU in use.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> plan = hs.plan("llama-3-8b", hs.Network(name="box", tiers=(box,)), with_upgrades=False)
    >>> print(*error_lines(plan), sep=chr(10))
    expected error: unknown, for no server of RTX 4090 under runtime ideal was measured
    """
    yield from distinct_words(errors_of_plan(plan))
    if (partition := plan.result.partition) is None:
        return
    tiers = used_nodes(plan.deployment, plan.result.instance, partition)
    nodes = [node for tier in tiers for node in tier]
    if line := describe_lacking_fits(nodes, plan.query.costs, plan.query.runtime.name):
        yield line
    yield from _assumed_links(nodes)


def describe_lacking_fits(nodes: Sequence[Node], costs: str, runtime: str) -> str:
    """Name the GPUs that fitted costs were asked for and that have none; empty if all do."""
    if costs != FITTED:
        return ""
    gpus = {node.gpu for node in nodes}
    lacking = dict.fromkeys(node.gpu.name for node in nodes if node.gpu.operators is None)
    if not lacking:
        return ""
    names = " and ".join(lacking)
    line = (
        f"costs: no server of {names} under runtime {runtime} was fitted, so the times there"
        " are those of --costs roofline"
    )
    if len(gpus) > len(lacking):
        line += (
            "; those of the other GPUs are fitted: which GPU is faster, and so the split, may"
            " depend on that (--costs auto takes one form for all)"
        )
    return line


def _assumed_links(nodes: Sequence[Node]) -> Iterator[str]:
    """Yield a line where all-reduces take the times of another card or link."""
    names = {
        f"{node.interconnect.name} of {node.gpu.name}": node.interconnect.source
        for node in nodes
        if node.gpus > 1
        and node.interconnect is not None
        and node.interconnect.basis == ASSUMED
    }
    if names:
        yield (
            f"assumed: all-reduces over {', '.join(names)}, which were not measured:"
            f" {next(iter(names.values())).partition(': ')[2].partition(';')[0]}"
        )

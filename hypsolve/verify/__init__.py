"""Check a result without its method: `python -m hypsolve.verify INSTANCE.json RESULT.json`.

`Result.save` writes RESULT.json. Everything is recomputed from the instance in exact integers,
without numba, solvers, or code of a method.

A joint certificate divides the partitions into boxes: ranges of cuts. A box is relaxed to a
flow shop that is nowhere slower than any partition in it. The Lagrangian bound then relaxes the
capacity of the nodes. Every tick of a node's time has a Lagrange multiplier. The lowest cost of
all requests (completion times plus multipliers of the ticks they use), less the multipliers of
all ticks of all nodes, is a lower bound on the sum of completion times. For a makespan, let
every request end before the bound: if the lowest costs exceed the multipliers of all ticks, no
such schedule exists. Where the bound does not suffice, the certificate says ``search``, and
every schedule of that single partition is enumerated here, pruned by the bound.

Results on a `ServingInstance` are claims about the fluid model of a server that batches. What
their check covers is written in `hypsolve.verify.serving`; for the file of a placement, whose
command is ``hypsolve verify``, in `hypsolve.verify.placement`.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Instance
from hypsolve.problem.placement import PlacementProblem
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.solution import Certificate
from hypsolve.verify.bottleneck import verify_certificate
from hypsolve.verify.joint import Joint
from hypsolve.verify.placement import verify_placement
from hypsolve.verify.reading import Claims, Refuted, need, read
from hypsolve.verify.serving import verify_serving

__all__ = ["Refuted", "verify"]

OPTIMAL = Fraction(101, 10**8)  # largest gap of an optimal result: 1e-6, with rounding


@valid.suggest_keywords("verify")
def verify(
    instance: Instance | ServingInstance | PlacementProblem,
    result: dict[str, Any],
    progress: Callable[[str], None] | None = None,
) -> str:
    """Verify a result that has a certificate, or a placement.

    Parameters
    ----------
    instance : Instance, ServingInstance or PlacementProblem
    result : dict
        As `Result.to_dict`, `ServingResult.to_dict` or, for a placement problem,
        `PlacementPlan.to_dict` returns it, or a JSON file holds it.
    progress : callable, optional
        Called with a line of text before a part that may take minutes: the schedules of a
        partition are enumerated, or the chains of a server within its targets.

    Returns
    -------
    str
        A sentence that states what is proven.

    Raises
    ------
    Refuted
        With the first claim that does not hold.
    ValueError
        If `result` is not a result, or has no certificate.

    Examples
    --------
    >>> import hypsolve as hs
    >>> from hypsolve.verify import verify
    >>> instance = hs.Instance.from_tables([[[1.0, 2.0]]], [1, 1], [[(0, 1)], [(0, 1)]])
    >>> verify(instance, hs.solve(instance, "hypsplit_dp").to_dict())
    'the result has 2.0 s, and no solution is below 1.999999998 s'

    Of a server that batches requests, the rates in the fluid model are verified.

    >>> server = hs.ServingInstance.from_tables(
    ...     fixed_s=[[1e-3]], block_kind=[0, 0], tiers=[[(0, 1e9)]], prompt_tokens=100,
    ...     output_tokens=10, max_num_seqs=20,
    ... )
    >>> verify(server, hs.solve(server, "throughput_exact").to_dict())
    'the split carries 1000.0 requests/s, and no split carries 1000.00001 requests/s or more, \
in the fluid model (stage batching; means, no simulation)'
    """
    if isinstance(instance, PlacementProblem):
        return verify_placement(instance, result)
    if isinstance(instance, ServingInstance):
        return verify_serving(instance, result, progress or (lambda line: None))
    claims = read(instance, result)
    if claims.kind == "infeasible":
        _check_partition(instance, claims)
        return "infeasible: no partition keeps the rules"
    objective_s, proved_s = Fraction(claims.objective_s), Fraction(claims.proved_s)
    rounded = proved_s / 10**9
    need(claims.bound_s <= proved_s + rounded, "bound_s: above the bound of the certificate")
    need(objective_s >= proved_s - rounded, "objective_s: below the bound of the certificate")
    gap = objective_s - proved_s
    need(claims.status != "optimal" or gap <= OPTIMAL * objective_s, "status: not optimal")
    if claims.kind == "bottleneck":
        _check_partition(instance, claims)
    else:
        joint = Joint(instance, proved_s, [box.tick_s for box in claims.boxes])
        joint.check_schedule(claims)
        if not joint.is_proved_by_idle_nodes():
            joint.drop_slow_stages()
            joint.check_cover(claims.boxes)
            for box in claims.boxes:
                joint.check_box(box, progress or (lambda line: None))
    return (
        f"the result has {claims.objective_s!r} s, and no solution is below"
        f" {claims.proved_s!r} s"
    )


def _check_partition(instance: Instance, claims: Claims) -> None:
    made = Certificate(
        kind=claims.kind,
        value_s=claims.objective_s if claims.cuts else math.inf,
        bound_s=claims.proved_s,
        cuts=tuple(claims.cuts) or None,
    )
    found = verify_certificate(instance, made)
    need(not found, *found[:1])

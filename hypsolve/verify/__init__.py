"""Check a result without its method: `python -m hypsolve.verify INSTANCE.json RESULT.json`.

RESULT.json is what `Result.save` writes. Everything is recomputed from the instance in exact
integers: no numba, no solver, no code of a method.

A joint certificate divides the partitions into boxes of cuts. A box is made a flow shop that is
nowhere slower than any of its partitions. The Lagrangian bound relaxes the nodes' capacity:
each tick of a node's time has a multiplier, and what all requests must pay at least,
completions included, less all that the nodes could charge, is at most the sum of the
completions. (For a makespan: if requests that end before the bound must pay more than the nodes
could charge, there is no such schedule.) Where the bound does not suffice, the certificate says
`search`, and every schedule of that partition is enumerated here, pruned by the bound.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Certificate
from hypsolve.verify.bottleneck import verify_certificate
from hypsolve.verify.joint import Joint
from hypsolve.verify.reading import Claims, Refuted, need, read

__all__ = ["Refuted", "verify"]

OPTIMAL = Fraction(101, 10**8)  # gap up to which a result may call itself optimal: 1e-6


def verify(
    instance: Instance, result: dict[str, Any], tell: Callable[[str], None] | None = None
) -> str:
    """Verify a result that has a certificate; returns what is now certain.

    Parameters
    ----------
    instance : Instance
    result : dict
        As `Result.to_dict` makes it.
    tell : callable, optional
        Called with a line on each partition whose schedules are to be enumerated, which may
        take minutes.

    Raises
    ------
    Refuted
        With the first claim that does not hold.
    ValueError
        If it is no result, or one without certificate.
    """
    claims = read(instance, result)
    if claims.kind == "infeasible":
        _check_partition(instance, claims)
        return "infeasible: no partition keeps the rules"
    objective_s, proved_s = Fraction(claims.objective_s), Fraction(claims.proved_s)
    rounded = Fraction(1, 10**9) * proved_s
    need(claims.bound_s <= proved_s + rounded, "bound_s: more than the certificate proves")
    need(objective_s >= proved_s - rounded, "objective_s: below what is proved")
    gap = objective_s - proved_s
    need(claims.status != "optimal" or gap <= OPTIMAL * objective_s, "status: not optimal")
    if claims.kind == "bottleneck":
        _check_partition(instance, claims)
    else:
        joint = Joint(instance, proved_s, [box.tick_s for box in claims.boxes])
        joint.check_schedule(claims)
        if not joint.is_proved_by_idle_nodes():
            joint.leave_out_the_slow()
            joint.check_cover(claims.boxes)
            for box in claims.boxes:
                joint.check_box(box, tell or (lambda line: None))
    return f"{claims.objective_s!r} s is reached, and nothing is below {claims.proved_s!r} s"


def _check_partition(instance: Instance, claims: Claims) -> None:
    made = Certificate(
        kind=claims.kind,
        value_s=claims.objective_s if claims.cuts else math.inf,
        bound_s=claims.proved_s,
        cuts=tuple(claims.cuts) or None,
    )
    found = verify_certificate(instance, made)
    need(not found, *found[:1])

"""Verification of rates that no split carries in the fluid model, in exact integers.

*What is verified.* A result on a `ServingInstance` claims a split, the rate that it carries,
its latencies and its price, and a rate that no split carries. Rate, latencies and splits are
those of the fluid model, which `hypsolve.problem.serving_stage_mode` and `serving_pipelines`
define: numbers are means, and no request queues for admission. Nothing is said about
simulations or about measured servers.

*How.* Every number of the model is computed again from the arrays of the instance, in whole
multiples of 2**-200, once rounded down and once rounded up. The split is checked with numbers
rounded up, and must carry its rate, less 1e-9 of it. The refuted rate is checked with numbers
rounded down, by the certificate: under ``stage`` by the chain of hold times (`hold_chain`),
under ``pipeline`` and ``serial`` by ranges of requests per cycle (`level_ranges`), and by
bounds on nodes that hold all blocks (`whole_servers`), which need no certificate.

*Why larger rates are refuted, too.* With the rate, all seconds of a split rise, and the room
for KV cache and the targets do not, so a split that carries a rate carries all smaller ones.

*Seconds over requests.* The proofs need that tau(z) / z does not rise, where tau(z) are the
seconds of an iteration in which z requests start. Let f0 and f1 be the seconds of a block
without and with one chunk. Up to one chunk, tau = (1 - k) f0 + k f1 with k = z n_c. A block
takes max(compute, memory) with compute in proportion to the contents, and memory concave and
not negative at zero. So a slope of f0 or f1, times the decode tokens, is at most f0, and the
derivative of tau(z) / z is at most ``(-f0 + (1 - k) f0 + k f0) / z**2 = 0``. Linear seconds
behind the maximum are no less in f0 than their slope times the decode tokens, and `mixed_s` has
no slope, so they change nothing. Above one chunk, each term over z does not rise. Collective
operations keep this property if their second line neither starts above the first one nor is too
steep. If it is too steep, ``(delta - beta) max(switch, 1) > alpha``, nothing is verified. Where
it starts above, the proofs treat the sides of the jump one by one. The least solution counts,
as the model says: a method that took a larger one, or that did not try the batches just below a
jump, is refuted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving import ServingInstance
from hypsolve.verify import hold_chain
from hypsolve.verify.directed import ONE
from hypsolve.verify.iterations import Server
from hypsolve.verify.level_ranges import Cycle, Ranges, cycles_that_carry
from hypsolve.verify.reading import need
from hypsolve.verify.serving_claims import LATENCIES, ServingClaims, read_serving
from hypsolve.verify.whole_servers import WholeServers

CARRIED = Fraction(1, 10**9)  # relative amount by which a rate may be rounded up
OPTIMAL = Fraction(101, 10**8)  # largest gap of an optimal result: 1e-6, with rounding
CLOSE = Fraction(1, 10**6)  # relative rounding of latencies


def verify_serving(
    instance: ServingInstance, result: dict[str, Any], progress: Callable[[str], None]
) -> str:
    """Verify a result on a `ServingInstance`, and return what is proved; see `verify`."""
    claims = read_serving(instance, result)
    server = Server(instance)
    if server.bends_up():
        raise ValueError(
            "serving instance: collective_s must have (delta - beta) max(switch, 1) <= alpha"
            " for a certificate to be verified"
        )
    if claims.cuts:
        _check_answer(server, claims)
    if instance.rules.batching is Batching.STAGE:
        hold_chain.HoldChain(server, claims.refuted_per_s).check(claims.steps, progress)
    else:
        Ranges(server, claims.refuted_per_s).check(claims.ranges)
    refuted = f"no split carries {claims.refuted_per_s!r} requests/s or more"
    model = f"in the fluid model ({instance.rules.batching} batching; means, no simulation)"
    if not claims.cuts:
        return f"{refuted} {model}"
    return f"the split carries {claims.served_per_s!r} requests/s, and {refuted}, {model}"


def _check_answer(server: Server, claims: ServingClaims) -> None:
    """Refute a split that breaks a rule or does not carry its rate, and other numbers."""
    cuts, instance = claims.cuts, server.instance
    need(cuts[0] == 0 and cuts[-1] == server.n_blocks, "cuts: must span all blocks")
    for k in range(server.n_tiers):
        i, j = cuts[k], cuts[k + 1]
        need(
            i in server.starts(k) and j in server.ends(k, i), f"cuts: not allowed for tier {k}"
        )
        holds = i == j or any(
            server.room(c, memory, server.content(i, j)) != 0 for c, memory in server.nodes[k]
        )
        need(holds, f"cuts: no node of tier {k} has room")
    served = Fraction(claims.served_per_s)
    rate = served * (1 - CARRIED)
    if instance.rules.batching is Batching.STAGE:
        why = hold_chain.carries(server, cuts, rate)
        need(not why, f"served: fluid_requests_per_s: {why}")
        bounds = [hold_chain.latencies(server, cuts, r, up)
                  for r, up in ((float(rate), False), (claims.served_per_s, True))]  # fmt: skip
    else:
        cycles = cycles_that_carry(server, cuts, rate)
        need(cycles, "served: fluid_requests_per_s: the split does not carry it")
        bounds = _of_best_cycle(cycles, rate, served)
    for at, field in enumerate(LATENCIES):
        claimed = Fraction(claims.latencies_s[at])
        low, high = (Fraction(bound[at], ONE) for bound in bounds)
        sound = low * (1 - CLOSE) <= claimed <= high * (1 + CLOSE)
        need(sound, f"served: {field}: it is {float(high):.9g}")
    hourly = math.fsum(
        float(instance.price_per_hour[node])
        for k in range(server.n_tiers)
        if cuts[k] < cuts[k + 1]
        for node in instance.nodes_of(k)
    )
    price = Fraction(hourly) / 3600 / served
    claimed = Fraction(claims.price_per_request or 0.0)
    sound = abs(claimed - price) <= CLOSE * price
    need(sound, "served: price_per_request: it is", float(price))
    gap = Fraction(claims.refuted_per_s) - served
    is_optimal = gap <= OPTIMAL * Fraction(claims.refuted_per_s)
    need(claims.status != "optimal" or is_optimal, "status: not optimal")


def _of_best_cycle(
    cycles: Sequence[Cycle | WholeServers], low: Fraction, high: Fraction
) -> list[tuple[int, int, int]]:
    """Return bounds on the latencies with the number of pipelines that answers first."""
    bounds = [[each.latencies(low, False), each.latencies(high, True)] for each in cycles]
    return min(bounds, key=lambda pair: pair[0][2])

"""`throughput_bound`: requests per second that no split and no schedule exceeds.

The rate is the number n of requests over the time T from the first arrival to the last
delivery, or with users to the end of the last think time: a request and the pause after it are
one round of a user. (Over the time to the last delivery alone, users may get more than the
bound, at most T / (T - think time) times as much.) All requests are alike here: p prompt and o
output tokens, n_c = ceil(p / Q) chunks at least; `mixed_lengths` has the conditions if they
differ. No steady state is assumed. The bound is the largest X for which some split meets all
conditions below; all of them hold for X = n / T and the split that was used.

**Links.** A link between stages is busy for the bytes of all tokens but the last of each
request, and a link before the first stage for the ids of the prompt. If links send one message
at a time, n times that is at most T. Without contention the condition does not hold, and is
left out.

**Nodes.** A request is in at least o - 1 + n_c iterations of its node, and its p prompt tokens
are in iterations of at most Q prompt tokens. Let an iteration hold at most B requests and T
tokens. Then n_g requests need at least ``n_g phi`` iterations, ``phi = max((o - 1 + n_c) / B, p
/ Q, (p + o - 1) / T)``. The head works only where a token comes out, in at least ``n_g o / B``
of them. An iteration takes t0 + max(compute, memory) in each block, and a sum of maxima is at
least the maximum of the sums. So n_g requests keep a node busy for ``n_g l_g`` seconds, l_g =
sum over blocks of ``phi t0 + max(compute, phi weights + memory)``, and X is at most the sum of
1 / l_g over the nodes of a tier. With `OperatorRates`, a block takes seconds that are linear in
its contents behind the maximum (`StepCosts`). They add up over requests, and are added to l_g,
to tau and to P_k below. What prompts add to an iteration, and one token of a prompt that is
computed apart, count with their least seconds. Under ``paged``, a request in an iteration may
hold as little as p tokens, and only decode passes count against the B of memory.

**Passes** (mode ``stage`` with ``reserve``). Of N iterations of a node, mean contents are b =
n_g (o - 1) / N decode tokens and b p / (o - 1) prompt tokens. Seconds of an iteration are
convex in the contents, if the head counts without t0 and weights, so N tau(mean) <= T, and b is
at least the least solution of ``b >= x (o - 1) tau(b, b p / (o - 1))``, x = n_g / T. The decode
tokens spend sum b_i tau_i in iterations, which is at least N b tau(b, 0), for b tau(b, 0) is
convex; and an iteration with a decode token has at least one. The mean pass is therefore at
least w_g(x) = tau(max(b, 1), 0), at the least context p + 1. x w_g(x) is convex and rises, so
the mean over the nodes of a tier, W_k(X), is attained at equal shares of equal nodes; for
unequal nodes, a Lagrangian bound on a grid (the lower end of w in each cell) is below it. In
the other modes, W_k is the pass of a request that is alone on the fastest node.

**Memory.** A request holds KV cache in a tier during its prefill there, at least P_k seconds,
and during its o - 1 decode passes through all stages and links: ``h = (o - 1)(R + sum W_k)``
with R the round trips and one token's bytes. At most M_k requests hold KV cache in tier k at
once, so ``X (h + P_k) <= M_k``. Under ``paged`` a request holds p + o / 2 tokens on average
during its decode passes (a pass does not get shorter as the context grows), and P_k is left
out. Under ``pipeline`` and ``serial``, at most `max_num_seqs` requests run per pipeline, too.

**Pipelines.** Pipeline r takes the r-th node that holds the stage, in every tier, so the number
R of pipelines is that of the tier with the fewest, and only R nodes of each tier work: the sums
over nodes and the M_k take the R best. Every R is tried.

**Serial.** One batch passes all stages before the next one: the busy seconds of the stages of a
pipeline add up to at most 1 / rate, with ``o / B`` times the host's seconds and the round trip,
if batches are not cut into parts.

**All splits.** X W_k(X) and all other left sides rise in X, so bisection finds the largest X.
For X given, every split that meets the conditions has h at least as large as the shortest chain
over stages that meet them for a smaller h. Start with h = 0; the shortest chain of stages that
are open for h gives the next h, until it does not grow: then the chain is a split that meets
all conditions. If there is no chain, no split meets them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hypsolve.bounds.mixed_lengths import MixedConditions, length_mix
from hypsolve.bounds.request_work import bounded, request_work
from hypsolve.bounds.stage_conditions import StageConditions
from hypsolve.problem import costs, instance_tables
from hypsolve.problem import validation as valid
from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.deployment import Deployment
from hypsolve.problem.model import Block
from hypsolve.problem.network import GpuProfile
from hypsolve.problem.stage_contents import stage_contents

ROUNDING = 1e-9
"""Relative amount by which the bound is raised, so that rounding does not lower it."""


@valid.suggest_keywords("throughput_bound")
def throughput_bound(
    deployment: Deployment,
    *,
    allow_empty: bool = False,
    pinned: Mapping[int, int] | None = None,
    min_blocks: Sequence[int] | None = None,
    max_blocks: Sequence[int] | None = None,
    link_contention: bool = True,
    users: int | None = None,
    think_time_s: float = 0.0,
) -> float:
    """Return requests per second that no split and no schedule exceeds, under the runtime.

    The proof is in the docstring of this module.

    Parameters
    ----------
    deployment : Deployment
        Its runtime gives batching mode and limits. Requests may differ in length: the bound
        then holds for these requests, in any order, and for others with the same shares.
    allow_empty, pinned, min_blocks, max_blocks
        The splits that count, as in `hypsolve.to_instance`.
    link_contention : bool
        Whether links send one message at a time, as in `hypsolve.simulate`.
    users, think_time_s
        A closed loop as in `hypsolve.simulate`; T then runs to the end of the last think time.

    Returns
    -------
    float
        0 if no split fits, and inf if nothing takes time.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> deployment = hs.Deployment(
    ...     model=hs.model("llama-3-8b"),
    ...     network=hs.Network(name="lab", tiers=(box,)),
    ...     requests=hs.Requests([0.0], [256], [64]),
    ... )
    >>> 30 < throughput_bound(deployment) < 40
    True
    """
    valid.of_type("throughput_bound", "deployment", deployment, Deployment)
    think_time_s = valid.real("throughput_bound", "think_time_s", think_time_s)
    allow_empty = valid.flag("throughput_bound", "allow_empty", allow_empty)
    model, n_tiers = deployment.model, len(deployment.network.tiers)
    size = n_tiers, model.n_blocks
    least = instance_tables.limits("min_blocks", min_blocks, *size, 0)
    search = _Search(
        deployment,
        cut_limits=instance_tables.cut_limits(pinned, *size),
        min_blocks=least if allow_empty else np.maximum(least, 1),
        max_blocks=instance_tables.limits("max_blocks", max_blocks, *size, model.n_blocks),
        link_contention=valid.flag("throughput_bound", "link_contention", link_contention),
        users=math.inf if users is None else valid.whole("throughput_bound", "users", users),
        think_time_s=think_time_s,
    )
    return search.largest_rate()


class _View(NamedTuple):
    """Conditions on the stages of all tiers, and decode passes in the same weighting."""

    tiers: Sequence[StageConditions | MixedConditions]
    passes: float
    counts_requests: bool  # each request counts alike


def _views(
    deployment: Deployment,
    kinds: Sequence[Block],
    gpus: Sequence[GpuProfile],
    counts: Array,
    whole: int,
) -> list[_View]:
    """Return conditions that are all necessary: one view, or two if lengths differ."""
    tiers, requests = deployment.network.tiers, deployment.requests
    prompt, output = requests.prompt_tokens, requests.output_tokens
    if (prompt == prompt[0]).all() and (output == output[0]).all():
        work = request_work(deployment, kinds, [bounded(gpu) for gpu in gpus])
        alike = [
            StageConditions(deployment, tier, kinds, gpus, work, counts, whole)
            for tier in tiers
        ]
        return [_View(alike, float(output[0]) - 1, True)]
    mix = length_mix(deployment, kinds, [bounded(gpu) for gpu in gpus])
    views = []
    for by_tokens in (True, False):
        mixed = [
            MixedConditions(
                deployment, tier, kinds, gpus, mix, counts, whole, by_tokens=by_tokens
            )
            for tier in tiers
        ]
        passes = float((mix.output - 1) @ mixed[0].weight)
        views.append(_View(mixed, passes, not by_tokens))
    return views


class _Search:
    """Bisection on the rate over all splits."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        cut_limits: tuple[IntArray, IntArray],
        min_blocks: IntArray,
        max_blocks: IntArray,
        link_contention: bool,
        users: float,
        think_time_s: float,
    ) -> None:
        model, tiers = deployment.model, deployment.network.tiers
        names = list(dict.fromkeys(block.kind for block in model.blocks))
        kinds = [next(b for b in model.blocks if b.kind == name) for name in names]
        block_kind = np.array([names.index(block.kind) for block in model.blocks])
        content, counts = stage_contents(block_kind, len(kinds))
        gpus = costs.node_classes(deployment)
        self.views = _views(deployment, kinds, gpus, counts, int(content[0, -1]))
        self.users, self.think_time_s = users, think_time_s
        self.content, self.n_cuts = content, model.n_blocks + 1
        self.is_allowed = [
            _allowed(k, self.n_cuts, cut_limits, min_blocks, max_blocks)
            for k in range(len(tiers))
        ]
        self._set_links(deployment, link_contention)
        runtime = deployment.runtime
        self.is_stage = runtime.batching == "stage"
        self.is_serial = runtime.batching == "serial" and runtime.micro_batch_tokens is None
        self.returns = float(deployment.requests.output_tokens.mean()) / runtime.batch_limit
        self.host_s = runtime.iteration_s

    def _set_links(self, deployment: Deployment, link_contention: bool) -> None:
        """Set seconds of round trips, passes, and busy links of a request, by tier and cut."""
        model, requests = deployment.model, deployment.requests
        shape = len(deployment.network.tiers), self.n_cuts
        self.round_s, self.pass_s, self.busy_s = (np.zeros(shape) for _ in range(3))
        p = float(requests.prompt_tokens.mean())
        passes = float(requests.output_tokens.mean()) - 1
        sent = np.array([block.output_bytes_per_token for block in model.blocks[:-1]])
        for k, tier in enumerate(deployment.network.tiers[:-1]):
            link = tier.link
            assert link is not None
            token_s = sent / link.bytes_per_s
            self.round_s[k, 1:-1] = link.round_trip_s
            self.pass_s[k, 1:-1] = link.round_trip_s + token_s
            if link_contention:
                self.busy_s[k, 1:-1] = (p + passes) * token_s
                self.busy_s[k, 0] = p * model.input_bytes_per_token / link.bytes_per_s

    def largest_rate(self) -> float:
        """Return the largest rate at which some split meets all conditions."""
        low, high = 0.0, 1.0
        while self.is_met(high):
            low, high = high, high * 2
            if high > 1e15:
                return math.inf
        while high - low > ROUNDING * high and high > 1e-12:
            middle = (low + high) / 2
            if self.is_met(middle):
                low = middle
            else:
                high = middle
        return high * (1 + ROUNDING) if low > 0 else 0.0

    def is_met(self, rate: float) -> bool:
        """Return whether some split meets all conditions at a rate."""
        widest = max(tier.n_nodes for tier in self.views[0].tiers)
        numbers = (0,) if self.is_stage else range(1, widest + 1)
        return any(all(self._is_met_by(rate, n, view) for view in self.views) for n in numbers)

    def _is_met_by(self, rate: float, n_pipelines: int, view: _View) -> bool:
        """Return whether some split with so many pipelines does; 0: all nodes serve any."""
        held_s = 0.0
        passes_s = [tier.decode_s(rate) for tier in view.tiers]
        while True:
            opened = [tier.is_open(rate, held_s, n_pipelines) for tier in view.tiers]
            found_s = self._shortest(passes_s, opened, view.passes * self.pass_s, rate)
            if math.isinf(found_s):
                return False
            users = self.users if view.counts_requests else math.inf
            if rate * (found_s + self.think_time_s) > users * (1 + ROUNDING):
                return False
            if self.is_serial and not self._follow(rate, opened, n_pipelines, view):
                return False
            if found_s <= held_s * (1 + 1e-12):
                return True
            held_s = found_s

    def _follow(self, rate: float, opened: list[Array], n_pipelines: int, view: _View) -> bool:
        """Return whether the batches of serial pipelines can follow each other fast enough."""
        busy_s = [tier.least_busy_s for tier in view.tiers]
        sum_s = self._shortest(busy_s, opened, self.returns * self.round_s, rate)
        return rate * (sum_s + self.returns * self.host_s) <= n_pipelines * (1 + ROUNDING)

    def _shortest(
        self, seconds: list[Array], opened: list[Array], links_s: Array, rate: float
    ) -> float:
        """Return the least sum over chains of open stages and links, inf if there is none."""
        cost = np.full(self.n_cuts, math.inf)
        cost[0] = 0.0
        for k in range(len(opened)):
            # an empty stage has no content: the entry behind the last one
            of_stage = np.append(np.where(opened[k], seconds[k], math.inf), 0.0)
            table = np.where(self.content >= 0, of_stage[self.content], math.inf)
            np.fill_diagonal(table, 0.0)
            table = np.where(self.is_allowed[k], table, math.inf)
            cost = (cost[:, None] + table).min(axis=0) + links_s[k]
            cost[rate * self.busy_s[k] > 1 + ROUNDING] = math.inf
        return float(cost[-1])


def _allowed(
    k: int, n_cuts: int, cut_limits: tuple[IntArray, IntArray], least: IntArray, most: IntArray
) -> Array:
    """Return whether tier k may host blocks i:j, shape (n_cuts, n_cuts)."""
    low, high = cut_limits
    cut = np.arange(n_cuts)
    n = cut[None, :] - cut[:, None]
    rows = (low[k] <= cut) & (cut <= high[k])
    columns = (low[k + 1] <= cut) & (cut <= high[k + 1])
    return (n >= least[k]) & (n <= most[k]) & (n >= 0) & rows[:, None] & columns[None, :]

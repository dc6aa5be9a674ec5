"""`token_budgets`: other limits on the tokens of a batch, a change that costs nothing.

A small budget keeps prompts from delaying tokens and needs less memory for activations; a large
one computes prompts in fewer iterations. In simulation, the best one may serve clearly more
than a server's default. This is not validated on real servers: their kernels overlap less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hypsolve.planning.query import PlanQuery, Solution, raced_within_targets
from hypsolve.planning.simulation_search import Progress
from hypsolve.planning.slo_answer import BetterBudget
from hypsolve.problem import evaluation
from hypsolve.problem.costs import to_instance
from hypsolve.problem.solution import Partition
from hypsolve.solvers.clock import Deadline

BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)
"""Tokens that are tried."""
CLEARLY = 1.04  # times the largest rate, from which another budget is named
FLAGS = {
    "vllm": ("max_num_batched_tokens", "--max-num-batched-tokens"),
    "sglang": ("chunk_tokens", "--chunked-prefill-size"),
    "llama.cpp": ("max_num_batched_tokens", "-b"),
    "tensorrt-llm": ("max_num_batched_tokens", "--max_num_tokens"),
}
"""The attribute of a runtime that is its budget, and the flag of its server."""


def token_budgets(query: PlanQuery) -> Iterator[tuple[str, PlanQuery]]:
    """Yield the query with other token budgets, in words, the nearest ones first.

    Nothing is yielded for a runtime without such a flag, or if the budget was asked for. vLLM
    needs a budget of at least `max_num_seqs`, which is lowered with it.

    Examples
    --------
    >>> import hypsolve as hs
    >>> box = hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),))
    >>> home = hs.Network(name="home", tiers=(box,))
    >>> for what, _ in token_budgets(hs.PlanQuery.of("llama-3-8b", home, runtime="vllm")):
    ...     print(what)
    1024 tokens in a batch by --max-num-batched-tokens 1024
    4096 tokens in a batch by --max-num-batched-tokens 4096
    512 tokens in a batch by --max-num-batched-tokens 512
    8192 tokens in a batch by --max-num-batched-tokens 8192
    16384 tokens in a batch by --max-num-batched-tokens 16384
    """
    runtime = query.runtime
    field, flag = FLAGS.get(runtime.name, ("", ""))
    own = getattr(runtime, field) if field else None
    if field not in query.follows or own is None:
        return
    for tokens in sorted(BUDGETS, key=lambda n: (abs(math.log(n / own)), n)):
        if tokens == own:
            continue
        what = f"{flag} {tokens}"
        changes: dict[str, Any] = {field: tokens}
        if runtime.name == "vllm" and tokens < runtime.max_num_seqs:
            changes["max_num_seqs"] = tokens
            what += f" --max-num-seqs {tokens}"
        of = "prompt tokens" if field == "chunk_tokens" else "tokens"
        yield (
            f"{tokens} {of} in a batch by {what}",
            replace(
                query,
                runtime=replace(runtime, **changes),
                follows=tuple(name for name in query.follows if name not in changes),
            ),
        )


def better_budget(
    query: PlanQuery,
    solution: Solution,
    max_requests_per_s: float,
    deadline: Deadline,
    progress: Progress,
) -> BetterBudget | None:
    """Return the token budget with which a split serves most within its targets.

    Parameters
    ----------
    query : PlanQuery
        With targets.
    solution : Solution
        Its split.
    max_requests_per_s : float
        Largest rate of the split within the targets; 0 if there is none.
    deadline : Deadline
        When it has passed, no further budget is tried.
    progress : callable
        Called with a line for each budget.

    Returns
    -------
    BetterBudget or None
        None if no budget serves clearly more.
    """
    partition, best = solution.result.partition, None
    assert partition is not None
    most = max_requests_per_s
    for what, other in token_budgets(query):
        if deadline.has_passed():
            break
        instance = to_instance(other.deployment(), objective="path", **other.rules())
        if evaluation.check(instance, Partition(partition.cuts)):
            continue  # its activations leave too little memory
        progress(f"simulating: {what}")
        rate = raced_within_targets(other, partition.cuts, CLEARLY * most, deadline)
        if rate > CLEARLY * most:
            most, runtime = rate, other.runtime
            best = BetterBudget(
                what=what,
                max_num_batched_tokens=runtime.max_num_batched_tokens,
                chunk_tokens=runtime.chunk_tokens,
                max_num_seqs=runtime.max_num_seqs,
                max_requests_per_s=rate,
            )
    return best

"""Other limits on the tokens of a batch are tried: a change that costs nothing."""

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.cheapest_upgrade import cheapest_upgrade
from hypsolve.planning.query import PlanQuery
from hypsolve.planning.slo_text import slo_lines
from hypsolve.planning.token_budgets import token_budgets
from hypsolve.solvers.clock import NEVER

HOME = hs.Network(
    name="home",
    tiers=(hs.Tier(name="box", nodes=(hs.Node(name="box", gpu=hs.gpu("rtx-4090")),)),),
)
LOAD = {
    "prompt_tokens": 2048, "output_tokens": 64, "ttft_slo_s": 2.0, "tpot_slo_s": 0.02,
}  # fmt: skip
RATE = 5.0  # of which a long prompt delays too many tokens, with 2,048 tokens in a batch


def asked(runtime="vllm", **more):
    return PlanQuery.of("llama-3.2-3b", HOME, runtime=runtime, **{**LOAD, **more})


def share_within(n_requests=2000, **limits):
    """Return the share within the targets of Poisson arrivals at `RATE`, with some limits."""
    arrival_s = np.random.default_rng(5).exponential(1 / RATE, n_requests).cumsum()
    model = hs.model("llama-3.2-3b")
    trace = hs.simulate(
        hs.Deployment(
            model=model,
            network=HOME,
            requests=hs.Requests(arrival_s, [2048] * n_requests, [64] * n_requests),
            runtime=hs.runtime("vllm", **limits),
        ),
        hs.Partition((0, model.n_blocks)),
    )
    ok = (trace.ttft_s <= LOAD["ttft_slo_s"]) & (trace.tpot_s <= LOAD["tpot_slo_s"])
    return ok.mean()


def test_the_cheapest_upgrade_is_a_token_budget():
    """It costs nothing, and no line said that 512 tokens serve what 2,048 do not."""
    query = asked(rate_per_s=RATE)
    upgrade = cheapest_upgrade(query, deadline=NEVER)
    assert upgrade.what.startswith("512 tokens in a batch by --max-num-batched-tokens 512")
    assert (upgrade.price_per_hour, upgrade.n_gpus) == (0.0, 0)
    assert share_within() < 0.95 <= share_within(max_num_batched_tokens=512, max_num_seqs=256)


@pytest.mark.parametrize("rate_per_s", [2.0, RATE])
def test_a_plan_names_a_budget_that_serves_clearly_more(rate_per_s):
    """Also where the load is served: the largest rate is that of the default."""
    plan = hs.plan(
        "llama-3.2-3b", HOME, runtime="vllm", rate_per_s=rate_per_s, time_limit_s=120, **LOAD
    )
    answer = plan.slo_answer
    better = answer.better_budget
    assert better.max_num_batched_tokens == 512
    assert better.max_requests_per_s > 1.3 * answer.max_requests_per_s
    assert better.max_requests_per_s > RATE > answer.max_requests_per_s
    lines = "\n".join(slo_lines(plan))
    assert "with 512 tokens in a batch by --max-num-batched-tokens 512" in lines
    assert plan.query.runtime.max_num_batched_tokens == 2048  # it is named, not taken
    assert answer.is_met == (rate_per_s == 2.0)


@pytest.mark.parametrize(
    ("runtime", "field", "flag"),
    [
        ("vllm", "max_num_batched_tokens", "--max-num-batched-tokens"),
        ("sglang", "chunk_tokens", "--chunked-prefill-size"),
        ("llama.cpp", "max_num_batched_tokens", "-b"),
        ("tensorrt-llm", "max_num_batched_tokens", "--max_num_tokens"),
    ],
)
def test_budgets_have_the_flag_of_the_server(runtime, field, flag):
    """Only that limit changes, with `max_num_seqs` where vLLM needs it; the default is none."""
    weights = "q4_k_m" if runtime == "llama.cpp" else None
    query = asked(runtime, weights=weights)
    found = list(token_budgets(query))
    tokens = [getattr(other.runtime, field) for _, other in found]
    assert sorted([*tokens, getattr(query.runtime, field)]) == [2**n for n in range(9, 15)]
    for what, other in found:
        assert f"{flag} {getattr(other.runtime, field)}" in what
        assert field not in other.follows
        assert other.on(other.network).runtime == other.runtime  # no default takes it back
    given = asked(runtime, weights=weights, **{field: 777})
    assert not list(token_budgets(given))
    assert not list(token_budgets(asked("ideal")))


def test_vllm_starts_with_every_budget():
    """It refuses max_num_batched_tokens < max_num_seqs, which are 1,024 on an H100."""
    h100 = hs.Tier(name="t", nodes=(hs.Node(name="n", gpu=hs.gpu("h100")),))
    query = PlanQuery.of("llama-3-8b", hs.Network(name="n", tiers=(h100,)), runtime="vllm")
    for what, other in token_budgets(query):
        limits = other.runtime
        assert limits.max_num_batched_tokens >= limits.max_num_seqs
        assert ("--max-num-seqs 512" in what) == (limits.max_num_batched_tokens == 512)

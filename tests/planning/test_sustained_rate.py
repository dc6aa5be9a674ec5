"""Whether a rate is sustained: judged by longer simulations, and by queueing theory."""

from dataclasses import replace

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.forecast import predict
from hypsolve.planning.load import Load
from hypsolve.planning.sustained_rate import Sustained, drains_queue, is_steady
from hypsolve.planning.text import describe_forecast
from tests.helpers import token_toys as toys

pytestmark = pytest.mark.full_length

CHAIN = ("l4", "l40s", "a100-80gb"), (0.005, 0.04), (0, 2, 3, 34)
LAN = ("a10", "l40s"), (0.0003,), (0, 9, 34)


def company(gpus, latencies_s):
    """Llama-3-8B under vLLM over machines in a row, 1,024 + 256 tokens."""
    wires = [hs.Link(bytes_per_s=1.25e8, latency_s=each) for each in latencies_s]
    tiers = tuple(
        hs.Tier(name=name, nodes=(hs.Node(name=name, gpu=hs.gpu(name)),), link=link)
        for name, link in zip(gpus, [*wires, None], strict=True)
    )
    return hs.Deployment(
        model=hs.model("llama-3-8b"),
        network=hs.Network(name="company", tiers=tiers),
        requests=toys.burst(1, 1024, 256),
        runtime=hs.runtime("vllm"),
    )


def ttfts_s(deployment, cuts, rate_per_s, n, seed):
    """Mean TTFT in the middle and at the end of so many Poisson arrivals."""
    arrival_s = np.random.default_rng(seed).exponential(1 / rate_per_s, n).cumsum()
    ones = np.ones(n, np.int64)
    requests = hs.Requests(arrival_s, 1024 * ones, 256 * ones)
    trace = hs.simulate(
        replace(deployment, requests=requests), hs.Partition(cuts), link_contention=True
    )
    return trace.ttft_s[2 * n // 5 : 3 * n // 5].mean(), trace.ttft_s[-n // 10 :].mean()


@pytest.mark.parametrize(("case", "asked"), [(CHAIN, 5.0), (LAN, 9.5)], ids=["wan", "lan"])
def test_a_rate_that_is_kept_up_with_is_sustained_in_a_longer_simulation(case, asked):
    """A plan kept up with 5 requests/s; of 12,000 requests, the last waited for minutes.

    Under overload it served 5.07/s, in full batches that a smaller rate never fills.
    """
    gpus, latencies_s, cuts = case
    problem = company(gpus, latencies_s)
    found = predict(
        problem, hs.Partition(cuts), Load(rate_per_s=asked), only="requests/s", near_per_s=asked
    )
    assert found.keeps_up is False and not found.is_settled
    assert 2.0 < found.max_requests_per_s < asked
    for seed in (11, 12):
        middle_s, end_s = ttfts_s(problem, cuts, asked, 12_000, seed)
        assert end_s > 1.5 * middle_s > 10
        _, end_s = ttfts_s(problem, cuts, 0.95 * found.max_requests_per_s, 12_000, seed)
        assert end_s < 20
    words = "\n".join(describe_forecast(found))
    assert f"the queue still grows after {found.n_requests} requests" in words
    assert "TTFT" not in words


@pytest.mark.parametrize(("load", "is_sustained"), [(0.5, True), (0.9, True), (1.05, False)])
def test_a_single_server_sustains_less_than_its_capacity(load, is_sustained):
    """One request a second, one at a time: an M/D/1 queue."""
    problem = toys.deployment(
        [[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1), toys.model(1),
        runtime=hs.runtime("ideal", max_num_seqs=1),
    )  # fmt: skip
    judge = Sustained(problem, toys.even(1), 20_000)
    assert judge(load, least=4000) is is_sustained
    largest, is_lower_bound = judge.largest(1.0)
    assert 0.9 <= largest <= 1.0 and not is_lower_bound


def test_latencies_are_of_many_times_the_requests_under_way():
    """Of 400 requests, 20 of which are under way, a twentieth sees an empty server."""
    problem = toys.deployment(
        [[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1, 1, 20), toys.model(1)
    )
    few = predict(problem, toys.even(1), 0.1, only="mean latency")
    many = predict(problem, toys.even(1), 2.0, only="mean latency")
    assert few.n_requests == 400 and few.is_settled
    assert many.n_requests >= 50 * many.mean_in_flight > 1500 and many.is_settled
    short = predict(problem, toys.even(1), Load(rate_per_s=2.0, max_visits=4000.0))
    assert short.keeps_up is None and not short.is_settled
    assert "requests are too few for" in "\n".join(describe_forecast(short))


def test_too_few_requests_tell_nothing():
    """Under way are more than a twentieth of the requests; users never pile up."""
    problem = toys.deployment([[toys.gpu("gpu", t0_s=1.0)]], toys.burst(1), toys.model(1))
    requests = hs.Requests(np.arange(30) / 4.0, *np.ones((2, 30), np.int64))
    trace = hs.simulate(replace(problem, requests=requests), toys.even(1))
    assert is_steady(trace) is None
    assert is_steady(hs.simulate(replace(problem, requests=requests), toys.even(1), users=3))


@pytest.mark.parametrize("share", [0.9, 0.99, 1.01, 1.1])
def test_a_queue_drains_below_the_capacity_and_only_there(share):
    """A node that serves one request at a time, in 1 s each: its capacity is 1 per second."""
    problem = toys.deployment(
        [[toys.gpu(t0_s=1.0)]], toys.burst(1), runtime=hs.runtime("ideal", max_num_seqs=1)
    )
    assert drains_queue(problem, hs.Partition((0, 1)), share) is (share < 1)


def test_a_rate_is_not_sustained_where_a_queue_makes_the_server_slower():
    """KV cache is short and paged: once requests queue, about 1.72 per second are served.

    Without a queue, 1.79 per second are served; a plan said so, and a longer run fell behind.
    """
    problem = replace(
        company(["rtx-3090"], []),
        requests=toys.burst(1, 500, 600),
        runtime=hs.runtime(
            "vllm", kv_admission="paged", max_num_seqs=256, max_num_batched_tokens=2048
        ),
    )
    partition = hs.Partition((0, 34))
    assert Sustained(problem, partition, 16_000)(1.79, least=4000)
    assert [drains_queue(problem, partition, rate) for rate in (1.6, 1.79)] == [True, False]
    forecast = predict(problem, partition, Load(rate_per_s=1.79), only="requests/s")
    assert forecast.keeps_up is False
    assert 1.5 < forecast.max_requests_per_s < 1.79

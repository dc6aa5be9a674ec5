"""The largest simulated rate of unequal servers: not that of a queue at the slowest one."""

import pytest

import hypsolve as hs
from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.query import PlanQuery, saturated
from hypsolve.problem.deployment import Network, Node, Tier

N_BLOCKS = 34


def query(*gpus):
    nodes = tuple(Node(name=f"n{i}", gpu=hs.gpu(gpu)) for i, gpu in enumerate(gpus))
    network = NetworkFile(network=Network(name="rack", tiers=(Tier(name="rack", nodes=nodes),)))
    return PlanQuery.of(
        "llama-3-8b", network, prompt_tokens=1024, output_tokens=256, runtime="vllm"
    )


def rate(*gpus):
    return saturated(query(*gpus), (0, N_BLOCKS)).requests_per_s


@pytest.mark.full_length
def test_a_slow_server_does_not_lower_the_rate_of_fast_ones():
    """Under overload, the dispatcher sent it so many requests that the queue there grew."""
    both = rate("a10", "l40s", "l40s")
    assert both > 0.98 * rate("l40s", "l40s")
    assert both < hs.throughput_bound(query("a10", "l40s", "l40s").deployment())

"""A plan compiles the kernels of its batching mode, and all of them before its clock starts."""

import json
import subprocess
import sys

import pytest

PLAN = """
import json, sys
import numba
import hypsolve as hs
from hypsolve.planning.planner import plan_query, warm

def compiled():
    counts = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("hypsolve.kernels"):
            for value in vars(module).values():
                if hasattr(value, "signatures") and hasattr(value, "py_func"):
                    function = value.py_func
                    key = f"{function.__module__}.{function.__name__}"
                    counts[key] = len(value.signatures)
    return {name: n for name, n in counts.items() if n}

link = hs.Link(bytes_per_s=1e9, latency_s=1e-3)
tiers = (
    hs.Tier(name="a", nodes=(hs.Node(name="a", gpu=hs.gpu("l4")),), link=link),
    hs.Tier(name="b", nodes=(hs.Node(name="b", gpu=hs.gpu("a10")),)),
)
network = hs.Network(name="two", tiers=tiers)
asked = dict(output_tokens=16, prompt_tokens=64, runtime=sys.argv[1])
query = hs.PlanQuery.of("phi-3-mini", network, **asked)
warm(query)
before = compiled()
plan_query(query)
print(json.dumps([before, compiled()]))
"""
STAGE = {"throughput.stage_search.max_rate", "token_level.loop.run"}
PIPELINE = {"throughput.pipeline_search.max_rate", "token_level.pipeline.loop.run"}


@pytest.mark.parametrize(
    ("runtime", "needed", "others"),
    [("ideal", STAGE, PIPELINE), ("vllm", PIPELINE, STAGE), ("llama.cpp", PIPELINE, STAGE)],
)
def test_a_plan_compiles_one_batching_mode(runtime, needed, others):
    """Both kinds were compiled, which took half a minute more than a first plan needs."""
    done = subprocess.run(
        [sys.executable, "-c", PLAN, runtime], capture_output=True, text=True, check=True
    )
    before, after = json.loads(done.stdout)
    assert before == after  # nothing is compiled or loaded while the clock runs
    names = {name.removeprefix("hypsolve.kernels.") for name in after}
    assert needed <= names and not others & names

"""`compare` on a network of which a server cannot use a tier."""

import json

from tests.cli.test_cli import run

MAC = """
[[tiers]]
name = "mac"
nodes = [{gpu = "apple-m2-ultra"}]
link = {gbps = 10, latency_ms = 1}
min_blocks = 0
[[tiers]]
name = "desk"
nodes = [{gpu = "rtx-4090"}]
link = {gbps = 10, latency_ms = 1}
[[tiers]]
name = "rack"
nodes = [{gpu = "a100-80gb"}]
"""
RULES = (
    "even_split", "memory_proportional", "speed_proportional", "torchgpipe",
    "deepspeed_balanced", "pipedream", "heft_split",
)  # fmt: skip


def test_rules_are_compared_on_the_tiers_that_a_server_can_use(capsys, tmp_path):
    """They were called infeasible, for they put blocks on a tier that vLLM does not run on."""
    path = tmp_path / "net.toml"
    path.write_text(MAC)
    command = ["compare", "--model", "phi-3-mini", "--network", path, "--runtime", "vllm"]
    command += ["--output", 16, "--concurrency", 1, "--json"]
    for rule in RULES:
        command += ["--method", rule]
    code, out, _ = run(capsys, *command)
    results = json.loads(out)
    assert code == 0 and [each["method"] for each in results] == list(RULES)
    for each in results:
        assert each["status"] == "feasible", each["message"]
        assert each["cuts"][1] == 0 and 0 < each["cuts"][2] < 34
    halves = {each["method"]: each["cuts"][2] for each in results}
    assert halves["even_split"] == 17 and halves["memory_proportional"] < 17

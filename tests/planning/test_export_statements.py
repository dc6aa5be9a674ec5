"""Statements beside exports and plans: each is compared with what the plan itself says."""

import re

import pytest

import hypsolve as hs
from hypsolve.cli.plan import _tell_difference
from hypsolve.formats.network_toml import NetworkFile
from hypsolve.planning.exporters import cautions, export
from hypsolve.planning.server_plan import ServerPlan
from hypsolve.planning.text import rows_of_nodes

WIRE = hs.Link(bytes_per_s=1.25e9, latency_s=1e-3)


def nodes(prefix, gpu, n=1, **fields):
    return tuple(hs.Node(name=f"{prefix}{i}", gpu=hs.gpu(gpu), **fields) for i in range(n))


def network(*tiers):
    """A chain of tiers of these nodes."""
    last = len(tiers) - 1
    return hs.Network(
        name="net",
        tiers=tuple(
            hs.Tier(name=f"t{k}", nodes=each, link=None if k == last else WIRE)
            for k, each in enumerate(tiers)
        ),
    )


@pytest.fixture(scope="module")
def long():
    """A plan for sequences of 12,000 tokens of a model that was made for 8,192."""
    asked = {"prompt_tokens": 11_000, "output_tokens": 1000, "concurrency": 1, "users": 1}
    return hs.plan(
        "llama-3-8b", network(nodes("a", "h100")), runtime="vllm", with_upgrades=False, **asked
    )


def test_a_context_that_servers_refuse_is_said_with_the_export(long):
    """The flag is written as simulated, so the line must say that it cannot start."""
    flags = {"vllm": "--max-model-len 12000", "sglang": "--context-length 12006"}
    for server, flag in flags.items():
        assert flag in export(long, server)
        (line,) = [each for each in cautions(long, server) if "made for" in each]
        assert line == (
            "12000 tokens are longer than the 8192 that the model was made for: "
            f"{server} refuses to start with {flag}"
        )
    assert any("8192 that the model was made for" in each for each in cautions(long, "json"))
    short = hs.plan(
        "llama-3-8b", network(nodes("a", "h100")), runtime="vllm", with_upgrades=False, users=1,
        prompt_tokens=8000, output_tokens=192,
    )  # fmt: skip
    assert not any("made for" in each for each in cautions(short, "vllm"))
    (line,) = [each for each in cautions(short, "sglang") if "made for" in each]
    assert line.endswith("sglang refuses to start with --context-length 8198")


def test_answers_are_as_long_as_simulated(long):
    """`--context-length 12000` gave 998 of the 1000 tokens; each server has its own rule."""
    prompt, output = 11_000, 1000

    def flag(server, name):
        return int(re.search(rf"{name} (\d+)", export(long, server))[1])

    def vllm(context):  # it ends once a sequence has as many tokens as the context
        return next(n for n in range(1, output + 1) if prompt + n >= context or n == output)

    def sglang(context):  # max_req_len, and what the prompt and one more token leave of it
        longest = context - 1
        assert prompt < longest - 5
        return min(output, longest - prompt - 1)

    assert vllm(flag("vllm", "--max-model-len")) == output
    assert sglang(flag("sglang", "--context-length")) == output


def test_room_is_told_for_sequences_as_long_as_those_of_the_query(long):
    """Room for n sequences is room for one of n times their length, longer ones or not."""
    n, longest = re.search(
        r"room for (\d+) sequences at once.*, or one of (\d+) tokens", str(long)
    ).groups()
    assert int(n) * 12_000 <= int(longest) < (int(n) + 1) * 12_000


def test_a_tier_of_two_kinds_states_its_share_once():
    """The column of shares adds up to the whole, and empty cells follow the first row."""
    mixed = network(nodes("a", "a10", 2) + nodes("b", "l40s"), nodes("c", "h100"))
    plan = hs.plan("llama-3-8b", mixed, objective="path", with_upgrades=False)
    rows = rows_of_nodes(plan)
    assert [row["tier"] for row in rows] == ["t0", "t0", "t1"]
    assert rows[1]["link"] == rows[1]["stage"] == rows[1]["of path"] == ""
    shares = [float(row["of path"].rstrip("%") or 0) for row in rows]
    assert sum(shares) == pytest.approx(100, abs=1.5)


def left_out_lines(plan, server, instead_of=None):
    """The comments of an export on nodes, without their start."""
    lines = export(plan, server, instead_of=instead_of).splitlines()
    return [line.removeprefix("# left out: ") for line in lines if line.startswith("# left")]


def test_an_export_names_every_node_that_is_left_out_with_a_reason():
    """Each node of the file is in a pipeline or in one line, and JSON has the same list."""
    bridge = hs.interconnect("nvlink4", "h100")
    machine = hs.Node(name="box", gpu=hs.gpu("h100"), gpus=2, interconnect=bridge)
    tiers = (nodes("mac", "apple-m2-max"), nodes("old", "a10", 2), (machine,))
    file = NetworkFile(network=network(*tiers), min_blocks=(0, 0, 0))
    asked = {"runtime": "vllm", "users": 1, "output_tokens": 32, "with_upgrades": False}
    plan = hs.plan("phi-3-mini", file, tensor_parallel=2, **asked)
    assert left_out_lines(plan, "vllm") == [
        "mac0; they add nothing: vllm runs on none",
        "old0, old1 (fewer GPUs than compute as one, 2)",
    ]
    assert set(plan.to_dict()["left_out"]) == set(plan.left_out) == {"mac0", "old0", "old1"}
    free = hs.plan("phi-3-mini", file, **asked)
    named = [node.node for node in free.nodes if node.is_used]
    told = " ".join(left_out_lines(free, "vllm"))
    for name in ("mac0", "old0", "old1"):
        assert (name in named) != (name in told)
    if free.query.too_small:
        (one,) = [each for each in free.degrees if each.degrees == (1, 1, 1)]
        assert f"degree 1, which lets them in, serves {one.value:.3g} requests/s" in told


def test_one_list_names_what_a_plan_and_its_export_leave_out():
    """Nodes that the best plan does not use either are missing from no list."""
    file = NetworkFile(
        network=network(nodes("slow", "t4"), nodes("fast", "h100"), nodes("weak", "t4")),
        min_blocks=(0, 0, 0),
    )
    plan = hs.plan("llama-3-8b", file, runtime="llama.cpp", users=2, with_upgrades=False)
    assert [node.node for node in plan.nodes if node.is_used] == ["fast0"]
    (line,) = left_out_lines(plan, "llama.cpp")
    assert line == "slow0, weak0; they add nothing: no plan found with them serves more"


def test_a_substitute_is_compared_with_the_plan_that_it_is_better_or_worse_than(capsys):
    """Nodes in a row may serve more than the best plan of one stage per tier."""
    slow, fast = (
        hs.plan(
            "phi-3-mini", network(nodes("a", gpu)), runtime="vllm", users=1, with_upgrades=False
        )
        for gpu in ("l4", "h100")
    )
    for found, best in ((fast, slow), (slow, fast)):
        _tell_difference(ServerPlan(plan=found, best=best, why="of a reason"), "vllm")
        first, second = capsys.readouterr().err.splitlines()[:2]
        of = " of one stage per tier" if found is fast else ""
        assert first == f"vllm cannot express the best plan{of}: of a reason"
        share, side = re.search(r"throughput (\S+)% (above|below) that plan's", second).groups()
        assert side == ("above" if found is fast else "below")
        change = found.value / best.value - 1
        assert float(share) == pytest.approx(abs(change) * 100, abs=0.06)

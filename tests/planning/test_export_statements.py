"""Statements beside exports and plans: each is compared with what the plan itself says."""

import re

import pytest

import hypsolve as hs
from hypsolve.planning.exporters import cautions, export
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
    flags = {"vllm": "--max-model-len 12000", "sglang": "--context-length 12000"}
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


def test_room_is_told_for_sequences_as_long_as_those_of_the_query(long):
    """Room for n sequences is room for one of n times their length, longer ones or not."""
    n, longest = re.search(
        r"room for (\d+) sequences at once.*, or one of (\d+) tokens", str(long)
    ).groups()
    assert int(n) * 12_000 <= int(longest) < (int(n) + 1) * 12_000


def test_a_tier_of_two_kinds_states_its_share_once():
    """The column of shares adds up to the whole, and empty cells follow the first row."""
    mixed = network(nodes("a", "a10", 2) + nodes("b", "l40s"), nodes("c", "h100"))
    plan = hs.plan("llama-3-8b", mixed, with_upgrades=False)
    rows = rows_of_nodes(plan)
    assert [row["tier"] for row in rows] == ["t0", "t0", "t1"]
    assert rows[1]["link"] == rows[1]["stage"] == rows[1]["of latency alone"] == ""
    shares = [float(row["of latency alone"].rstrip("%") or 0) for row in rows]
    assert sum(shares) == pytest.approx(100, abs=1.5)

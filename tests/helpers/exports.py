"""Plans to export, and exported commands read back as a shell would."""

import functools
import re
import shlex
from functools import cache

import hypsolve as hs
from tests.helpers.plans import plan_alone

plan = functools.partial(plan_alone, with_upgrades=False, output_tokens=16)
"""A plan for requests one at a time, which takes less time than the best one for batches."""
WIRE = hs.Link(bytes_per_s=1e9, latency_s=1e-4)


def tier(name, gpu, n_nodes=1, link=None, **fields):
    nodes = tuple(
        hs.Node(name=f"{name}-{n}", gpu=hs.gpu(gpu), **fields) for n in range(n_nodes)
    )
    return hs.Tier(name=name, nodes=nodes, link=link)


@cache
def planned(cuts, n_nodes=1, n_last=1):
    """A plan of these cuts for Llama-3-8B, whatever they cost."""
    tiers = [tier(f"t{k}", "h200", n_nodes, WIRE) for k in range(len(cuts) - 2)]
    network = hs.Network(name="net", tiers=(*tiers, tier("last", "h200", n_last)))
    return plan("llama-3-8b", pinned(network, cuts))


def pinned(network, cuts):
    """A network file that allows no other cuts of Llama-3-8B."""
    wanted = {}
    for k in range(len(cuts) - 1):
        for b in range(cuts[k], cuts[k + 1]):
            name = {0: "embedding", 33: "head"}.get(b, b - 1)
            wanted[name] = network.tiers[k].name
    empty = [0 if cuts[k] == cuts[k + 1] else None for k in range(len(cuts) - 1)]
    return hs.NetworkFile(network=network, pins=wanted, min_blocks=tuple(empty))


def own_gpu(name, like):
    """A table for a network file: a GPU whose name says nothing of its platform."""
    gpu = hs.gpu(like)
    return f"""
[gpus.{name}]
t0_us = {gpu.t0_s * 1e6}
tflops = {gpu.flops_per_s / 1e12}
gb_per_s = {gpu.bytes_per_s / 1e9}
memory_gib = {gpu.memory_bytes / 2**30}
"""


SLOW_FIRST = """
[[tiers]]
name = "slow"
nodes = [{gpu = "board"}]
link = {gbps = 8, latency_ms = 0.1}
[[tiers]]
name = "fast"
nodes = [{gpu = "h200"}]
""" + own_gpu("board", "jetson-orin-nano")


class Command:
    """A printed command: variables, program, and flags with their values."""

    def __init__(self, line, where):
        self.where = where
        words = shlex.split(line)
        self.variables = {}
        while words and re.match(r"^[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            self.variables[name] = value
        starts = [i for i, word in enumerate(words) if re.match(r"^-{1,2}[a-z]", word)]
        starts = [i for i in starts if words[i - 1 : i] != ["python"]]  # python -m MODULE
        self.program = " ".join(words[: starts[0]] if starts else words)
        self.flags = {}
        for i, end in zip(starts, [*starts[1:], len(words)], strict=True):
            flag, eq, value = words[i].partition("=")
            self.flags[flag] = [value] if eq else words[i + 1 : end]

    def __getitem__(self, flag):
        (value,) = self.flags[flag]
        return value


def commands(text, program=""):
    """The commands of an export in their order, with the machine that each runs on."""
    found, where, in_file = [], "", False
    for line in text.splitlines():
        if in_file or line.startswith("cat > "):
            in_file = line != "END_OF_FILE"
        elif line.startswith("# on "):
            where = re.match(r"# on ([^,:]+)", line)[1]
        elif line.startswith("#"):
            where = "" if line.startswith("# benchmark") else where
        elif line:
            found.append(Command(line, where))
    return [each for each in found if each.program.startswith(program)]

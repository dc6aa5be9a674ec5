"""A plan as the flags or the file of a runtime: `export`, to one of `RUNTIMES`."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hypsolve import validation as valid
from hypsolve.ask import Tell
from hypsolve.deployment import GpuProfile, Node
from hypsolve.latency_search import METHOD as SIMULATED
from hypsolve.network_file import NetworkFile
from hypsolve.optional import optional
from hypsolve.planner import Plan, plan, split
from hypsolve.simulation import MAX_BATCH

MOST_PIPELINES = 256  # to choose from
NO_BFLOAT16 = ("T4", "V100")  # of the catalogue's GPUs


@dataclass(frozen=True, slots=True)
class Names:
    """What a Hugging Face implementation calls its modules."""

    embedding: tuple[str, ...]
    layers: str
    norm: str
    head: str


_USUAL = Names(
    ("model.embed_tokens", "model.rotary_emb"), "model.layers", "model.norm", "lm_head"
)
MODULES: dict[str, Names] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "mixtral"), _USUAL
    ),
    "gpt2": Names(
        ("transformer.wte", "transformer.wpe"), "transformer.h", "transformer.ln_f", "lm_head"
    ),
    "gpt_neox": Names(
        ("gpt_neox.embed_in", "gpt_neox.emb_dropout", "gpt_neox.rotary_emb"),
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "lm_head",
    ),
    "opt": Names(
        ("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        "model.decoder.layers", "model.decoder.final_layer_norm", "lm_head",
    ),
}  # fmt: skip
"""By ``model_type``, as in transformers 5.14 (before it, the head of gpt_neox: embed_out)."""


@dataclass(frozen=True, slots=True)
class Split:
    """What runtimes need to know of a plan: one stage per tier, in order."""

    cuts: tuple[int, ...]
    tiers: tuple[str, ...]
    nodes: tuple[tuple[str, ...], ...]  # of each tier, that hold its stage
    names: Names
    tied: bool  # the head is the table of the embedding

    @property
    def n_layers(self) -> int:
        """Without embedding and head."""
        return self.cuts[-1] - 2

    @property
    def first_layers(self) -> tuple[int, ...]:
        """Of each stage, and at the end the number of all."""
        inner = (min(max(cut - 1, 0), self.n_layers) for cut in self.cuts[1:-1])
        return (0, *inner, self.n_layers)

    @property
    def layers(self) -> tuple[int, ...]:
        """How many each stage has."""
        first = self.first_layers
        return tuple(b - a for a, b in itertools.pairwise(first))


def export(found: Plan, runtime: str, *, model_type: str = "llama") -> str:
    """Write a plan for a runtime, as text.

    Parameters
    ----------
    found : Plan
    runtime : str
        One of `RUNTIMES`.
    model_type : str
        One of `MODULES`; only `NAMES_MODULES` need it. A device number of ``accelerate`` is
        that of a stage, and all of them must be in one machine; a head that is the embedding's
        table stays with that, on the first, which the plan does not count.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If there is no plan, or the runtime cannot express it; see `nearest_plan`.
    """
    valid.of_type("export", "found", found, Plan)
    valid.known("runtime", runtime, RUNTIMES)
    valid.known("model_type", model_type, MODULES)
    partition = found.result.partition
    if partition is None:
        raise ValueError(f"export: no plan to write, {found.result.status}")
    why = not_expressible(found, runtime)
    if why:
        raise ValueError(f"export: {runtime} cannot express this plan: {why}")
    stages = [stage for stage in found.stages if stage.blocks]  # of others nothing is started
    split = Split(
        cuts=(0, *(stage.blocks.stop for stage in stages)),
        tiers=tuple(stage.tier for stage in stages),
        nodes=tuple(
            tuple(n.node for n in found.nodes if n.tier == stage.tier and n.is_used)
            for stage in stages
        ),
        names=MODULES[model_type],
        tied=found.model.tied_bytes > 0,
    )
    return RUNTIMES[runtime](split, found).rstrip("\n") + "\n"


def not_expressible(found: Plan, runtime: str) -> str:
    """Why a runtime cannot have a plan; empty if it can."""
    partition = found.result.partition
    assert partition is not None
    why = []
    if runtime in ONE_PIPELINE:
        counts = {stage.tier: 0 for stage in found.stages}
        for node in found.nodes:
            counts[node.tier] += node.is_used
        wide = [f"tier {tier!r} has {n} nodes" for tier, n in counts.items() if n > 1]
        why += [f"it runs one pipeline, and {', '.join(wide)}"] if wide else []
    last = partition.cuts[-1] - 1
    for k in range(partition.n_tiers if runtime in BY_LAYER else 0):
        blocks = partition.stage(k)
        if blocks and not any(0 < b < last for b in blocks):
            why.append(
                f"stage {k} has only the embedding or the head, and every stage needs a layer"
            )
    return "; ".join(why)


def cautions(found: Plan, runtime: str) -> list[str]:
    """What to know of a plan in a runtime that the export does not say.

    Parameters
    ----------
    found : Plan
    runtime : str
        One of `RUNTIMES`.
    """
    valid.known("runtime", runtime, RUNTIMES)
    n_stages = sum(bool(stage.blocks) for stage in found.stages)
    lines = []
    if runtime not in PLAIN and found.model.extrapolated:
        lines.append(f"planned as {found.model.name}: load weights that are so quantised")
    if runtime == "accelerate" and n_stages > 1:
        lines.append("a device_map is of one machine: device k must be the GPU of stage k")
    if runtime == "accelerate" and n_stages > 1 and found.model.tied_bytes:
        lines.append(
            "the head is the embedding's table, and stays on device 0, which is not planned for"
        )
    if runtime == "petals":
        lines.append("Petals serves Llama, Mixtral, Falcon and BLOOM models")
    apple = [n.node for n in found.nodes if n.is_used and n.gpu.startswith("Apple")]
    if runtime in NEEDS_CUDA and apple:
        lines.append(f"{runtime} needs CUDA or ROCm; not so: {', '.join(apple)}")
    return lines


def nearest_plan(
    found: Plan,
    runtime: str,
    *,
    time_limit_s: float = 60.0,
    with_changes: bool = True,
    tell: Tell | None = None,
) -> Plan:
    """The best plan that a runtime can express, solved under its restrictions.

    For one pipeline, a tier keeps one node; or, where the network says how its nodes are linked
    among each other (``inner``), and neither pins nor limits blocks there, several of them as
    stages one after another, if that is better. Where stages need a layer, the first has the
    first, the last the last; tiers that may be empty are, if that is better. All such networks
    are solved, up to `MOST_PIPELINES`; of more, some.

    Parameters
    ----------
    found : Plan
    runtime : str
        One of `RUNTIMES`.
    time_limit_s, with_changes, tell
        As in `hypsolve.plan`.

    Returns
    -------
    Plan
        `found` itself if the runtime can express it. It may be of another network, and may fit
        where `found` does not: nodes in a row hold more than each alone.

    Raises
    ------
    ValueError
        If there is no plan to start from, or the network pins one of those layers elsewhere.
    """
    valid.of_type("nearest_plan", "found", found, Plan)
    valid.known("runtime", runtime, RUNTIMES)
    if not found.fits and runtime not in ONE_PIPELINE:
        raise ValueError(f"nearest_plan: no plan to start from, {found.result.status}")
    if found.fits and not not_expressible(found, runtime):
        return found
    method = None if found.result.method == SIMULATED else found.result.method
    ask: dict[str, Any] = {
        "prompt_tokens": found.prompt_tokens,
        "output_tokens": found.output_tokens,
        "rate_per_s": found.rate_per_s,
        "concurrency": found.concurrency,
        "objective": found.objective,
        "method": method,
        "seed": found.seed,
        "tell": tell,
    }
    pipelines = _pipelines(found.network, runtime)
    sites = [
        restricted
        for site in pipelines
        for restricted in _by_layer(found, site, runtime, MOST_PIPELINES // len(pipelines))
    ]
    best = sites[0]
    if len(sites) > 1:
        limit_s = time_limit_s / len(sites)
        values = []
        for site in sites:
            _, result = split(found.model, site, time_limit_s=limit_s, **ask)
            if result.statistics.get("stopped"):
                raise KeyboardInterrupt
            values.append(result.objective_s)
        best = sites[values.index(min(values))]
    ask |= {"time_limit_s": time_limit_s, "with_changes": with_changes}
    return plan(found.model, best, **ask)


def _pipelines(site: NetworkFile, runtime: str) -> list[NetworkFile]:
    """Networks of one node a tier, if the runtime runs one pipeline.

    Of more than `MOST_PIPELINES` some: a tier is its quickest node, its largest, or all.
    """
    if runtime not in ONE_PIPELINE:
        return [site]
    options = [list(_rows(site, k)) for k in range(len(site.network.tiers))]
    if math.prod(map(len, options)) > MOST_PIPELINES:
        options = [_some(site, k) for k in range(len(options))]
    if math.prod(map(len, options)) > MOST_PIPELINES:
        options = [rows[-1:] for rows in options]
    found = []
    for chosen in itertools.product(*options):
        each = site
        for k in reversed(range(len(chosen))):  # from the end: the numbers of others stay
            each = each.in_a_row(k, chosen[k])
        found.append(each)
    return found


def _rows(site: NetworkFile, k: int) -> Iterator[tuple[Node, ...]]:
    """What a tier can be in one pipeline: a node, or several in any order; alike ones once."""
    alike: dict[tuple[GpuProfile, float], list[Node]] = {}
    for node in site.network.tiers[k].nodes:
        alike.setdefault((node.gpu, node.usable_bytes), []).append(node)
    kinds = list(alike.values())

    def rows(counts: tuple[int, ...], length: int) -> Iterator[tuple[int, ...]]:
        if length == 0:
            yield ()
            return
        for at, count in enumerate(counts):
            if count:
                left = (*counts[:at], count - 1, *counts[at + 1 :])
                yield from ((at, *rest) for rest in rows(left, length - 1))

    counts = tuple(map(len, kinds))
    longest = sum(counts) if site.may_be_stages(k) else 1
    every = (row for length in range(1, longest + 1) for row in rows(counts, length))
    for row in itertools.islice(every, MOST_PIPELINES + 1):
        taken = [iter(nodes) for nodes in kinds]
        yield tuple(next(taken[at]) for at in row)


def _some(site: NetworkFile, k: int) -> list[tuple[Node, ...]]:
    nodes = site.network.tiers[k].nodes
    quickest = max(nodes, key=lambda node: node.gpu.bytes_per_s)
    largest = max(nodes, key=lambda node: node.usable_bytes)
    rows: list[tuple[Node, ...]] = list(dict.fromkeys([(largest,), (quickest,)]))
    return [*rows, nodes] if site.may_be_stages(k) and len(nodes) > 1 else rows


def _by_layer(
    found: Plan, site: NetworkFile, runtime: str, most_choices: int
) -> list[NetworkFile]:
    """With a layer in every stage, if the runtime needs that, for each choice of empty tiers.

    Of more choices than `most_choices` two: none is empty, and those that are in this plan.
    """
    if runtime not in BY_LAYER:
        return [site]
    tiers = range(len(site.network.tiers))
    optional = [k for k in tiers if site.least_blocks and site.least_blocks[k] == 0]
    of_site = [tier.name for tier in site.network.tiers]
    unused = {stage.tier for stage in found.stages if not stage.blocks}
    choices: list[tuple[int, ...]] = [(), tuple(k for k in optional if of_site[k] in unused)]
    if 2 ** len(optional) <= most_choices:
        sizes = range(len(optional) + 1)
        choices = [each for n in sizes for each in itertools.combinations(optional, n)]
    sites, errors = [], []
    for choice in choices:
        if len(choice) < len(tiers):
            try:
                sites.append(_with_layers(found, site, runtime, choice))
            except ValueError as error:
                errors.append(error)
    if not sites:
        raise errors[0]
    return sites


def _with_layers(
    found: Plan, site: NetworkFile, runtime: str, empty: tuple[int, ...]
) -> NetworkFile:
    """Some tiers empty, all others with a layer."""
    names = [tier.name for tier in site.network.tiers]
    used = [name for k, name in enumerate(names) if k not in empty]
    pins = dict(site.pins)
    for layer, tier_name in ((0, used[0]), (found.model.n_blocks - 3, used[-1])):
        if pins.setdefault(layer, tier_name) != tier_name:
            raise ValueError(
                f"{runtime} needs layer {layer} in tier {tier_name!r}, but it is pinned to"
                f" {pins[layer]!r}"
            )
    for block, tier_name in pins.items():
        if tier_name not in used:
            raise ValueError(f"block {block!r} is pinned to {tier_name!r}, left empty")
    least = site.least_blocks or (None,) * len(names)
    most = site.most_blocks or (None,) * len(names)
    return replace(
        site,
        pins=pins,
        least_blocks=tuple(0 if k in empty else least[k] or None for k in range(len(names))),
        most_blocks=tuple(0 if k in empty else most[k] for k in range(len(names))),
    )


def _vllm(split: Split, found: Plan) -> str:
    return "\n".join(
        [
            _of_stages(split),
            "# the nodes in a Ray cluster: ray start --head on the first, then on the others",
            "# ray start --address=FIRST:6379; see that rank k runs on the k-th stage's node",
            f"export VLLM_PP_LAYER_PARTITION={','.join(map(str, split.layers))}",
            f"vllm serve MODEL --pipeline-parallel-size {len(split.tiers)}"
            f" --distributed-executor-backend ray --max-num-seqs {_sequences(found)}"
            f" --max-model-len {_tokens(found)}{_half(found)}",
        ]
    )


def _sglang(split: Split, found: Plan) -> str:
    n = len(split.tiers)
    first = split.nodes[0][0]
    lines = [_of_stages(split)]
    lines.append(f"export SGLANG_PP_LAYER_PARTITION={','.join(map(str, split.layers))}")
    for rank, nodes in enumerate(split.nodes):
        several = ""
        if n > 1:
            address = shlex.quote(f"{first}:50000")
            several = f" --nnodes {n} --node-rank {rank} --dist-init-addr {address}"
        lines.append(
            f"python -m sglang.launch_server --model-path MODEL --pp-size {n}{several}"
            f" --context-length {_tokens(found)} --max-running-requests {_sequences(found)}"
            f"{_half(found)}  # on {nodes[0]}"
        )
    return "\n".join(lines)


def _tokens(found: Plan) -> int:
    return found.prompt_tokens + found.output_tokens


def _sequences(found: Plan) -> int:
    """As many at once as were simulated and have room; those asked for have."""
    room = found.service.most_sequences if found.service is not None else 0
    return max(found.concurrency, min(room, MAX_BATCH))


def _half(found: Plan) -> str:
    """GPUs without bfloat16 take float16."""
    old = any(node.is_used and node.gpu.startswith(NO_BFLOAT16) for node in found.nodes)
    return " --dtype half" if old else ""


def _llama_cpp(split: Split, found: Plan) -> str:
    """The head is one more slot, behind the last layer; the embedding stays with the host."""
    counts = [*split.layers[:-1], split.layers[-1] + 1]
    servers = shlex.quote(",".join(f"{nodes[0]}:50052" for nodes in split.nodes))
    return "\n".join(
        [
            _of_stages(split),
            "# on each node: rpc-server --host 0.0.0.0 --port 50052",
            f"# on {split.nodes[0][0]}, for llama-server keeps the table of the embedding:",
            f"llama-server -m MODEL.gguf -ngl 999 --rpc {servers}"
            f" -ts {','.join(map(str, counts))}"
            f" -np {found.concurrency} -c {found.concurrency * _tokens(found)}",
        ]
    )


def _accelerate(split: Split, found: Plan) -> str:
    return json.dumps(device_map(split), indent=2)


def device_map(split: Split) -> dict[str, int]:
    """Device, that is the number of the stage, by module.

    A head that is the embedding's table stays beside it: accelerate holds one of the two.
    """
    names, last = split.names, len(split.tiers) - 1
    stages = {module: 0 for module in names.embedding}
    for k, (first, end) in enumerate(
        zip(split.first_layers, split.first_layers[1:], strict=False)
    ):
        stages |= {f"{names.layers}.{layer}": k for layer in range(first, end)}
    return stages | {names.norm: last, names.head: 0 if split.tied else last}


def _torch(split: Split, found: Plan) -> str:
    entries = (
        f'    "{split.names.layers}.{first}": SplitPoint.BEGINNING,'
        for first in split.first_layers[1:-1]
    )
    return "\n".join(
        [
            "from torch.distributed.pipelining import SplitPoint",
            "",
            _of_stages(split),
            "split_spec = {",
            *entries,
            "}",
        ]
    )


def _deepspeed(split: Split, found: Plan) -> str:
    return "\n".join(
        [
            "from deepspeed.pipe import PipelineModule",
            "",
            _of_stages(split),
            f"PARTS = {list(split.cuts)}  # embedding, layers, head",
            "",
            "",
            "class Planned(PipelineModule):",
            "    def _partition_layers(self, method=None):",
            "        self.parts = PARTS",
            "        stage = self._topo.get_coord(self.global_rank).pipe",
            "        self._set_bounds(start=PARTS[stage], stop=PARTS[stage + 1])",
        ]
    )


def _megatron(split: Split, found: Plan) -> str:
    stages = split.layers
    layout = f"E{'|'.join(f't*{n}' for n in stages)}L"  # E embedding, t layer, L head
    return "\n".join(
        [
            _of_stages(split),
            f"--pipeline-model-parallel-size {len(stages)}",
            f'--pipeline-model-parallel-layout "{layout}"',
        ]
    )


def _petals(split: Split, found: Plan) -> str:
    lines = [
        _of_stages(split),
        "# the client keeps the embedding and the head; the first server makes a private",
        "# swarm, and prints the address that the others take as PEERS",
    ]
    swarm = "--new_swarm"
    for first, end, nodes in zip(
        split.first_layers, split.first_layers[1:], split.nodes, strict=False
    ):
        for node in nodes:
            lines.append(
                f"python -m petals.cli.run_server MODEL --block_indices {first}:{end} {swarm}"
                f"  # on {node}"
            )
            swarm = "--initial_peers PEERS"
    return "\n".join(lines)


def _json(split: Split, found: Plan) -> str:
    return json.dumps(_plain(split, found), indent=2)


def _yaml(split: Split, found: Plan) -> str:
    return str(optional("yaml").safe_dump(_plain(split, found), sort_keys=False))


def _plain(split: Split, found: Plan) -> dict[str, Any]:
    stages = [
        {"tier": tier, "nodes": list(nodes), "blocks": [first, end]}
        for tier, nodes, first, end in zip(
            split.tiers, split.nodes, split.cuts, split.cuts[1:], strict=False
        )
    ]
    return {"model": found.model.name, "n_blocks": split.cuts[-1], "stages": stages}


def _of_stages(split: Split) -> str:
    stages = (f"{tier} {n}" for tier, n in zip(split.tiers, split.layers, strict=True))
    return f"# layers of each stage: {', '.join(stages)}"


Writer = Callable[[Split, Plan], str]
RUNTIMES: Mapping[str, Writer] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "llama.cpp": _llama_cpp,
    "accelerate": _accelerate,
    "torch": _torch,
    "deepspeed": _deepspeed,
    "megatron": _megatron,
    "petals": _petals,
    "json": _json,
    "yaml": _yaml,
}
PLAIN = ("json", "yaml")
"""Those of no runtime in particular."""
BY_LAYER = tuple(name for name in RUNTIMES if name not in (*PLAIN, "deepspeed"))
"""Those that can have a stage only where it has a layer."""
ONE_PIPELINE = tuple(name for name in RUNTIMES if name not in (*PLAIN, "petals"))
"""Those that run one node of each tier."""
NAMES_MODULES = ("accelerate", "torch")
"""Those that take the names of the model's modules."""
NEEDS_CUDA = ("vllm", "sglang", "deepspeed", "megatron")

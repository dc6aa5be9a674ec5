"""A plan as the flags or the file of a runtime: `export`, to one of `RUNTIMES`."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hypsolve.planning.plan import Plan
from hypsolve.problem import validation as valid
from hypsolve.problem.optional import optional
from hypsolve.simulation.simulate import MAX_BATCH

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


def export(plan: Plan, runtime: str, *, model_type: str = "llama") -> str:
    """Write a plan for a runtime, as text.

    Parameters
    ----------
    plan : Plan
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
        If there is no plan, or the runtime cannot express it; see `hypsolve.nearest_plan`.
    """
    valid.of_type("export", "plan", plan, Plan)
    valid.known("runtime", runtime, RUNTIMES)
    valid.known("model_type", model_type, MODULES)
    partition = plan.result.partition
    if partition is None:
        raise ValueError(f"export: no plan to write, {plan.result.status}")
    why = not_expressible(plan, runtime)
    if why:
        raise ValueError(f"export: {runtime} cannot express this plan: {why}")
    stages = [stage for stage in plan.stages if stage.blocks]  # of others nothing is started
    split = Split(
        cuts=(0, *(stage.blocks.stop for stage in stages)),
        tiers=tuple(stage.tier for stage in stages),
        nodes=tuple(
            tuple(n.node for n in plan.nodes if n.tier == stage.tier and n.is_used)
            for stage in stages
        ),
        names=MODULES[model_type],
        tied=plan.model.tied_bytes > 0,
    )
    return RUNTIMES[runtime](split, plan).rstrip("\n") + "\n"


def not_expressible(plan: Plan, runtime: str) -> str:
    """Why a runtime cannot have a plan; empty if it can."""
    partition = plan.result.partition
    assert partition is not None
    why = []
    if runtime in ONE_PIPELINE:
        counts = {stage.tier: 0 for stage in plan.stages}
        for node in plan.nodes:
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


def cautions(plan: Plan, runtime: str) -> list[str]:
    """What to know of a plan in a runtime that the export does not say.

    Parameters
    ----------
    plan : Plan
    runtime : str
        One of `RUNTIMES`.
    """
    valid.known("runtime", runtime, RUNTIMES)
    n_stages = sum(bool(stage.blocks) for stage in plan.stages)
    lines = []
    if runtime not in PLAIN and plan.model.extrapolated:
        lines.append(f"planned as {plan.model.name}: load weights that are so quantised")
    if runtime == "accelerate" and n_stages > 1:
        lines.append("a device_map is of one machine: device k must be the GPU of stage k")
    if runtime == "accelerate" and n_stages > 1 and plan.model.tied_bytes:
        lines.append(
            "the head is the embedding's table, and stays on device 0, which is not planned for"
        )
    if runtime == "petals":
        lines.append("Petals serves Llama, Mixtral, Falcon and BLOOM models")
    apple = [n.node for n in plan.nodes if n.is_used and n.gpu.startswith("Apple")]
    if runtime in NEEDS_CUDA and apple:
        lines.append(f"{runtime} needs CUDA or ROCm; not so: {', '.join(apple)}")
    return lines


def _vllm(split: Split, plan: Plan) -> str:
    return "\n".join(
        [
            _of_stages(split),
            "# the nodes in a Ray cluster: ray start --head on the first, then on the others",
            "# ray start --address=FIRST:6379; see that rank k runs on the k-th stage's node",
            f"export VLLM_PP_LAYER_PARTITION={','.join(map(str, split.layers))}",
            f"vllm serve MODEL --pipeline-parallel-size {len(split.tiers)}"
            f" --distributed-executor-backend ray --max-num-seqs {_sequences(plan)}"
            f" --max-model-len {_tokens(plan)}{_half(plan)}",
        ]
    )


def _sglang(split: Split, plan: Plan) -> str:
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
            f" --context-length {_tokens(plan)} --max-running-requests {_sequences(plan)}"
            f"{_half(plan)}  # on {nodes[0]}"
        )
    return "\n".join(lines)


def _tokens(plan: Plan) -> int:
    return plan.query.prompt_tokens + plan.query.output_tokens


def _sequences(plan: Plan) -> int:
    """As many at once as were simulated and have room; those asked for have."""
    room = plan.forecast.max_sequences if plan.forecast is not None else 0
    return max(plan.query.concurrency, min(room, MAX_BATCH))


def _half(plan: Plan) -> str:
    """GPUs without bfloat16 take float16."""
    old = any(node.is_used and node.gpu.startswith(NO_BFLOAT16) for node in plan.nodes)
    return " --weights half" if old else ""


def _llama_cpp(split: Split, plan: Plan) -> str:
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
            f" -np {plan.query.concurrency} -c {plan.query.concurrency * _tokens(plan)}",
        ]
    )


def _accelerate(split: Split, plan: Plan) -> str:
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


def _torch(split: Split, plan: Plan) -> str:
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


def _deepspeed(split: Split, plan: Plan) -> str:
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


def _megatron(split: Split, plan: Plan) -> str:
    stages = split.layers
    layout = f"E{'|'.join(f't*{n}' for n in stages)}L"  # E embedding, t layer, L head
    return "\n".join(
        [
            _of_stages(split),
            f"--pipeline-model-parallel-size {len(stages)}",
            f'--pipeline-model-parallel-layout "{layout}"',
        ]
    )


def _petals(split: Split, plan: Plan) -> str:
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


def _json(split: Split, plan: Plan) -> str:
    return json.dumps(_plain(split, plan), indent=2)


def _yaml(split: Split, plan: Plan) -> str:
    return str(optional("yaml").safe_dump(_plain(split, plan), sort_keys=False))


def _plain(split: Split, plan: Plan) -> dict[str, Any]:
    stages = [
        {"tier": tier, "nodes": list(nodes), "blocks": [first, end]}
        for tier, nodes, first, end in zip(
            split.tiers, split.nodes, split.cuts, split.cuts[1:], strict=False
        )
    ]
    return {"model": plan.model.name, "n_blocks": split.cuts[-1], "stages": stages}


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

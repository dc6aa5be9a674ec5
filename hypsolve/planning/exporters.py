"""`export`: write a plan as flags or as a file of one of the `RUNTIMES`."""

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
from hypsolve.simulation.simulate import MAX_NUM_SEQS

NO_BFLOAT16 = ("T4", "V100")  # of the catalogue's GPUs


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """Names of the modules in a Hugging Face implementation."""

    embedding: tuple[str, ...]
    layers: str
    norm: str
    head: str


_USUAL = ModuleNames(
    ("model.embed_tokens", "model.rotary_emb"), "model.layers", "model.norm", "lm_head"
)
MODULES: dict[str, ModuleNames] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "mixtral"), _USUAL
    ),
    "gpt2": ModuleNames(
        ("transformer.wte", "transformer.wpe"), "transformer.h", "transformer.ln_f", "lm_head"
    ),
    "gpt_neox": ModuleNames(
        ("gpt_neox.embed_in", "gpt_neox.emb_dropout", "gpt_neox.rotary_emb"),
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "lm_head",
    ),
    "opt": ModuleNames(
        ("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        "model.decoder.layers", "model.decoder.final_layer_norm", "lm_head",
    ),
}  # fmt: skip
"""By ``model_type``, as in transformers 5.14 (earlier, the head of gpt_neox was embed_out)."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The stages of a plan that have blocks, in order: all that a runtime needs."""

    cuts: tuple[int, ...]
    tiers: tuple[str, ...]
    nodes: tuple[tuple[str, ...], ...]  # of each stage, all that hold it
    names: ModuleNames
    tied: bool  # the head uses the table of the embedding

    @property
    def n_layers(self) -> int:
        """Number of layers, without embedding and head."""
        return self.cuts[-1] - 2

    @property
    def first_layers(self) -> tuple[int, ...]:
        """First layer of each stage, then the number of all layers."""
        inner = (min(max(cut - 1, 0), self.n_layers) for cut in self.cuts[1:-1])
        return (0, *inner, self.n_layers)

    @property
    def layers(self) -> tuple[int, ...]:
        """Number of layers of each stage."""
        first = self.first_layers
        return tuple(b - a for a, b in itertools.pairwise(first))


@valid.suggest_keywords("export")
def export(plan: Plan, runtime: str, *, model_type: str = "llama") -> str:
    """Return a plan as text for a runtime.

    Parameters
    ----------
    plan : Plan
    runtime : str
        A name in `RUNTIMES`.
    model_type : str
        A name in `hypsolve.planning.exporters.MODULES`; only ``accelerate`` and ``torch`` need
        it. For ``accelerate``, a device is the number of a stage, so all stages must be in one
        machine. If head and embedding share one table, the head stays on the first device,
        which the plan does not account for.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If there is no plan, or the runtime cannot express it; see `hypsolve.nearest_plan`.

    Examples
    --------
    >>> import hypsolve as hs
    >>> link = hs.Link(bytes_per_s=1.25e9, latency_s=1e-3)
    >>> desk, rack = (hs.Node(name=gpu, gpu=hs.gpu(gpu)) for gpu in ("rtx-4090", "a10"))
    >>> tiers = (
    ...     hs.Tier(name="desk", nodes=(desk,), link=link),
    ...     hs.Tier(name="rack", nodes=(rack,)),
    ... )
    >>> network = hs.Network(name="home", tiers=tiers)
    >>> plan = hs.plan("llama-3-8b", network, with_upgrades=False)
    >>> print(hs.export(plan, "megatron"), end="")
    # layers of each stage: desk 23, rack 9
    --pipeline-model-parallel-size 2
    --pipeline-model-parallel-layout "Et*23|t*9L"
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
    stages = [stage for stage in plan.stages if stage.blocks]  # empty stages start nothing
    pipeline = Pipeline(
        cuts=(0, *(stage.blocks.stop for stage in stages)),
        tiers=tuple(stage.tier for stage in stages),
        nodes=tuple(
            tuple(n.node for n in plan.nodes if n.tier == stage.tier and n.is_used)
            for stage in stages
        ),
        names=MODULES[model_type],
        tied=plan.model.tied_bytes > 0,
    )
    return RUNTIMES[runtime](pipeline, plan).rstrip("\n") + "\n"


def not_expressible(plan: Plan, runtime: str) -> str:
    """Return why a runtime cannot express a plan; empty if it can."""
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
    """Return what a user must know that the exported text does not say.

    Parameters
    ----------
    plan : Plan
    runtime : str
        A name in `RUNTIMES`.
    """
    valid.known("runtime", runtime, RUNTIMES)
    n_stages = sum(bool(stage.blocks) for stage in plan.stages)
    lines = []
    if runtime not in PLAIN and plan.model.extrapolated:
        lines.append(f"planned as {plan.model.name}: load weights of this format")
    if runtime == "accelerate" and n_stages > 1:
        lines.append("a device_map is for one machine: device k must be the GPU of stage k")
    if runtime == "accelerate" and n_stages > 1 and plan.model.tied_bytes:
        lines.append(
            "the head shares the embedding's table and stays on device 0: not in the plan"
        )
    if runtime == "petals":
        lines.append("Petals serves Llama, Mixtral, Falcon and BLOOM models")
    apple = [n.node for n in plan.nodes if n.is_used and n.gpu.startswith("Apple")]
    if runtime in NEEDS_CUDA and apple:
        lines.append(f"{runtime} needs CUDA or ROCm, but has Apple GPUs on {', '.join(apple)}")
    return lines


def _vllm(pipeline: Pipeline, plan: Plan) -> str:
    return "\n".join(
        [
            _of_stages(pipeline),
            "# start a Ray cluster: ray start --head on the first node, then on the others",
            "# ray start --address=FIRST:6379; make sure that rank k is on the node of stage k",
            f"export VLLM_PP_LAYER_PARTITION={','.join(map(str, pipeline.layers))}",
            f"vllm serve MODEL --pipeline-parallel-size {len(pipeline.tiers)}"
            f" --distributed-executor-backend ray --max-num-seqs {_sequences(plan)}"
            f" --max-model-len {_tokens(plan)}{_half(plan)}",
        ]
    )


def _sglang(pipeline: Pipeline, plan: Plan) -> str:
    n = len(pipeline.tiers)
    first = pipeline.nodes[0][0]
    lines = [_of_stages(pipeline)]
    lines.append(f"export SGLANG_PP_LAYER_PARTITION={','.join(map(str, pipeline.layers))}")
    for rank, nodes in enumerate(pipeline.nodes):
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
    """Return the maximum number of concurrent sequences.

    It is limited by KV-cache memory and by the simulated batch size, and is at least
    `concurrency`.
    """
    room = plan.forecast.max_sequences if plan.forecast is not None else 0
    return max(plan.query.concurrency, min(room, MAX_NUM_SEQS))


def _half(plan: Plan) -> str:
    """Return the flag for float16 if a GPU lacks bfloat16."""
    old = any(node.is_used and node.gpu.startswith(NO_BFLOAT16) for node in plan.nodes)
    return " --dtype half" if old else ""


def _llama_cpp(pipeline: Pipeline, plan: Plan) -> str:
    """Write flags in which the head counts as one more layer; the host keeps the embedding."""
    counts = [*pipeline.layers[:-1], pipeline.layers[-1] + 1]
    servers = shlex.quote(",".join(f"{nodes[0]}:50052" for nodes in pipeline.nodes))
    return "\n".join(
        [
            _of_stages(pipeline),
            "# on each node: rpc-server --host 0.0.0.0 --port 50052",
            f"# on {pipeline.nodes[0][0]}, since llama-server keeps the embedding table:",
            f"llama-server -m MODEL.gguf -ngl 999 --rpc {servers}"
            f" -ts {','.join(map(str, counts))}"
            f" -np {plan.query.concurrency} -c {plan.query.concurrency * _tokens(plan)}",
        ]
    )


def _accelerate(pipeline: Pipeline, plan: Plan) -> str:
    return json.dumps(device_map(pipeline), indent=2)


def device_map(pipeline: Pipeline) -> dict[str, int]:
    """Return the device of each module, which is the number of its stage.

    If head and embedding share one table, both are on device 0: accelerate holds it once.
    """
    names, last = pipeline.names, len(pipeline.tiers) - 1
    stages = {module: 0 for module in names.embedding}
    for k, (first, end) in enumerate(
        zip(pipeline.first_layers, pipeline.first_layers[1:], strict=False)
    ):
        stages |= {f"{names.layers}.{layer}": k for layer in range(first, end)}
    return stages | {names.norm: last, names.head: 0 if pipeline.tied else last}


def _torch(pipeline: Pipeline, plan: Plan) -> str:
    entries = (
        f'    "{pipeline.names.layers}.{first}": SplitPoint.BEGINNING,'
        for first in pipeline.first_layers[1:-1]
    )
    return "\n".join(
        [
            "from torch.distributed.pipelining import SplitPoint",
            "",
            _of_stages(pipeline),
            "split_spec = {",
            *entries,
            "}",
        ]
    )


def _deepspeed(pipeline: Pipeline, plan: Plan) -> str:
    return "\n".join(
        [
            "from deepspeed.pipe import PipelineModule",
            "",
            _of_stages(pipeline),
            f"PARTS = {list(pipeline.cuts)}  # embedding, layers, head",
            "",
            "",
            "class Planned(PipelineModule):",
            "    def _partition_layers(self, method=None):",
            "        self.parts = PARTS",
            "        stage = self._topo.get_coord(self.global_rank).pipe",
            "        self._set_bounds(start=PARTS[stage], stop=PARTS[stage + 1])",
        ]
    )


def _megatron(pipeline: Pipeline, plan: Plan) -> str:
    stages = pipeline.layers
    layout = f"E{'|'.join(f't*{n}' for n in stages)}L"  # E embedding, t layer, L head
    return "\n".join(
        [
            _of_stages(pipeline),
            f"--pipeline-model-parallel-size {len(stages)}",
            f'--pipeline-model-parallel-layout "{layout}"',
        ]
    )


def _petals(pipeline: Pipeline, plan: Plan) -> str:
    lines = [
        _of_stages(pipeline),
        "# the client keeps embedding and head; the first server starts a private",
        "# swarm and prints the address that the others take as PEERS",
    ]
    swarm = "--new_swarm"
    for first, end, nodes in zip(
        pipeline.first_layers, pipeline.first_layers[1:], pipeline.nodes, strict=False
    ):
        for node in nodes:
            lines.append(
                f"python -m petals.cli.run_server MODEL --block_indices {first}:{end} {swarm}"
                f"  # on {node}"
            )
            swarm = "--initial_peers PEERS"
    return "\n".join(lines)


def _json(pipeline: Pipeline, plan: Plan) -> str:
    return json.dumps(_plain(pipeline, plan), indent=2)


def _yaml(pipeline: Pipeline, plan: Plan) -> str:
    return str(optional("yaml").safe_dump(_plain(pipeline, plan), sort_keys=False))


def _plain(pipeline: Pipeline, plan: Plan) -> dict[str, Any]:
    stages = [
        {"tier": tier, "nodes": list(nodes), "blocks": [first, end]}
        for tier, nodes, first, end in zip(
            pipeline.tiers, pipeline.nodes, pipeline.cuts, pipeline.cuts[1:], strict=False
        )
    ]
    return {"model": plan.model.name, "n_blocks": pipeline.cuts[-1], "stages": stages}


def _of_stages(pipeline: Pipeline) -> str:
    stages = (f"{tier} {n}" for tier, n in zip(pipeline.tiers, pipeline.layers, strict=True))
    return f"# layers of each stage: {', '.join(stages)}"


Writer = Callable[[Pipeline, Plan], str]
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
"""Formats for no particular runtime."""
BY_LAYER = tuple(name for name in RUNTIMES if name not in (*PLAIN, "deepspeed"))
"""Runtimes in which every stage needs a layer."""
ONE_PIPELINE = tuple(name for name in RUNTIMES if name not in (*PLAIN, "petals"))
"""Runtimes that use one node of each tier."""
NAMES_MODULES = ("accelerate", "torch")
"""Runtimes that take the names of the modules of the model."""
NEEDS_CUDA = ("vllm", "sglang", "deepspeed", "megatron")

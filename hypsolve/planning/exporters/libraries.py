"""Libraries and plain files: what a program of the user's own reads."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypsolve.planning.exporters import benchmark
from hypsolve.planning.exporters.layout import Export
from hypsolve.planning.exporters.shell import of_replicas, of_stages
from hypsolve.problem.optional import optional


def accelerate(export: Export) -> str:
    """Write the map of `device_map` as JSON, which holds no comments."""
    return json.dumps(device_map(export), indent=2)


def device_map(export: Export) -> dict[str, int]:
    """Return the device of each module, which is the number of its stage.

    If head and embedding share one table, both are on device 0: accelerate holds it once.
    """
    names, firsts = export.modules, export.layout.first_layers
    last = export.layout.n_stages - 1
    stages = {module: 0 for module in names.embedding}
    for k, (first, end) in enumerate(itertools.pairwise(firsts)):
        stages |= {f"{names.layers}.{layer}": k for layer in range(first, end)}
    return stages | {names.norm: last, names.head: 0 if export.tied else last}


def torch(export: Export) -> str:
    """Write the split points of ``torch.distributed.pipelining``."""
    entries = (
        f'    "{export.modules.layers}.{first}": SplitPoint.BEGINNING,'
        for first in export.layout.first_layers[1:-1]
    )
    return "\n".join(
        [
            "from torch.distributed.pipelining import SplitPoint",
            "",
            *_comments(export),
            "split_spec = {",
            *entries,
            "}",
        ]
    )


def deepspeed(export: Export) -> str:
    """Write a `PipelineModule` with the parts of the plan."""
    return "\n".join(
        [
            "from deepspeed.pipe import PipelineModule",
            "",
            *_comments(export),
            f"PARTS = {list(export.layout.cuts)}  # embedding, layers, head",
            "",
            "",
            "class Planned(PipelineModule):",
            "    def _partition_layers(self, method=None):",
            "        self.parts = PARTS",
            "        stage = self._topo.get_coord(self.global_rank).pipe",
            "        self._set_bounds(start=PARTS[stage], stop=PARTS[stage + 1])",
        ]
    )


def megatron(export: Export) -> str:
    """Write the flags of a pipeline layout: E is the embedding, t a layer, L the head."""
    stages = export.layout.layers
    layout = f"E{'|'.join(f't*{n}' for n in stages)}L"
    return "\n".join(
        [
            *_comments(export),
            f"--pipeline-model-parallel-size {len(stages)}",
            *[f"--tensor-model-parallel-size {n}" for n in (export.layout.degree,) if n > 1],
            f'--pipeline-model-parallel-layout "{layout}"',
        ]
    )


def petals(export: Export) -> str:
    """Write a server for every node: a stage may have any number."""
    layout = export.layout
    lines = [
        of_stages(layout),
        "# the client keeps embedding and head; the first server starts a private",
        "# swarm and prints the address that the others take as PEERS",
    ]
    swarm, firsts = "--new_swarm", layout.first_layers
    for first, end, nodes in zip(firsts, firsts[1:], layout.nodes, strict=False):
        for node in nodes:
            lines.append(
                f"python -m petals.cli.run_server MODEL --block_indices {first}:{end} {swarm}"
                f"  # on {node}"
            )
            swarm = "--initial_peers PEERS"
    return "\n".join([*lines, *benchmark.commented(export.load)])


def plain_json(export: Export) -> str:
    """Write the plan as JSON."""
    return json.dumps(_plain(export), indent=2)


def plain_yaml(export: Export) -> str:
    """Write the plan as YAML."""
    return str(optional("yaml").safe_dump(_plain(export), sort_keys=False))


def _plain(export: Export) -> dict[str, Any]:
    layout = export.layout
    stages = [
        {"tier": tier, "nodes": list(nodes), "blocks": [first, end]}
        for tier, nodes, first, end in zip(
            layout.tiers, layout.nodes, layout.cuts, layout.cuts[1:], strict=False
        )
    ]
    if layout.degree > 1 or layout.mixed_degrees:
        for stage, degrees in zip(stages, layout.degrees, strict=True):
            stage["tensor_parallel"] = list(degrees)
    return {
        "model": export.model,
        "n_blocks": layout.cuts[-1],
        "stages": stages,
        "runtime": layout.runtime.to_dict(),
        "benchmark": benchmark.genai_perf(export.load),
    }


def _comments(export: Export) -> list[str]:
    layout = export.layout
    return [of_stages(layout), *of_replicas(layout), *benchmark.commented(export.load)]

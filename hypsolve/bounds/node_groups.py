"""`NodeGroups`: the nodes of a tier by GPU and memory, and the stages that they can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hypsolve.bounds.request_work import bounded
from hypsolve.problem.arrays import Array
from hypsolve.problem.deployment import CostModel, Deployment
from hypsolve.problem.model import Block
from hypsolve.problem.network import GpuProfile, Tier
from hypsolve.problem.runtime import Batching, KvAdmission

SLACK = 1e-9


class NodeGroups:
    """The nodes of one tier, in groups of equal nodes, and the stages that each can hold.

    Parameters
    ----------
    deployment : Deployment
    tier : Tier
    kinds : sequence of Block
        The kinds of block of the model.
    gpus : sequence of GpuProfile
        The GPUs of the network.
    counts : ndarray, shape (n_contents, n_kinds)
        Blocks of each kind in a stage.
    whole : int
        The content of a stage with all blocks.
    """

    def __init__(
        self,
        deployment: Deployment,
        tier: Tier,
        kinds: Sequence[Block],
        gpus: Sequence[GpuProfile],
        counts: Array,
        whole: int,
    ) -> None:
        self.runtime, self.kinds, self.counts = deployment.runtime, kinds, counts
        self.is_reserved = self.runtime.kv_admission is KvAdmission.RESERVE
        self.is_stage = self.runtime.batching is Batching.STAGE
        self.roofline = deployment.cost_model is CostModel.ROOFLINE
        self.n_nodes = len(tier.nodes)
        pairs = [
            (gpus.index(deployment.profile(n)), deployment.usable_bytes(n)) for n in tier.nodes
        ]
        groups = sorted(set(pairs))
        self.size = np.array([pairs.count(group) for group in groups], dtype=np.float64)
        self.classes = np.array([c for c, _ in groups])
        self.gpus = [bounded(gpus[c]) for c in self.classes]
        self._set_rooms(deployment, np.array([memory for _, memory in groups]), whole)

    def _set_rooms(self, deployment: Deployment, memory: Array, whole: int) -> None:
        """Set the tokens of KV cache that fit beside each stage, (n_groups, n_contents)."""
        weights = self.counts @ np.array([float(block.weight_bytes) for block in self.kinds])
        weights[whole] -= deployment.model.tied_bytes
        kv = self.counts @ np.array([float(block.kv_bytes_per_token) for block in self.kinds])
        kv = np.array([kv * gpu.kv_copies for gpu in self.gpus])
        free = memory[:, None] - weights[None, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            tokens = np.where(kv > 0, np.floor(free / kv * (1 + SLACK)), math.inf)
        needed = deployment.max_resident_tokens
        self.holds = (free >= -SLACK * memory[:, None]) & (tokens >= needed)
        self.tokens = np.where(self.holds, tokens, 0.0)
        self.n_holders = self.size @ self.holds

"""Inputs of a deployment: a model, a network of GPUs, and the requests to serve."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem import validation as valid
from hypsolve.problem.gpu_group import check_group, group_profile, kv_copies
from hypsolve.problem.model import Block, Model
from hypsolve.problem.network import GpuProfile, Link, Network, Node, Tier
from hypsolve.problem.runtime import IDEAL, Runtime
from hypsolve.problem.units import count

__all__ = [
    "MAX_TOKENS",
    "Block",
    "CostModel",
    "Deployment",
    "GpuProfile",
    "Link",
    "Model",
    "Network",
    "Node",
    "Request",
    "Requests",
    "Tier",
]

MAX_TOKENS = 2**40  # in one prompt or output


class CostModel(StrEnum):
    """Formula for the time of a block: the measured roofline, or the paper's f / C.

    See `hypsolve.problem.costs.step_s`.
    """

    ROOFLINE = "roofline"
    FLOPS = "flops"


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes
    ----------
    arrival_s : float
        Seconds from time 0.
    prompt_tokens, output_tokens : int
        Tokens of the prompt, and tokens to generate.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Requests as arrays.

    Attributes
    ----------
    arrival_s : ndarray, shape (n_requests,)
        Seconds from time 0, in any order.
    prompt_tokens, output_tokens : ndarray of int, shape (n_requests,)
        Tokens of each prompt, and tokens to generate; from 1 to 2**40.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names it, the rule and the value.

    Examples
    --------
    >>> requests = Requests.of([Request(0.0, 120, 40), Request(0.5, 900, 10)])
    >>> len(requests), requests.prompt_tokens
    (2, array([120, 900]))
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    def __post_init__(self) -> None:
        arrival_s = valid.reals("requests", "arrival_s", self.arrival_s, (None,))
        object.__setattr__(self, "arrival_s", arrival_s)
        if not arrival_s.size:
            raise ValueError("requests: arrival_s must hold at least one request, got none")
        for field in ("prompt_tokens", "output_tokens"):
            tokens = valid.reals("requests", field, getattr(self, field), arrival_s.shape)
            if (tokens % 1).any() or tokens.min() < 1 or tokens.max() > MAX_TOKENS:
                wrong = tokens[(tokens % 1 != 0) | (tokens < 1) | (tokens > MAX_TOKENS)][0]
                raise ValueError(
                    f"requests: {field} must be whole numbers from 1 to 2**40,"
                    f" got {float(wrong)!r}"
                )
            whole = tokens.astype(np.int64)
            whole.setflags(write=False)
            object.__setattr__(self, field, whole)

    @classmethod
    def of(cls, requests: Iterable[Request]) -> "Requests":
        """Return the arrays of single requests."""
        rows = list(requests)
        for r, row in enumerate(rows):
            valid.of_type("requests", f"request {r}", row, Request)
        return cls(
            np.array([r.arrival_s for r in rows]),
            np.array([r.prompt_tokens for r in rows]),
            np.array([r.output_tokens for r in rows]),
        )

    def __len__(self) -> int:
        return len(self.arrival_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Deployment:
    """A model on a network under requests; `hypsolve.to_instance` compiles it.

    Attributes
    ----------
    model : Model
    network : Network
    requests : Requests
    cost_model : CostModel
        ``roofline`` or ``flops``.
    max_resident_tokens : int
        Tokens for which a node reserves KV cache in every block that it holds. Default: the
        largest sum of prompt and output.
    runtime : Runtime
        The serving runtime: its own use of memory is not free for weights and KV cache, and its
        limits are the defaults of `hypsolve.simulate`. Default: ``ideal``.

    Raises
    ------
    ValueError, TypeError
        If a field is invalid; the message names it, the rule and the value.
    """

    model: Model
    network: Network
    requests: Requests
    cost_model: CostModel = CostModel.ROOFLINE
    max_resident_tokens: int | None = None
    runtime: Runtime = IDEAL

    def __post_init__(self) -> None:
        by_name = " (hypsolve.model(name) gives one)"
        valid.of_type("deployment", "model", self.model, Model, by_name)
        valid.of_type("deployment", "network", self.network, Network)
        valid.of_type("deployment", "requests", self.requests, Requests)
        by_name = " (hypsolve.runtime(name) gives one)"
        valid.of_type("deployment", "runtime", self.runtime, Runtime, by_name)
        cost_model = valid.one_of("deployment", "cost_model", self.cost_model, CostModel)
        object.__setattr__(self, "cost_model", cost_model)
        longest = self.runtime.held_tokens(
            int((self.requests.prompt_tokens + self.requests.output_tokens).max())
        )
        if self.max_resident_tokens is None:
            object.__setattr__(self, "max_resident_tokens", longest)
        elif (
            valid.whole("deployment", "max_resident_tokens", self.max_resident_tokens) < longest
        ):
            raise ValueError(
                f"deployment: max_resident_tokens must be at least {longest}, the longest"
                f" request's prompt + output{self._rounded()}, got {self.max_resident_tokens}"
            )
        for tier in self.network.tiers:
            for node in tier.nodes:
                check_group(node, self.model)

    def _rounded(self) -> str:
        slot = self.runtime.held_tokens(1)
        return f" (in multiples of {slot})" if slot > 1 else ""

    def usable_bytes(self, node: Node) -> float:
        """Return a node's memory for weights and KV cache under the runtime, over its GPUs."""
        return node.gpus * self.runtime.usable_bytes(node, self.model)

    def profile(self, node: Node) -> GpuProfile:
        """Return the profile of a node: of its GPU, or of its GPUs that compute as one.

        Examples
        --------
        >>> import hypsolve as hs
        >>> nvlink = hs.interconnect("nvlink4", "h100")
        >>> box = hs.Node(name="box", gpu=hs.gpu("h100"), gpus=8, interconnect=nvlink,
        ...     tensor_parallel=8)
        >>> deployment = hs.Deployment(
        ...     model=hs.model("llama-3-70b"),
        ...     network=hs.Network(name="lab", tiers=(hs.Tier(name="rack", nodes=(box,)),)),
        ...     requests=hs.Requests([0.0], [512], [256]),
        ... )
        >>> deployment.profile(box).flops_per_s / box.gpu.flops_per_s
        8.0
        """
        return group_profile(node, self.model, self.runtime.name)

    @property
    def request_s(self) -> float:
        """Seconds per request outside of iterations: the largest of the nodes' `OperatorRates`.

        They delay the first token. 0 under the cost model ``flops``, and without such rates.
        """
        rates = [node.gpu.operators for tier in self.network.tiers for node in tier.nodes]
        if self.cost_model is CostModel.FLOPS:
            return 0.0
        return max((each.request_s for each in rates if each is not None), default=0.0)

    def kv_bytes_per_token(self, blocks: Iterable[Block], node: Node) -> int:
        """Return the KV cache of a token in some blocks, over all GPUs of a node."""
        kv_bytes = sum(block.kv_bytes_per_token for block in blocks)
        return kv_bytes * kv_copies(self.model, node.gpus)

    def __repr__(self) -> str:
        return (
            f"<Deployment of {self.model.name} on {self.network.name},"
            f" {count(len(self.requests), 'request')}, cost model {self.cost_model}>"
        )

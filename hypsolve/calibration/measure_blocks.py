"""Transformer blocks in torch with random weights, and the seconds of their steps.

A stack of equal layers runs in place of a single one: its weights exceed the caches of the
device, as those of a whole model do. Each layer is that of Llama: RMSNorm, one matrix for
queries, keys and values, rotary embeddings, grouped-query attention over a KV cache, RMSNorm,
a gated MLP whose two halves are one matrix. Nothing here imports torch before it is used.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypsolve.calibration.measure_grid import BlockShape, Step
from hypsolve.problem.optional import install

MIN_STACK_BYTES = 200_000_000  # more than most caches hold
MAX_LAYERS = 32  # of a stack
EPSILON = 1e-5


def load_torch() -> Any:
    """Import and return torch.

    Raises
    ------
    ValueError
        If the import fails; the message names the extra that brings it.
    """
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ValueError(
            f"measure: needs torch, which cannot be imported ({error}); {install('measure')}"
        ) from error


def n_layers_of(shape: BlockShape, element_bytes: int) -> int:
    """Return the layers of a stack whose weights take `MIN_STACK_BYTES`, if few layers do."""
    of_layer = shape.n_weights * element_bytes
    return min(MAX_LAYERS, -(-MIN_STACK_BYTES // of_layer))


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one block in a step, over the repeats after the warm-up.

    Attributes
    ----------
    median_s, min_s, max_s : float
        On a CPU, the time that the calling thread was on a core. It does not count how long
        other programs held the core. On a GPU, the time between two events.
    wall_s : float
        Median by the clock on the wall.
    repeats : int
    """

    median_s: float
    min_s: float
    max_s: float
    wall_s: float
    repeats: int


class Stack:
    """Layers of a shape on a device, in which steps are timed.

    Parameters
    ----------
    shape : BlockShape
    n_layers : int
    device : str
        ``cpu``, ``cuda`` or ``mps``.
    dtype : str
        Name of a type of torch, such as ``float32``.
    """

    def __init__(self, shape: BlockShape, n_layers: int, device: str, dtype: str) -> None:
        self.torch = torch = load_torch()
        self.shape, self.n_layers, self.device = shape, n_layers, device
        self.dtype = getattr(torch, dtype)
        draw = torch.Generator().manual_seed(0)
        heads, kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        sizes = {
            "qkv": (heads + 2 * kv, shape.hidden),
            "out": (shape.hidden, heads),
            "gate_up": (2 * shape.ffn, shape.hidden),
            "down": (shape.hidden, shape.ffn),
        }

        def drawn(size: tuple[int, int]) -> Any:
            bound = size[1] ** -0.5  # keeps activations of order 1
            values = torch.empty(size).uniform_(-bound, bound, generator=draw)
            return values.to(device, self.dtype)

        first = {name: drawn(size) for name, size in sizes.items()}
        first["norm_1"] = first["norm_2"] = torch.ones(
            shape.hidden, device=device, dtype=self.dtype
        )
        copies = ({k: v.clone() for k, v in first.items()} for _ in range(n_layers - 1))
        self.layers = [first, *copies]

    def time(self, step: Step, *, repeats: int, min_s: float, max_s: float) -> Timing:
        """Time a step: a warm-up, then repeats.

        Parameters
        ----------
        step : Step
        repeats : int
            Repeats at least, unless `max_s` have passed before.
        min_s : float
            Seconds that all repeats take at least; more repeats follow until then.
        max_s : float
            Seconds after which no further repeat starts.
        """
        with self.torch.inference_mode():
            run = self._prepared(step)
            run()  # warm-up: kernels are chosen, memory is allocated
            self._wait()
            if self.device == "cuda":
                run = self._graph(run)
            clock = {"cuda": self._cuda_s, "cpu": self._core_s}.get(self.device, self._wall_s)
            seconds: list[float] = []
            walls: list[float] = []
            start_s = time.perf_counter()
            while True:
                before_s = time.perf_counter()
                seconds.append(clock(run) / self.n_layers)
                walls.append((time.perf_counter() - before_s) / self.n_layers)
                spent_s = time.perf_counter() - start_s
                enough = len(seconds) >= repeats and spent_s >= min_s
                if enough or spent_s >= max_s:
                    break
        median_s, wall_s = statistics.median(seconds), statistics.median(walls)
        return Timing(median_s, min(seconds), max(seconds), wall_s, len(seconds))

    def _graph(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Return a replay of a CUDA graph, as servers use: kernels need no launch each."""
        torch = self.torch
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        graph.replay()
        self._wait()
        return graph.replay

    def _core_s(self, run: Callable[[], Any]) -> float:
        # the calling thread takes part in all of the work
        start_s = time.thread_time()
        run()
        return time.thread_time() - start_s

    def _wall_s(self, run: Callable[[], Any]) -> float:
        start_s = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - start_s

    def _cuda_s(self, run: Callable[[], Any]) -> float:
        events = self.torch.cuda.Event
        start, end = events(enable_timing=True), events(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def _wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        elif self.device == "mps":
            self.torch.mps.synchronize()

    def _prepared(self, step: Step) -> Callable[[], Any]:
        """Return a function that runs a step, with its input, KV caches and mask in place."""
        torch, shape = self.torch, self.shape
        place = {"device": self.device, "dtype": self.dtype}
        hidden = torch.randn(step.batch, step.tokens, shape.hidden, **place)
        held = (step.batch, shape.n_kv_heads, step.cached + step.tokens, shape.head_dim)
        caches = [(torch.zeros(held, **place), torch.zeros(held, **place)) for _ in self.layers]
        angles = self._angles(step)
        mask = self._mask(step)

        def run() -> Any:
            x = hidden
            for layer, cache in zip(self.layers, caches, strict=True):
                x = self._layer(x, layer, cache, angles, mask, step)
            return x

        return run

    def _angles(self, step: Step) -> tuple[Any, Any]:
        """Return cosines and sines of the rotary embedding, shape (tokens, head_dim / 2)."""
        torch = self.torch
        half = self.shape.head_dim // 2
        rates = 10000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
        positions = torch.arange(step.cached, step.cached + step.tokens, dtype=torch.float32)
        angles = torch.outer(positions, rates)
        return (
            angles.cos().to(self.device, self.dtype),
            angles.sin().to(self.device, self.dtype),
        )

    def _mask(self, step: Step) -> Any:
        """Return the causal mask of a chunk on cached tokens; None where none is needed."""
        if step.tokens == 1 or step.cached == 0:
            return None
        if self.device == "cuda":
            bias = importlib.import_module("torch.nn.attention.bias")
            return bias.causal_lower_right(step.tokens, step.cached + step.tokens)
        ones = self.torch.ones(
            step.tokens, step.cached + step.tokens, dtype=self.torch.bool, device=self.device
        )
        return ones.tril(step.cached)

    def _layer(
        self, x: Any, layer: dict[str, Any], cache: Any, angles: Any, mask: Any, step: Step
    ) -> Any:
        functional, shape = self.torch.nn.functional, self.shape
        n, t = x.shape[:2]
        normed = functional.rms_norm(x, (shape.hidden,), layer["norm_1"], EPSILON)
        qkv = functional.linear(normed, layer["qkv"])
        qkv = qkv.view(n, t, shape.n_heads + 2 * shape.n_kv_heads, shape.head_dim)
        q, k, v = qkv.transpose(1, 2).split(
            (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads), dim=1
        )
        keys, values = cache
        keys[:, :, step.cached :] = self._rotated(k, angles)
        values[:, :, step.cached :] = v
        attended = self._attention(self._rotated(q, angles), keys, values, mask, t)
        attended = attended.transpose(1, 2).reshape(n, t, shape.n_heads * shape.head_dim)
        x = x + functional.linear(attended, layer["out"])
        normed = functional.rms_norm(x, (shape.hidden,), layer["norm_2"], EPSILON)
        gate, up = functional.linear(normed, layer["gate_up"]).chunk(2, dim=-1)
        return x + functional.linear(functional.silu(gate) * up, layer["down"])

    def _rotated(self, heads: Any, angles: tuple[Any, Any]) -> Any:
        cos, sin = angles
        low, high = heads.chunk(2, dim=-1)
        return self.torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)

    def _attention(self, q: Any, keys: Any, values: Any, mask: Any, tokens: int) -> Any:
        """Return grouped-query attention of queries (batch, heads, tokens, head_dim)."""
        attend = self.torch.nn.functional.scaled_dot_product_attention
        if tokens == 1:
            # the queries of a group read their keys together: these are never copied
            n = q.shape[0]
            groups = q.reshape(n, self.shape.n_kv_heads, -1, self.shape.head_dim)
            return attend(groups, keys, values).reshape(q.shape)
        return attend(q, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


def element_bytes_of(dtype: str) -> int:
    """Return the bytes of a number of a type such as ``float32``."""
    return int(getattr(load_torch(), dtype).itemsize)

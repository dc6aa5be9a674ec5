"""`LayoutTrace`: the record of a simulation of a layout."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from hypsolve.problem.arrays import Array, IntArray
from hypsolve.problem.units import show_seconds
from hypsolve.simulation.trace import Visits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class LayoutTrace:
    """Record of a simulation, as `hypsolve.simulate_layout` returns it.

    An array with a value per request has shape (n_requests,), and one with a value per node
    has shape (n_nodes,). Times count from the first arrival.

    Attributes
    ----------
    name : str
        Model and fleet.
    node_names : tuple of str
        Machines that hold a range of blocks, in the order of the layout.
    paths : tuple of tuple of int
        Distinct paths of requests, as nodes; those of the first request come first.
    path : ndarray of int
        Path of each request.
    arrival_s, admitted_s, first_token_s, end_s : ndarray
        Times at which a request arrived, got its KV cache on all nodes of its path, and had its
        first and its last token delivered.
    freed_s : ndarray
        Times at which requests freed their KV cache: when the last token came back to the first
        node of the path.
    prompt_tokens, output_tokens : ndarray of int
    busy_s : ndarray
        Seconds in which a node computed.
    n_iterations, n_tokens : ndarray of int
        Iterations that a node ran, and tokens that it computed, each counted once however many
        blocks it passed.
    kv_capacity_bytes, kv_peak_bytes : ndarray
        KV cache that a node has room for, and the most that was reserved at once.
    n_visits : int
        Number of visits: a decode token, or a chunk of a prompt, at a node.
    users : int or None
        Users of a closed loop; None: requests arrived as given.
    visits : Visits or None
        None unless recorded.
    """

    name: str
    node_names: tuple[str, ...]
    paths: tuple[tuple[int, ...], ...]
    path: IntArray
    arrival_s: Array
    admitted_s: Array
    first_token_s: Array
    end_s: Array
    freed_s: Array
    prompt_tokens: IntArray
    output_tokens: IntArray
    busy_s: Array
    n_iterations: IntArray
    n_tokens: IntArray
    kv_capacity_bytes: Array
    kv_peak_bytes: Array
    n_visits: int
    users: int | None = None
    visits: Visits | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @property
    def ttft_s(self) -> Array:
        """Return the seconds from arrival to first token (TTFT), shape (n_requests,)."""
        return self.first_token_s - self.arrival_s

    @property
    def latency_s(self) -> Array:
        """Return the seconds from arrival to end, shape (n_requests,)."""
        return self.end_s - self.arrival_s

    @property
    def tpot_s(self) -> Array:
        """Return the mean seconds per token after the first (TPOT); nan for one token."""
        later = np.where(self.output_tokens > 1, self.output_tokens - 1.0, np.nan)
        return (self.end_s - self.first_token_s) / later

    @property
    def took_s(self) -> float:
        """Return the seconds from the first arrival to the last end."""
        return float(self.end_s.max() - self.arrival_s.min())

    @property
    def requests_per_s(self) -> float:
        """Return the requests over the seconds from the first arrival to the last end."""
        return len(self.end_s) / self.took_s

    @property
    def output_tokens_per_s(self) -> float:
        """Return the output tokens over the seconds from the first arrival to the last end."""
        return float(self.output_tokens.sum()) / self.took_s

    @property
    def most_under_way(self) -> int:
        """Return the largest number of requests that had KV cache at once."""
        times_s = np.concatenate([self.freed_s, self.admitted_s])  # in an instant: freed first
        n = len(self.end_s)
        steps = np.repeat([-1, 1], n)[np.argsort(times_s, kind="stable")]
        return int(steps.cumsum().max())

    def __repr__(self) -> str:
        n = len(self.end_s)
        return (
            f"<LayoutTrace of {self.name}: {n} requests on {len(self.paths)} paths over"
            f" {len(self.node_names)} machines, {self.n_visits} visits>"
        )

    def __str__(self) -> str:
        lines = [
            repr(self)[1:-1],
            f"  served  {self.requests_per_s:.4g} requests/s,"
            f" {self.output_tokens_per_s:.4g} output tokens/s",
        ]
        for name, seconds in (("latency", self.latency_s), ("TTFT", self.ttft_s)):
            lines.append(f"  {name:<7} mean {show_seconds(float(seconds.mean()))}")
        return "\n".join(lines)

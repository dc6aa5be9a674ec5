"""Simulation of a layout in which any node hosts any range of blocks, token by token.

The rules are those of the batching mode ``stage`` of `hypsolve.simulation.simulate`, but for
the following.

*Layout.* Every machine of the layout is a node, which holds one range of blocks on all of its
GPUs. Ranges may overlap. Flows say which nodes a node sends requests to. A request that leaves
a node which holds blocks up to e goes on at block e, so the next node must hold it. A node
that holds s:e and is entered at block l computes the blocks l:e (partial inference).

*Paths.* The path of a request, from the coordinator through nodes and back, is fixed by the
flows and by the order of arrival, whatever the state: at the coordinator, and then at each
node, the request takes the next way by smooth weighted round robin. After t requests at a
node, a way with the share w of the flow that leaves the node is due w (t + 1) of them. The way
that lags most behind this number is taken, and the first one in the order of the flows among
equals. Paths are drawn one request after the other, in the order of arrival.

*Admission.* A request waits at the coordinator until every node of its path has room for its
KV cache: p + o tokens in the blocks that are computed there, in bytes. It reserves them on all
nodes at once, and the ids of its prompt reach the first node at once. Requests of one path are
admitted in the order of arrival. Among paths, the one that arrived first is admitted among
those requests that are next in their path and have room; this is repeated until there is none.
So a request may be overtaken by those of another path. KV cache is always reserved at
admission, and nodes always form their own batches, whatever the runtime says.

*Time of a batch.* Requests that enter a node at different blocks share its iterations. The
time is that of `simulate`, block by block, each with the tokens that pass it. A block that no
token passes takes no time.

*Passes.* After the last node, the id of a token returns directly to the first node of the
path, over the latency of the link between these machines, and the next pass begins there. The
request frees its KV cache when its last token is back. Each token travels on to where requests
enter: `PlacementProblem.entry_s`, the mean way in and back, delays every delivery.

*Links.* Each ordered pair of nodes with a flow has a link of its own, with the rate and the
latency of `Fleet.link`. With `link_contention` it sends one message at a time; the decode
tokens of one iteration that take the same link are then one message, and go before the chunks.
Pairs that cross the same link between two sites do not delay each other.

*Instants.* Requests are admitted when all other events of an instant are over, and then
iterations start.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import numpy as np

from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Requests
from hypsolve.problem.layer_layout import LayerLayout
from hypsolve.problem.placement import PlacementProblem
from hypsolve.problem.runtime import Batching, KvAdmission
from hypsolve.simulation.events import early
from hypsolve.simulation.layout_paths import OWNER, edges_of
from hypsolve.simulation.layout_setup import LayoutSystem
from hypsolve.simulation.layout_trace import LayoutTrace
from hypsolve.simulation.options import FROM_RUNTIME, Options
from hypsolve.simulation.trace import Visits

_EVENTS_AT_A_TIME = 5_000_000  # after them Ctrl-C is handled
_EVENTS_TO_LIMIT = 200_000  # after them the time limit is looked at


@valid.suggest_keywords(OWNER)
def simulate_layout(
    problem: PlacementProblem,
    layout: LayerLayout,
    requests: Requests | None = None,
    *,
    max_num_seqs: int = FROM_RUNTIME,
    max_num_batched_tokens: int | None = FROM_RUNTIME,
    chunk_tokens: int | None = FROM_RUNTIME,
    iteration_s: float = FROM_RUNTIME,
    users: int | None = None,
    think_time_s: float = 0.0,
    link_contention: bool = False,
    record_visits: bool = False,
    time_limit_s: float | None = None,
) -> LayoutTrace:
    """Simulate how a layout, in which any node hosts any range of blocks, serves requests.

    The docstring of the module `hypsolve.simulation.simulate_layout` states the rules.

    Parameters
    ----------
    problem : PlacementProblem
        Its model, fleet, runtime and cost model count; its objective and targets do not.
    layout : LayerLayout
        Its layers are the blocks of the model, with the embedding and the head. Only the
        shares of its flows count, not their size.
    requests : Requests, optional
        Default: those of the problem.
    max_num_seqs, max_num_batched_tokens, chunk_tokens, iteration_s
        As in `simulate`, for each node. Default: those of the runtime of the problem.
    users, think_time_s, link_contention, record_visits, time_limit_s
        As in `simulate`.

    Returns
    -------
    LayoutTrace

    Raises
    ------
    TimeoutError
        If the time limit passes before the last request has ended.
    ValueError, TypeError
        If a range does not lie within the model or on a machine of the fleet, if a flow leaves
        a gap in the blocks or has no link, if no flow leaves a node that requests reach, if a
        node has no room for the longest request, or if an option is invalid.

    Examples
    --------
    >>> import hypsolve as hs
    >>> from hypsolve.problem.layer_layout import HostedRange, LayerLayout
    >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    >>> nodes = [hs.Node(name=name, gpu=hs.gpu(name)) for name in ("l4", "a10", "rtx-4090")]
    >>> problem = hs.PlacementProblem(
    ...     model=hs.model("llama-3-8b"), requests=hs.workload(n_requests=40, rate_per_s=4.0),
    ...     fleet=hs.Fleet(
    ...         name="lab", sites=(hs.Site(name="room", link=lan),),
    ...         machines=tuple(hs.Machine(node=node, site="room") for node in nodes),
    ...     ),
    ... )
    >>> layout = LayerLayout(
    ...     ranges=(
    ...         HostedRange("l4", 0, 12), HostedRange("a10", 0, 20),
    ...         HostedRange("rtx-4090", 10, 34),
    ...     ),
    ...     flows=(
    ...         (None, "l4", 100.0), (None, "a10", 300.0), ("l4", "rtx-4090", 100.0),
    ...         ("a10", "rtx-4090", 300.0), ("rtx-4090", None, 400.0),
    ...     ),
    ... )
    >>> trace = simulate_layout(problem, layout)
    >>> trace
    <LayoutTrace of llama-3-8b on lab: 40 requests on 2 paths over 3 machines, 6535 visits>
    >>> [int((trace.path == p).sum()) for p in range(2)]
    [30, 10]
    """
    valid.of_type(OWNER, "problem", problem, PlacementProblem)
    valid.of_type(OWNER, "layout", layout, LayerLayout)
    requests = problem.requests if requests is None else requests
    valid.of_type(OWNER, "requests", requests, Requests)
    of_runtime: dict[str, Any] = {
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "chunk_tokens": chunk_tokens,
        "iteration_s": iteration_s,
    }
    given = {name: value for name, value in of_runtime.items() if value is not FROM_RUNTIME}
    options = Options(
        **problem.runtime.limits(
            **given,
            batching=Batching.STAGE,
            kv_admission=KvAdmission.RESERVE,
            micro_batch_tokens=None,
        ),
        users=users,
        think_time_s=think_time_s,
        link_contention=link_contention,
        record_visits=record_visits,
    )
    if time_limit_s is not None:
        time_limit_s = valid.real(OWNER, "time_limit_s", time_limit_s, strict=True)
    early(OWNER, "arrival_s", float(np.ptp(requests.arrival_s)), " after the first arrival")
    edges = edges_of(problem, layout)
    return _serve(LayoutSystem(problem, layout, edges, requests, options), time_limit_s)


def _serve(system: LayoutSystem, time_limit_s: float | None) -> LayoutTrace:
    """Run a simulation to its end; raise TimeoutError if that takes too long."""
    from hypsolve.kernels import layer_layout as kernel
    from hypsolve.kernels.warm_up import warm

    warm("layer_layout")
    state, n_requests = system.state, len(system.path)
    max_pushed = min(system.options.max_num_seqs, n_requests) + len(state.nodes) + 4
    heap = kernel.records(4 * max_pushed + 64, kernel.EVENT)
    log = kernel.records(10_000 if system.options.record_visits else 0, kernel.VISIT)
    n_events = _EVENTS_AT_A_TIME if time_limit_s is None else _EVENTS_TO_LIMIT
    end_s = math.inf if time_limit_s is None else perf_counter() + time_limit_s
    while True:
        n_ended = int(state.counts[kernel.N_ENDED])
        if perf_counter() >= end_s:
            raise TimeoutError(
                f"{OWNER}: the time limit of {time_limit_s:.3g} s passed when {n_ended} of"
                f" {n_requests} requests had ended"
            )
        state.counts[kernel.BUDGET] = n_events
        why = kernel.run(system.setup, state, heap, log)
        if why == kernel.DONE:
            break
        n_logged = int(state.counts[kernel.N_LOGGED])
        if why == kernel.GROW and int(state.counts[kernel.N_EVENTS]) + max_pushed > len(heap):
            heap = _grown(heap)
        elif why == kernel.GROW:
            log = _grown(log, n_logged + max_pushed)
    return _trace(system, kernel, log[: int(state.counts[kernel.N_LOGGED])])


def _trace(system: LayoutSystem, kernel: Any, log: Any) -> LayoutTrace:
    """Turn the state at the end of a run into a trace."""
    state, given = system.state, system.deployment.requests
    visits = None
    if system.options.record_visits:
        names = {"context": "context_tokens"}
        fields = {names.get(f, f): log[f].copy() for f in kernel.VISIT.names}
        visits = Visits(**fields)
    times = ("arrival_s", "admitted_s", "first_token_s", "end_s", "freed_s")
    return LayoutTrace(
        name=system.problem.name,
        node_names=tuple(machine.name for machine in system.machines),
        paths=tuple(map(tuple, system.paths)),
        path=system.path,
        **{name: state.requests[name].copy() for name in times},
        prompt_tokens=given.prompt_tokens,
        output_tokens=given.output_tokens,
        busy_s=state.nodes["busy_s"].copy(),
        n_iterations=state.nodes["n_iterations"].copy(),
        n_tokens=state.nodes["n_tokens"].copy(),
        kv_capacity_bytes=state.nodes["capacity"].astype(np.float64),
        kv_peak_bytes=state.nodes["peak"].astype(np.float64),
        n_visits=int(state.counts[kernel.N_VISITS]),
        users=system.options.users,
        visits=visits,
    )


def _grown(records: Any, minimum: int = 0) -> Any:
    """Return a copy with twice the room, or with `minimum` if that is more."""
    new = np.zeros(max(2 * len(records), minimum), records.dtype).view(np.recarray)
    new[: len(records)] = records
    return new

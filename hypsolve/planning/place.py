"""`place`: which machines form which pipelines, with what degree and which blocks."""

from __future__ import annotations

from typing import Any

from hypsolve.planning.place_query import MachinesSource, PlaceQuery
from hypsolve.planning.place_search import PlacementSearch
from hypsolve.planning.placement_plan import PlacementPlan
from hypsolve.planning.query_arguments import ModelSource
from hypsolve.planning.simulation_search import Progress
from hypsolve.problem.runtime import Batching
from hypsolve.solve import warm_methods
from hypsolve.solvers.clock import Deadline
from hypsolve.solvers.throughput.server_arrays import FAMILIES


def place(
    model: ModelSource,
    machines: MachinesSource,
    *,
    progress: Progress | None = None,
    **arguments: Any,
) -> PlacementPlan:
    """Decide which machines serve a model, in which pipelines, and with which blocks.

    Machines have no order, and some may stay unused. A pipeline is a sequence of stages; a
    stage is a group of equal GPUs of one machine and a range of blocks. The method proves its
    answer in the fluid model; the best few placements are then simulated token by token behind
    a router, and the best simulated one is returned.

    Parameters
    ----------
    model : str, path or Model
        As in `hypsolve.plan`.
    machines : path, MachinesFile, Fleet, Network or NetworkFile
        A file for `hypsolve.read_machines`, or machines. Tiers of a network have no order here.
    progress : callable, optional
        Called with a line of text about the work in progress.
    runtime : str or Runtime
        Default: that of the file, else ``vllm``. Its attributes may be given, too,
        such as ``max_num_seqs=64``.
    rate_per_s, users, think_time_s
        The load to serve, as in `hypsolve.plan`. Default: the largest rate is asked for.
    ttft_slo_s, tpot_slo_s : float, optional
        Targets that 95 % of the requests must meet.
    prompt_tokens, output_tokens, requests, weights, time_limit_s, seed
        As in `hypsolve.plan`.
    objective : {"throughput", "goodput", "latency", "cost"}
        Default: ``goodput`` with a target, else ``throughput``. ``latency``: the least mean
        latency at `rate_per_s`, in the fluid model. `hypsolve.rent` has ``cost``.
    method : str, optional
        A name in `hypsolve.PLACEMENT_METHODS`. Default: an exact one.
    max_stages : int
        Largest number of stages of a pipeline.

    Returns
    -------
    PlacementPlan
        A KeyboardInterrupt ends the work in progress; the plan then holds the best placement so
        far, and ``stopped`` names what is missing.

    Raises
    ------
    ValueError, TypeError
        If an argument or a file is invalid; the message names it.
    OSError
        If a file does not exist or cannot be read.

    Examples
    --------
    >>> import hypsolve as hs
    >>> boxes = [hs.Node(name=name, gpu=hs.gpu("rtx-4090")) for name in ("a", "b")]
    >>> lab = hs.Fleet(
    ...     name="lab",
    ...     sites=(hs.Site(name="room", link=hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)),),
    ...     machines=tuple(hs.Machine(node=box, site="room") for box in boxes),
    ... )
    >>> plan = hs.place("llama-3-8b", lab, output_tokens=64, time_limit_s=20)
    >>> plan.machines, len(plan.pipelines)
    (('a', 'b'), 2)
    """
    return place_query(PlaceQuery.of(model, machines, **arguments), progress=progress)


def rent(
    model: ModelSource,
    machines: MachinesSource,
    *,
    progress: Progress | None = None,
    **arguments: Any,
) -> PlacementPlan:
    """Find the cheapest machines that serve a load within targets, and their pipelines.

    Machines with a price cost it if they host a stage, and others are free. The price is
    proved in the fluid model for the rate that is asked for. If the cheapest machines do not
    serve the load in simulation, the cheapest ones for a slightly larger rate are tried, until
    some do.

    Parameters
    ----------
    model, machines, progress, **arguments
        As in `place`, with ``rate_per_s`` or ``users``, and without ``objective``.

    Returns
    -------
    PlacementPlan
        Its `throughput` states the price that no other machines undercut, ``fluid_bound``.

    Raises
    ------
    ValueError, TypeError
        If an argument or a file is invalid; the message names it.
    OSError
        If a file does not exist or cannot be read.
    """
    query = PlaceQuery.of(model, machines, **{**arguments, "objective": "cost"})
    return place_query(query, progress=progress)


def place_query(
    query: PlaceQuery, *, progress: Progress | None = None, deadline: Deadline | None = None
) -> PlacementPlan:
    """Answer a query for a placement; see `place`."""
    warm(query)
    limit_s = query.time_limit_s if deadline is None else deadline.left_s()
    deadline = deadline or Deadline(limit_s)
    return PlacementSearch(query, progress or (lambda line: None), deadline).run()


def warm(query: PlaceQuery) -> None:
    """Compile or load the kernels that a placement needs, before a clock starts."""
    warm_methods(
        "hypsplit_dp",
        simulates=True,
        pipelines=query.runtime.batching is not Batching.STAGE,
        families=(FAMILIES[query.runtime.batching],),
    )

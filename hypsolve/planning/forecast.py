"""`Forecast`: latency and throughput of a partition, simulated and bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hypsolve.planning.doubled_resources import DOUBLED, NONE, doubled, helps_most
from hypsolve.planning.limiting_resource import limiting_resources
from hypsolve.planning.load import (
    N_REQUESTS,
    Load,
    after_start,
    at_rate_of,
    evenly,
    max_requests,
    one_alone,
    serve,
    with_requests,
    within_targets,
)
from hypsolve.planning.rate_bound import bound_on_rate, lengths, n_pipelines, stages_of
from hypsolve.planning.sustained_rate import (
    MAX_SIMULATED,
    SETTLED_ROUNDS,
    Sustained,
    simulate_rate,
)
from hypsolve.problem import costs, evaluation
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Deployment, Model, Requests
from hypsolve.problem.instance import Instance
from hypsolve.problem.runtime import Batching
from hypsolve.problem.solution import Partition
from hypsolve.simulation.metrics import Metrics, Summary
from hypsolve.simulation.trace import Trace
from hypsolve.solvers.clock import NEVER, Deadline

DOUBLED_VISITS = 3e6  # in a simulation with twice of a resource, at most
DOUBLED_ROUNDS = 5  # requests of such a simulation, over those under way
OVERLOAD = 1.2  # of the largest rate, where the limiting resource is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Forecast of latency and throughput under HypSched-RT and the rules of a runtime.

    A link sends one message at a time.

    Attributes
    ----------
    load : Load
        Rate or users, and targets.
    n_requests : int
        Requests of the simulation.
    runtime : str
        The rules and limits that were simulated, in words.
    ttft_s, tpot_s, latency_s : Summary
        Simulated: mean, p50, p95 and p99 over the requests.
    keeps_up : bool or None
        Whether requests are served as fast as they arrive; see `sustained_rate.is_steady`. If
        not, the latencies above only reflect the length of the simulation. None if too many
        requests would have to be simulated to decide. True for users in a closed loop.
    drains : bool
        False: requests are served as fast as they arrive only until a queue forms, by a burst
        say, which never drains; see `sustained_rate.drains_queue`. `keeps_up` is then False.
    is_settled : bool
        Whether the latencies above, attainment and goodput are those of a load that goes on:
        the queue does not grow, and requests many times those under way were simulated. False:
        with more requests, latencies would be larger, and fewer requests within the targets.
    requests_per_s : float
        Requests served per second at this load. The time of users in a closed loop runs to the
        end of the last think time.
    output_tokens_per_s : float
        Their output tokens per second.
    slo_attainment, goodput_requests_per_s : float
        Share of the requests within the targets, and how many per second; nan without targets.
        The first request of each user does not count in the share: their start is a burst that
        does not come again.
    mean_in_flight : float
        Mean number of requests in flight at this load, by Little's law: users at once.
    utilisation : float
        Mean share of the time in which the GPUs in use compute. It says nothing about the rate
        that they can serve, since a GPU that is always busy may have room in its batches; see
        `share_of_max_rate`. A GPU is in use if it can hold the blocks of its tier and, where
        batches pass whole pipelines, if it is in a pipeline.
    share_of_max_rate : float
        `requests_per_s` over `max_requests_per_s`, at most 1: how much of what it can serve is
        asked for at this load. It is smaller than stated if `max_rate_is_lower_bound`; nan if
        the largest rate is not known.
    max_requests_per_s : float
        Approximate largest sustained rate of Poisson arrivals, by bisection over simulations;
        it was itself simulated until the queue did not grow. It is nan if too many requests are
        needed to tell, and 0 if it is below 1/32 of the bound. It is at least the rate of the
        load if that rate is sustained.
    max_rate_is_lower_bound : bool
        Whether the search for the largest rate was cut short, by the time limit or because too
        many requests are needed: `max_requests_per_s` is sustained, and larger rates may be.
    limited_by : str
        Resource that limits the rate: ``compute``, ``memory bandwidth``, ``KV memory``, ``batch
        limit``, ``link`` or ``latency``, and where. Twice of it lets the largest rate grow
        most, in simulation; see `hypsolve.planning.limiting_resource`. ``no single resource``
        if twice of none lets it grow by 10 %. Empty if it is not known, also if the largest
        rate is not.
    bound_requests_per_s : float
        Upper bound on the rate of every schedule of this partition under the limits of
        `runtime` and, with users, for so many of them; see `hypsolve.planning.rate_bound`. The
        rate is the number of requests over the time from the first arrival to the last
        completion or, with users, to the end of the last think time. If lengths differ, it
        holds for the lengths of the representatives (`RequestMix`) or, with users, of the
        requests that were simulated.
    max_sequences : int
        Number of sequences that fit into the KV caches at the same time, of mean length if
        they differ: of every tier or, where batches pass whole pipelines, of the pipelines
        together. 0 if no block has a cache.
    max_running_sequences : int
        Number of sequences that run at once. `Runtime.max_num_seqs` limits each pipeline or,
        under the batching mode ``stage``, the iterations of each node.
    max_context_tokens : int
        Longest single sequence, limited by memory, and by the model unless the sequences of the
        query are longer than it was made for; 0 if no block has a cache.
    joules_per_token : float
        Energy per output token: busy time of the GPUs while load is offered, times their board
        power, over the tokens served in that time; nan if a GPU in use has no ``power_w``.
    price_per_million_tokens : float
        Prices of all nodes in use (see `utilisation`), busy or not, per 10^6 output tokens at
        this load; nan if none has a price.
    unused_price_per_hour : float
        Prices of the other nodes, per hour; nan if no node has a price.
    currency : str
        Currency of the prices; empty if the network file names none.
    """

    load: Load
    n_requests: int
    runtime: str
    ttft_s: Summary
    tpot_s: Summary
    latency_s: Summary
    keeps_up: bool | None
    drains: bool
    is_settled: bool
    requests_per_s: float
    output_tokens_per_s: float
    slo_attainment: float
    goodput_requests_per_s: float
    mean_in_flight: float
    utilisation: float
    share_of_max_rate: float
    max_requests_per_s: float
    max_rate_is_lower_bound: bool
    limited_by: str
    bound_requests_per_s: float
    max_sequences: int
    max_running_sequences: int
    max_context_tokens: int
    joules_per_token: float
    price_per_million_tokens: float
    unused_price_per_hour: float
    currency: str

    if not TYPE_CHECKING:  # type checkers would accept every name

        def __getattr__(self, name):
            raise valid.missing_attribute(self, name)


def predict(
    deployment: Deployment,
    partition: Partition,
    load: Load | float,
    price_per_hour: Mapping[str, float] | None = None,
    *,
    currency: str = "",
    instance: Instance | None = None,
    deadline: Deadline = NEVER,
    only: str = "",
    near_per_s: float = 0.0,
) -> Forecast:
    """Forecast how a partition serves requests like those of a deployment.

    Parameters
    ----------
    deployment : Deployment
        Its runtime gives batching mode and limits. Bound and largest rate are of its requests;
        the load may have others.
    partition : Partition
        Every stage must fit on some node of its tier.
    load : Load or float
        A number is the rate of Poisson arrivals.
    price_per_hour : mapping, optional
        By name of the node.
    currency : str
        Currency of the prices.
    instance : Instance, optional
        The deployment, if it is compiled already.
    deadline : Deadline, optional
        When it has passed, the largest sustainable rate is not searched for any more. A short
        limit also shortens each simulation.
    only : str
        ``mean latency`` and ``goodput`` leave out the search for the largest rate,
        ``requests/s`` what limits it.
    near_per_s : float
        Rate with which the search for the largest sustained rate begins, such as one that was
        served under overload; 0: none. It is no lower bound: see
        `hypsolve.planning.sustained_rate`.

    Returns
    -------
    Forecast
    """
    if not isinstance(load, Load):
        load = Load(rate_per_s=load)
    if instance is None:
        instance = costs.to_instance(deployment, allow_empty=True)
    bound = bound_on_rate(deployment, instance, partition)
    judge = _judge(deployment, partition, load, deadline)
    in_search = only in ("mean latency", "goodput")
    trace, keeps_up, drains = _judged(
        deployment, partition, load, bound, judge, has_burst=not in_search
    )
    found = trace.metrics(ttft_slo_s=load.ttft_slo_s, tpot_slo_s=load.tpot_slo_s)
    max_rate, is_lower_bound, limited_by = math.nan, False, ""
    if not in_search and not (only and load.users is not None):
        max_rate, is_lower_bound = _largest(judge, load, bound, keeps_up, near_per_s)
    is_known = 0 < max_rate < math.inf and not is_lower_bound
    if is_known and not only and not deadline.has_passed():
        limited_by = _limited_by(deployment, instance, partition, max_rate, load, deadline)
    served_per_s, goodput_per_s = found.requests_per_s, found.goodput_requests_per_s
    if load.users is not None:
        sent = deployment if load.mix is None else _with_lengths(deployment, trace)
        bound = bound_on_rate(
            sent, instance, partition, users=load.users, think_time_s=load.think_time_s
        )
        share = found.observed_s / (found.observed_s + load.think_time_s)
        served_per_s, goodput_per_s = share * served_per_s, share * goodput_per_s
    else:
        served_per_s = min(load.rate_per_s, bound)
        if max_rate > 0:
            served_per_s = min(served_per_s, max_rate)
        elif keeps_up is False:  # its largest rate is unknown, this one is simulated
            served_per_s = min(served_per_s, found.requests_per_s)
    output = float(trace.output_tokens.mean())
    room = room_of(deployment, instance, partition)
    used = nodes_in_use(deployment, instance, partition)
    names = trace.node_names
    price, unused = _prices(names, used, price_per_hour or {}, served_per_s * output)
    return Forecast(
        load=load,
        n_requests=len(trace.arrival_s),
        runtime=deployment.runtime.describe(),
        ttft_s=found.ttft_s,
        tpot_s=found.tpot_s,
        latency_s=found.latency_s,
        keeps_up=keeps_up,
        drains=drains,
        is_settled=keeps_up is True,
        requests_per_s=served_per_s,
        output_tokens_per_s=served_per_s * output,
        slo_attainment=_attainment(trace, load, found),
        goodput_requests_per_s=goodput_per_s,
        mean_in_flight=served_per_s * found.latency_s.mean,
        utilisation=_utilisation(trace, used, found, served_per_s),
        share_of_max_rate=min(served_per_s / max_rate, 1.0) if max_rate > 0 else math.nan,
        max_requests_per_s=max_rate,
        max_rate_is_lower_bound=is_lower_bound,
        limited_by=limited_by,
        bound_requests_per_s=bound,
        max_sequences=room.sequences,
        max_running_sequences=room.running,
        max_context_tokens=room.context_tokens,
        joules_per_token=_joules_per_token(deployment, trace, used),
        price_per_million_tokens=price,
        unused_price_per_hour=unused,
        currency=currency,
    )


def serve_load(
    deployment: Deployment, partition: Partition, load: Load, *, record_visits: bool = False
) -> Trace:
    """Simulate a partition under a load; users start within one round of a user alone.

    Poisson arrivals are simulated until there are `SETTLED_ROUNDS` times as many as requests
    under way, as far as the visits of the load allow, or until they pile up beyond doubt.
    """
    if load.users is None and load.trace is None:
        return _serve_rate(deployment, partition, load, record_visits=record_visits)[0]
    within_s = 0.0 if load.users is None else round_s(deployment, partition, load)
    return serve(
        with_requests(deployment, load, within_s),
        partition,
        record_visits=record_visits,
        users=load.users,
        think_time_s=load.think_time_s,
    )


def _serve_rate(
    deployment: Deployment, partition: Partition, load: Load, *, record_visits: bool = False
) -> tuple[Trace, bool | None]:
    """Simulate Poisson arrivals until latencies settle, and return whether they are served."""
    first = len(with_requests(deployment, load).requests)
    most = max(first, min(MAX_SIMULATED, max_requests(deployment, load.max_visits)))

    def simulated(n: int) -> Trace:
        return serve(
            at_rate_of(deployment, load, load.rate_per_s, n),
            partition,
            record_visits=record_visits,
        )

    return simulate_rate(simulated, first, most, rounds=SETTLED_ROUNDS)


def _attainment(trace: Trace, load: Load, found: Metrics) -> float:
    """Return the share of the requests within targets, without the first one of each user."""
    if math.isnan(found.slo_attainment):
        return math.nan
    return float(within_targets(trace, load)[after_start(trace)].mean())


def _with_lengths(deployment: Deployment, trace: Trace) -> Deployment:
    """Return a deployment with the requests of a simulation."""
    served = Requests(trace.arrival_s, trace.prompt_tokens, trace.output_tokens)
    return replace(deployment, requests=served)


def round_s(deployment: Deployment, partition: Partition, load: Load) -> float:
    """Return the latency of a request on the idle network, and the think time."""
    alone = serve(one_alone(deployment), partition)
    return float(alone.latency_s[0]) + load.think_time_s


def nodes_in_use(
    deployment: Deployment, instance: Instance, partition: Partition
) -> NDArray[np.bool_]:
    """Return which nodes a partition uses, numbered over the whole network.

    They can hold the blocks of their tier, of which there are some. Where batches pass whole
    pipelines, pipeline i takes the i-th such node of every tier, and the rest is not used.
    """
    holds = [
        evaluation.can_hold(instance, k, *partition.cuts[k : k + 2]) & bool(partition.stage(k))
        for k in range(instance.n_tiers)
    ]
    if deployment.runtime.batching is not Batching.STAGE:
        counts = [int(each.sum()) for k, each in enumerate(holds) if partition.stage(k)]
        holds = [each & (each.cumsum() <= min(counts)) for each in holds]
    return np.concatenate(holds)


def _utilisation(
    trace: Trace, used: NDArray[np.bool_], found: Metrics, served_per_s: float
) -> float:
    """Return the mean share of the time in which the GPUs in use compute at a rate."""
    if not used.any() or not found.n_finished:
        return 0.0
    busy = np.minimum(trace.busy_s[used] / found.n_finished * served_per_s, 1.0)
    return float(busy.mean())


def _joules_per_token(deployment: Deployment, trace: Trace, used: NDArray[np.bool_]) -> float:
    """Return the energy per output token, of busy time and tokens while load is offered.

    The tokens of a request after the first are spread evenly up to its end.
    """
    nodes = [node for tier in deployment.network.tiers for node in tier.nodes]
    power_w = np.array([node.gpus * node.gpu.power_w for node in nodes])
    if not (power_w[used] > 0).all():
        return math.nan
    first_s, last_s = float(trace.arrival_s.min()), float(trace.arrival_s.max())
    series = trace.series
    ends_s = series.start_s + series.bin_s * np.arange(1, series.busy.shape[1] + 1)
    offered = ends_s <= last_s + series.bin_s / 2
    n_after = trace.output_tokens - 1
    spans_s = np.maximum(trace.end_s - trace.first_token_s, 1e-300)
    share = np.clip((last_s - trace.first_token_s) / spans_s, 0.0, 1.0)
    n_tokens = float(np.nansum((trace.first_token_s <= last_s) + n_after * share))
    if last_s == first_s or n_tokens < trace.output_tokens.sum() / 4:  # too short to tell
        return float(power_w @ trace.busy_s) / float(trace.output_tokens.sum())
    return float(power_w @ series.busy[:, offered].sum(axis=1)) * series.bin_s / n_tokens


def _prices(
    names: Sequence[str],
    used: NDArray[np.bool_],
    price_per_hour: Mapping[str, float],
    tokens_per_s: float,
) -> tuple[float, float]:
    """Return the price per 10^6 tokens of the nodes in use, and the others' price per hour."""
    price = np.array([price_per_hour.get(name, math.nan) for name in names])
    known = ~np.isnan(price)
    if not known.any():
        return math.nan, math.nan
    per_hour = float(price[used & known].sum())
    has_price = tokens_per_s > 0 and bool((used & known).any())
    per_million = per_hour / 3600 / tokens_per_s * 1e6 if has_price else math.nan
    return per_million, float(price[~used & known].sum())


class Room(NamedTuple):
    """Sequences that fit at once, those that run at once, and tokens of the longest one."""

    sequences: int
    running: int
    context_tokens: int


def room_of(deployment: Deployment, instance: Instance, partition: Partition) -> Room:
    """Return how many sequences fit and run at once, and how long a single one can be."""
    stages = stages_of(deployment, instance, partition)
    limit = deployment.runtime.max_num_seqs
    length, requests = sum(lengths(deployment)), deployment.requests
    longest = int((requests.prompt_tokens + requests.output_tokens).max())
    tokens = deployment.runtime.held_tokens(length)
    rooms = [stage.room_tokens for stage in stages]  # of each stage, a number per node
    if deployment.runtime.batching is not Batching.STAGE:
        n = n_pipelines(stages)
        rooms = [[min(room) for room in zip(*(each[:n] for each in rooms), strict=True)]]
    known = [each for each in rooms if not math.isinf(each[0])]
    sequences = min((sum(int(r // tokens) for r in each) for each in known), default=0)
    running = sum(
        limit if math.isinf(room) else min(int(room // tokens), limit)
        for each in rooms
        for room in each
    )
    context = _max_context(deployment.model, known, longest)
    return Room(sequences, min(running, sequences) if known else running, context)


def _largest(
    judge: Sustained, load: Load, bound: float, keeps_up: bool | None, near_per_s: float
) -> tuple[float, bool]:
    """Return about the largest sustained rate, and whether it is only a lower bound."""
    if math.isinf(bound):
        return math.inf, False
    asked = load.rate_per_s if load.users is None else 0.0
    return judge.largest(
        bound,
        sustained_per_s=asked if keeps_up else 0.0,
        refused_per_s=asked if keeps_up is False else math.inf,
        near_per_s=near_per_s,
    )


def sustains(
    deployment: Deployment, instance: Instance, partition: Partition, load: Load
) -> bool | None:
    """Return whether a partition keeps up with the rate of a load, as `Forecast.keeps_up`.

    None if too many requests would have to be simulated to tell; True for users.
    """
    bound = bound_on_rate(deployment, instance, partition)
    judge = _judge(deployment, partition, load, NEVER)
    return _judged(deployment, partition, load, bound, judge)[1]


def _judged(
    deployment: Deployment,
    partition: Partition,
    load: Load,
    bound: float,
    judge: Sustained,
    *,
    has_burst: bool = True,
) -> tuple[Trace, bool | None, bool]:
    """Simulate a load, and return whether a partition keeps up with it, and drains a queue.

    `has_burst` says whether a burst is simulated, too, that leaves a queue.
    """
    if load.users is not None:
        return serve_load(deployment, partition, load), True, True
    if load.trace is None:
        trace, keeps_up = _serve_rate(deployment, partition, load)
    else:
        trace = serve_load(deployment, partition, load)
        keeps_up = judge(load.rate_per_s)
    if load.rate_per_s > bound:
        return trace, False, True
    if keeps_up and has_burst and judge.drains(load.rate_per_s) is False:
        return trace, False, False
    return trace, keeps_up, True


def _judge(
    deployment: Deployment, partition: Partition, load: Load, deadline: Deadline
) -> Sustained:
    most = max_requests(deployment, load.max_visits)
    return Sustained(deployment, partition, most, load.seed, deadline)


def _limited_by(
    deployment: Deployment,
    instance: Instance,
    partition: Partition,
    max_rate: float,
    load: Load,
    deadline: Deadline,
) -> str:
    """Return the resource of which twice as much lets the largest rate be sustained.

    Each one is simulated with the arrivals with which the largest rate was found.
    """
    n = min(N_REQUESTS * 2, max_requests(deployment, load.max_visits))
    beyond = serve(evenly(deployment, OVERLOAD * max_rate, n), partition)
    names = limiting_resources(deployment, instance, partition, beyond)
    judges: dict[str, Sustained] = {}
    untold: list[str] = []  # resources of which it would take too long to tell
    max_visits = min(load.max_visits, DOUBLED_VISITS)

    def keeps_up(name: str, gain: float) -> bool | None:
        resource = next((each for each in DOUBLED if name.startswith(each)), None)
        if resource is None:  # all-reduces are not simulated
            return False
        if name not in judges:
            more, most = doubled(deployment, resource), max_requests(deployment, max_visits)
            judges[name] = Sustained(
                more, partition, most, load.seed, deadline, rounds=DOUBLED_ROUNDS
            )
        is_sustained = judges[name]((1 + gain) * max_rate)
        if is_sustained is None:
            untold.append(name)
        return None if deadline.has_passed() else is_sustained is True

    found = helps_most(names, keeps_up) if any(names) else ""
    return "" if found == NONE and untold else found


def _max_context(model: Model, rooms: list[list[float]], length: float) -> int:
    """Return the tokens of the longest sequence that fits.

    The model was made for sequences up to a length, unless those of the query are longer.
    """
    limit = model.context_tokens or math.inf
    limit = math.inf if length > limit else limit
    return int(min(limit, *(max(each) for each in rooms))) if rooms else 0

"""Types of the file of a `PlacementPlan`, for `json_schema`."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from hypsolve.planning.placement_given import GivenTable
from hypsolve.planning.request_mix import RequestMixTable
from hypsolve.problem.placement import PlacementObjective
from hypsolve.problem.solution import Status

Rate = Annotated[float | None, "Requests per second; null: not known."]
Seconds = Annotated[float | None, "Seconds; null: not known."]


class StageTable(TypedDict):
    """A stage: GPUs of one machine, and the blocks that they hold."""

    machine: Annotated[str, "Name of the machine."]
    gpus: Annotated[int, "Number of its GPUs that compute as one."]
    blocks: Annotated[tuple[int, int], "First block, and the one after the last."]


class TimesTable(TypedDict):
    """Mean and percentiles of times."""

    mean: Seconds
    p50: Seconds
    p95: Seconds
    p99: Seconds


class PipelineTable(TypedDict):
    """A pipeline, with what it serves."""

    stages: Annotated[list[StageTable], "In the order in which requests pass."]
    requests_per_s: Annotated[float | None, "Simulated; see `quantity` of the throughput."]
    share: Annotated[float, "Share of all requests that the router sends here."]
    fluid_requests_per_s: Annotated[float | None, "Largest rate in the fluid model."]
    limit: Annotated[str, "What limits that rate."]
    load_per_s: Annotated[float | None, "Rate of the times below."]
    fluid_ttft_s: Annotated[float | None, "Mean seconds to the first token, fluid model."]
    fluid_tpot_s: Annotated[float | None, "Mean seconds per later token, fluid model."]
    ttft_s: TimesTable | None
    tpot_s: TimesTable | None
    max_sequences: Annotated[int, "Sequences that fit into its KV caches at once."]
    bound_requests_per_s: Annotated[
        float | None, "No split over these GPUs and no schedule serves more."
    ]


class LoadedPipeline(TypedDict):
    """A pipeline of a placement that was simulated."""

    stages: Annotated[list[StageTable], "In the order in which requests pass."]
    requests_per_s: Annotated[float, "Its load in the fluid model."]


class SimulatedTable(TypedDict):
    """A placement that was simulated."""

    origin: Annotated[str, "Method that proposed it."]
    fluid_requests_per_s: Rate
    simulated_requests_per_s: Rate
    pipelines: list[LoadedPipeline]


class PlacedThroughputTable(TypedDict):
    """Rate of the chosen placement, and how far any other could be ahead."""

    objective: Annotated[PlacementObjective, "The objective."]
    simulated_requests_per_s: Annotated[float | None, "Sum over the pipelines."]
    quantity: Annotated[str, "Which rate that is, in words."]
    n_requests: Annotated[int, "Requests of the simulations."]
    is_lower_bound: Annotated[bool, "Whether the placement may serve clearly more."]
    fluid_requests_per_s: Rate
    fluid_bound: Annotated[
        float | None,
        "Rate, or price per hour, that no placement passes in the fluid model.",
    ]
    fluid_gap: Annotated[float | None, "Share by which the best fluid value is away from it."]
    bound_requests_per_s: Annotated[float | None, "No placement and no schedule serves more."]
    gap: Annotated[float | None, "1 - simulated_requests_per_s / bound_requests_per_s."]
    pipelines_bound_requests_per_s: Annotated[
        float | None, "No split over these pipelines and no schedule serves more."
    ]
    placements: Annotated[list[SimulatedTable], "The chosen one first."]


class AnswerTable(TypedDict):
    """Simulated load that all pipelines serve behind their router."""

    is_met: Annotated[bool | None, "Whether the load is served; null: none was asked for."]
    slo_attainment: Annotated[float | None, "Share of its requests within all targets."]
    is_of_later_half: Annotated[bool, "Whether it is that of the later half."]
    keeps_up: Annotated[bool, "Whether requests are served as fast as they arrive."]
    n_requests: Annotated[int, "Requests of the simulation."]
    ttft_s: TimesTable
    tpot_s: TimesTable
    latency_s: TimesTable
    served_per_s: Annotated[float | None, "Rate of that simulation."]
    max_requests_per_s: Annotated[float | None, "Largest rate that is served."]
    max_rate_is_lower_bound: Annotated[bool, "Whether more may be served."]
    max_users: Annotated[int | None, "Most users within the targets."]
    max_users_is_lower_bound: Annotated[bool, "Whether more may be served."]


class UnusedTable(TypedDict):
    """Machines that are in no pipeline."""

    machines: Annotated[list[str], "Names."]
    why: Annotated[str, "The kind of reason in a few words."]
    reason: Annotated[str, "The reason as a sentence."]
    gain_per_s: Annotated[
        float | None, "Requests per second that the best pipeline with it gains, fluid model."
    ]


class PlacementFile(TypedDict):
    """A plan of `hypsolve place` or `hypsolve rent`."""

    format: Annotated[Literal["hypsolve-placement"], "Kind of the file."]
    version: Annotated[Literal[1], "Version of the format."]
    model: Annotated[str, "Name of the model."]
    machines: Annotated[str, "Name of the machines."]
    prompt_tokens: Annotated[int, "Tokens of each prompt."]
    output_tokens: Annotated[int, "Tokens of each output."]
    weights: Annotated[str | None, "Format of the weights that was asked for."]
    requests: Annotated[RequestMixTable | None, "null: all requests are alike."]
    rate_per_s: Annotated[float | None, "Requests per second to serve."]
    users: Annotated[int | None, "Users in a closed loop to serve."]
    think_time_s: Annotated[float, "Seconds from an answer to a user's next request."]
    ttft_slo_s: Annotated[float | None, "Target for the first token, in seconds."]
    tpot_slo_s: Annotated[float | None, "Target for each later token, in seconds."]
    runtime: Annotated[dict[str, Any], "The runtime and its limits."]
    objective: Annotated[PlacementObjective, "The objective."]
    method: Annotated[str, "Method of the search in the fluid model."]
    max_stages: Annotated[int, "Stages of a pipeline, at most."]
    time_limit_s: Annotated[float, "Seconds for the whole command."]
    seed: Annotated[int, "Seed of the method and of arrivals."]
    status: Annotated[Status, "What is proved in the fluid model."]
    digest: Annotated[str, "SHA-256 of the placement problem."]
    given: NotRequired[
        Annotated[list[GivenTable], "Fields of model, sites, links and machines, as text."]
    ]
    solve_time_s: Annotated[float, "Wall time of the method in seconds."]
    throughput: PlacedThroughputTable | None
    pipelines: list[PipelineTable]
    price_per_hour: Annotated[float, "Price of all machines in use."]
    price_per_million_tokens: Annotated[float | None, "Per 10^6 output tokens at the rate."]
    currency: Annotated[str, "Currency of the prices; empty: not stated."]
    answer: AnswerTable | None
    unused: list[UnusedTable]
    idle_gpus: Annotated[dict[str, int], "GPUs without a stage of machines in use."]
    reasons: Annotated[list[str], "Why there is no placement."]
    stopped: Annotated[str, "What was left unfinished; empty: nothing."]
    interrupted: Annotated[bool, "Whether Ctrl-C ended the work."]


class RentPointTable(TypedDict):
    """The cheapest machines for a rate, in the fluid model."""

    requests_per_s: Annotated[float, "The rate."]
    price_per_hour: Annotated[float | None, "null: no machines were found that carry it."]
    bound_per_hour: Annotated[
        float | None, "No machines for less carry the rate; null: none do at any price."
    ]
    is_proved: Annotated[bool, "Whether no machines are cheaper, or none carry the rate."]
    machines: Annotated[dict[str, int], "Number of machines by the name of their kind."]


class OfferTable(TypedDict):
    """The price at which machines of a kind enter the answer, or leave it."""

    name: Annotated[str, "Of the kind."]
    price_per_hour: Annotated[float, "Of one machine, today."]
    used: Annotated[int, "Machines of the kind in the answer for the rate that is asked for."]
    break_even_per_hour: Annotated[
        float | None,
        "Used: the answer is no dearer than machines without the kind up to this price. Not"
        " used: below it, machines with one of the kind are cheaper. null: see `is_needed`, or"
        " not found in time.",
    ]
    is_needed: Annotated[bool, "Whether the load is not served without the kind."]
    is_proved: Annotated[bool, "Whether bounds prove the price."]


class RentCurveFile(TypedDict):
    """A curve of `hypsolve rent --curve`."""

    format: Annotated[Literal["hypsolve-rent-curve"], "Kind of the file."]
    version: Annotated[Literal[1], "Version of the format."]
    model: Annotated[str, "Name of the model."]
    machines: Annotated[str, "Name of the machines."]
    currency: Annotated[str, "Currency of the prices; empty: not stated."]
    requests_per_s: Annotated[float, "The rate that is asked for."]
    max_stages: Annotated[int, "Stages of a pipeline, at most."]
    points: Annotated[list[RentPointTable], "By rate."]
    offers: Annotated[list[OfferTable], "Those in use first."]
    stopped: Annotated[str, "What Ctrl-C left unfinished; empty: nothing."]
    interrupted: Annotated[bool, "Whether Ctrl-C ended the work."]


class MovedPipelineTable(TypedDict):
    """A pipeline of a new placement, and what happens until it serves."""

    stages: Annotated[list[StageTable], "In the order in which requests pass."]
    is_kept: Annotated[bool, "Whether it serves all the time, as in the earlier placement."]
    loads: Annotated[dict[str, int], "Bytes of weights that each machine loads for it."]
    interruption_s: Annotated[float, "Seconds until its machines have loaded all."]
    requests_per_s: Annotated[float | None, "Simulated; null: not simulated."]
    fluid_requests_per_s: Annotated[float, "Largest rate in the fluid model."]


class PlacementReplanFile(TypedDict):
    """The output of `hypsolve replan placement.json --machines M --json`."""

    format: Annotated[Literal["hypsolve-placement-replan"], "Kind of the file."]
    version: Annotated[Literal[1], "Version of the format."]
    changes: Annotated[str, "What differs from what the earlier placement was made for."]
    moved_bytes: Annotated[dict[str, int], "Bytes of weights that each machine loads."]
    move_s: Annotated[float, "Seconds of the machine that loads the longest."]
    max_move_bytes: Annotated[float | None, "Limit on the bytes in all; null: none."]
    max_move_s: Annotated[float | None, "Limit on the seconds of a machine; null: none."]
    before_per_s: Annotated[float | None, "Requests per second before, simulated."]
    during_per_s: Annotated[float, "Those of the pipelines that serve all the time."]
    after_per_s: Annotated[float, "Those of the new placement, simulated."]
    fluid_per_s: Annotated[float, "Rate of the new placement in the fluid model."]
    fluid_bound: Annotated[
        float | None, "No placement within the limits carries more there; null: not known."
    ]
    best_fluid_per_s: Annotated[
        float, "Largest rate there of the placements that were found within the limits."
    ]
    gap: Annotated[float | None, "1 - fluid_per_s / fluid_bound; null: not known."]
    free_per_s: Annotated[
        float | None, "Rate there of the best placement found without limits."
    ]
    is_proved: Annotated[bool, "Whether no placement within the limits carries more there."]
    is_complete: Annotated[bool, "Whether pipelines of all lengths were searched."]
    stopped_pipelines: Annotated[
        list[list[StageTable]], "Pipelines of the earlier placement that stop, by their stages."
    ]
    pipelines: list[MovedPipelineTable]
    stopped: Annotated[str, "What Ctrl-C left unfinished; empty: nothing."]
    interrupted: Annotated[bool, "Whether Ctrl-C ended the work."]
    placement: PlacementFile

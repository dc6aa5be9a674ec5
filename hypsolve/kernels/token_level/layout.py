"""Arrays of the token-level simulator: records, `Setup`, `State`, and the constants in them."""

from typing import NamedTuple

import numpy as np

NIL = -1  # end of a list; no node; no choice
UNLIMITED = 1 << 62  # a limit that is none
STRANDED = -2  # node of a request that waits for one to be up

DONE, GROW, CHOOSE, PAUSE = 0, 1, 2, 3  # why `run` returns
ITERATION_END, CHURN, RETURN, DECODE, REACH = 0, 1, 2, 3, 4  # kinds of events, in this order
SHIFT = 1 << 48  # code of an event: kind * SHIFT + node or request
FAILURE, RECOVERY = 0, 1  # kinds of churn

N_BINS = 256
BUSY, JOBS, WAITING, HELD = np.int64(0), np.int64(1), np.int64(2), np.int64(3)  # rows of bins
N_ROWS = 4

# policies, besides those of `hypsolve.kernels.dispatch`
ASSIGNED = 7  # replays `Setup.assigned`
PYTHON = 8  # a function in Python chooses

# places in `State.counts` and `State.clock`
N_EVENTS, NEXT_ARRIVAL, NEXT_CHURN, N_TOUCHED, N_LOGGED, N_VISITS = range(6)
CHOICE_FOR, CHOICE, BUDGET, N_ENDED, N_SENT = range(6, 11)
N_COUNTS = 11
NOW, ORIGIN, WIDTH, LAST_END = range(4)

REQUEST = np.dtype(
    [
        ("next", "i8"),  # request whose decode token is next in the chain
        ("pipe", "i8"),  # its pipeline in a placement, once it is routed
        ("attempt", "i8"),
        ("restarts", "i8"),
        ("preemptions", "i8"),
        ("prompt", "i8"),
        ("output", "i8"),
        ("believed", "i8"),  # output tokens that policies assume
        ("delivered", "i8"),
        ("prefill", "i8"),  # tokens of the first pass of this attempt
        ("lost", "i8"),  # tokens computed in vain
        ("rank", "i8"),  # position by arrival
        ("ready_s", "f8"),  # when its decode token began to wait
        ("first_token_s", "f8"),
        ("end_s", "f8"),
    ],
    align=True,
)
PLACE = np.dtype(  # one request at one active stage
    [
        ("node", "i8"),
        ("resident", "i8"),  # 1: it is in the list of residents of its node
        ("behind", "i8"),  # next in the admission queue, then in the prefill queue
        ("batch_behind", "i8"),  # next prompt of the running iteration
        ("resident_next", "i8"),
        ("resident_before", "i8"),
        ("arrived", "i8"),  # prompt tokens
        ("computed", "i8"),  # tokens in the KV cache
        ("taken", "i8"),  # tokens in the running iteration
        ("held", "i8"),  # KV tokens
        ("ready_s", "f8"),  # when its prompt tokens began to wait
        ("sent_s", "f8"),  # when the last chunk sent to it arrives
        ("reached_s", "f8"),
        ("admitted_s", "f8"),
        ("left_s", "f8"),
    ],
    align=True,
)
NODE = np.dtype(
    [
        ("stage", "i8"),  # active stage; NIL: the node cannot hold it
        ("span", "i8"),  # its range of blocks, see `Setup`
        ("pipe", "i8"),  # its pipeline in a placement; else 0
        ("is_last", "i8"),  # 1: it holds the last stage
        ("kind", "i8"),  # GPU class
        ("up", "i8"),
        ("capacity", "i8"),  # KV tokens
        ("held", "i8"),  # KV tokens that requests hold
        ("queued", "i8"),  # KV tokens that the admission queue needs
        ("n_jobs", "i8"),  # residents whose work here is not complete
        ("n_waiting", "i8"),  # residents that wait for KV cache
        ("admission_head", "i8"),
        ("admission_tail", "i8"),
        ("prefill_head", "i8"),
        ("prefill_tail", "i8"),
        ("decode_head", "i8"),
        ("decode_tail", "i8"),
        ("decode_mark", "i8"),  # last queued one that has waited for longer than the tail
        ("batch_decode", "i8"),  # heads of the running iteration
        ("batch_prefill", "i8"),
        ("batch_size", "i8"),
        ("running", "i8"),
        ("run_id", "i8"),  # a failure raises it, and so voids the end of an iteration
        ("touched", "i8"),  # 1: to be looked at when this instant is over
        ("resident_head", "i8"),
        ("n_iterations", "i8"),
        ("n_tokens", "i8"),
        ("speed_at", "i8"),  # its current piece of `Setup.speed`
        ("speed_end", "i8"),
        ("outstanding_s", "f8"),
        ("slowdown", "f8"),  # measured, a moving average
        ("start_s", "f8"),
        ("nominal_s", "f8"),  # length of the iteration at speed 1
        ("busy_s", "f8"),
        ("seen_s", "f8"),  # its bins are filled up to here
    ],
    align=True,
)
ROUTE = np.dtype(  # a pipeline of a placement, as the router sees it
    [
        ("n_stages", "i8"),
        ("n_down", "i8"),  # nodes that are down
        ("n_jobs", "i8"),  # requests whose work is not complete
        ("outstanding_s", "f8"),
        ("free", "i8"),  # KV tokens that are neither held nor queued for, at the last choice
        ("work_s", "f8"),  # expected seconds of work left, at the last choice
    ],
    align=True,
)
LINK = np.dtype(
    [
        ("token_bytes", "f8"),
        ("latency_s", "f8"),
        ("free_s", "f8"),
        ("rate_at", "i8"),
        ("rate_end", "i8"),
    ],
    align=True,
)
EVENT = np.dtype(
    [("time_s", "f8"), ("code", "i8"), ("head", "i8"), ("stage", "i8"), ("detail", "i8")],
    align=True,
)
PART = np.dtype(  # the blocks of one kind in a stage
    [
        ("count", "f8"),
        ("flops_per_token", "f8"),
        ("flops_per_pair", "f8"),
        ("always_read_bytes", "f8"),
        ("gathered_bytes", "f8"),
        ("experts_bytes", "f8"),
        ("idle_share", "f8"),  # of the experts, in a pass of one token
        ("kv_bytes", "f8"),
        ("activation_bytes", "f8"),
        ("window", "i8"),  # its place in `Setup.windows`
        ("last_token_only", "i8"),
        ("collectives", "f8"),  # all-reduces
        ("collective_bytes", "f8"),  # of each, per computed token
    ],
    align=True,
)
GPU = np.dtype(  # a GPU, or several that compute as one
    [
        ("t0_s", "f8"),
        ("flops_per_s", "f8"),
        ("bytes_per_s", "f8"),
        ("kv_copies", "f8"),
        ("is_group", "i8"),  # 1: blocks add all-reduces, whose seconds the other fields give
        ("switch_bytes", "f8"),
        ("small_s", "f8"),
        ("small_s_per_byte", "f8"),
        ("large_s", "f8"),
        ("large_s_per_byte", "f8"),
        ("is_linear", "i8"),  # 1: blocks take the seconds of `Setup.cost`
    ],
    align=True,
)
COST = np.dtype(  # a part on a GPU class, as in `hypsolve.problem.step_costs`
    [
        ("fixed_s", "f8"),
        ("mixed_s", "f8"),
        ("compute_token_s", "f8"),
        ("read_s", "f8"),
        ("experts_s", "f8"),
        ("memory_token_s", "f8"),
        ("token_s", "f8"),
        ("prompt_pair_s", "f8"),
        ("prompt_kv_s", "f8"),
        ("decode_pair_s", "f8"),
        ("collectives", "f8"),
    ],
    align=True,
)
CHURNED = np.dtype([("time_s", "f8"), ("kind", "i8"), ("node", "i8")], align=True)
VISIT = np.dtype(
    [
        ("request", "i8"),
        ("node", "i8"),
        ("start_s", "f8"),
        ("end_s", "f8"),
        ("tokens", "i8"),
        ("context", "i8"),
    ],
    align=True,
)


class Setup(NamedTuple):
    """Inputs of a simulation, which do not change.

    A span is a range of blocks that nodes hold as their stage, with the links that lead there.
    Without a placement there is one for each active stage. In a placement each pipeline has
    its own, one behind the other.
    """

    policy: int
    max_num_seqs: int
    chunk_tokens: int
    contention: bool
    bandwidth_bound: bool  # roofline; False: cost model ``flops``
    record_visits: bool
    n_stages: int  # of the longest pipeline
    max_num_batched_tokens: int
    micro_batch_tokens: int
    iteration_s: float  # on the host, per iteration or batch
    paged: bool
    kv_block_tokens: int
    slot_tokens: int
    n_users: int  # 0: no closed loop
    think_time_s: float
    n_slots: int  # batches that are in flight in a pipeline at most; the most of all pipelines
    return_s: np.ndarray  # (n_pipelines or 1,) from the last stage back to the first one
    delivery_s: np.ndarray  # and from the first stage to the request side, over empty tiers
    order: np.ndarray  # (n_requests,) requests by arrival
    part: np.ndarray  # PART of all spans
    part_start: np.ndarray  # (n_spans + 1,)
    windows: np.ndarray  # distinct attention windows; inf: no window
    gpu: np.ndarray  # GPU by class
    cost: np.ndarray  # COST, (n_classes, n_parts); zeros where not `is_linear`
    hop_first: np.ndarray  # (n_spans,) links before each span
    hop_end: np.ndarray
    eligible: np.ndarray  # nodes of all active stages
    eligible_start: np.ndarray  # (n_stages + 1,)
    speed_s: np.ndarray  # pieces of all nodes: when each begins
    speed: np.ndarray  # and its speed
    rate_s: np.ndarray  # pieces of all links: when each begins
    rate: np.ndarray  # and its bytes per second
    churn: np.ndarray  # CHURNED by time
    expected_s: np.ndarray  # (n_requests or 1, n_spans, n_classes), sums are exact
    prefill_s: np.ndarray  # part of `expected_s` in the prefill
    uniforms: np.ndarray  # (n_stages, n_requests or 0, 2)
    assigned: np.ndarray  # (n_requests or 0, n_stages); pipelines: (n_requests or 0, 1)
    member: np.ndarray  # (n_pipelines or 0, n_stages) nodes of the pipelines; NIL: no stage
    own_s: np.ndarray  # (n_requests or 1, n_pipelines or 0) sums of `expected_s`


class State(NamedTuple):
    """Variables of a simulation."""

    requests: np.ndarray  # REQUEST
    places: np.ndarray  # PLACE, at request * n_stages + stage
    nodes: np.ndarray  # NODE
    pipes: np.ndarray  # ROUTE of the pipelines of a placement; else none
    links: np.ndarray  # LINK
    stranded: np.ndarray  # (n_stages,) heads of lists through `behind`
    n_stranded: np.ndarray  # (n_stages,) lengths of these lists
    stranded_seen_s: np.ndarray  # (n_stages,) their bins are filled up to here
    dispatched: np.ndarray  # (n_stages,) requests dispatched so far
    touched: np.ndarray  # (n_nodes,) nodes to be looked at, the first N_TOUCHED
    gone: np.ndarray  # (n_requests,) bool, scratch
    sums: np.ndarray  # (n_windows, 3) scratch
    bins: np.ndarray  # (N_ROWS, n_nodes + n_stages, N_BINS); of a stage: stranded, in WAITING
    counts: np.ndarray  # (N_COUNTS,)
    clock: np.ndarray  # (4,) seconds
    arrival_s: np.ndarray  # (n_requests,); with closed loop, the first N_SENT are known


def records(n, dtype):
    """Return `n` records of zeros; their fields are attributes, compiled or not."""
    return np.zeros(n, dtype).view(np.recarray)

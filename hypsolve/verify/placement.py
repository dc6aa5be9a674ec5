"""Verification of a saved placement: its rules, and its rates in the fluid model.

*What is verified.* The file of a `PlacementPlan` states the placement that is served, and
others that were simulated. Each of them must keep the rules: all blocks once and in order in
every pipeline, machines of the fleet, each GPU in one stage, degrees that the runtime, the
interconnect and the model allow, pins, machines that must not serve together, links, weights
and KV cache that fit, and bytes on links between sites and on uplinks. Its pipelines must carry
the loads that it states. Of the placement that is served, the largest rate of each pipeline and
its latencies in the fluid model are confirmed, and shares, prices, idle GPUs and unused
machines are counted again.

*How.* Rules are written again here from their definitions; no solver and no code of
`hypsolve.check_placement` takes part. Rates are computed from the arrays of each pipeline in
whole multiples of 2**-200, rounded up, as `hypsolve.verify.serving` does. A largest rate must
be carried, less 1e-9 of it, and 1e-6 more must not be.

*What is not.* Nothing is said about simulations: their rates, times and answers stay claims.
That no placement passes `fluid_bound`, and no schedule `bound_requests_per_s`, has no
certificate; only their arithmetic is checked. `placement_not_covered` lists all such fields.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from hypsolve.problem.fleet import Machine
from hypsolve.problem.network import Link
from hypsolve.problem.placement import DegreeRule, PlacementObjective, PlacementProblem
from hypsolve.problem.runtime import Batching
from hypsolve.verify import hold_chain
from hypsolve.verify.directed import ONE
from hypsolve.verify.iterations import Server
from hypsolve.verify.level_ranges import cycles_that_carry
from hypsolve.verify.reading import LARGEST, Refuted, need

FORMAT, VERSION = "hypsolve-placement", 1
CARRIED = Fraction(1, 10**9)  # relative amount by which a rate may be rounded up
MORE = Fraction(1, 10**6)  # relative amount above a largest rate that must not be carried
CLOSE = Fraction(1, 10**6)  # relative rounding of latencies
SAME = 1e-9  # relative difference of two sums in different orders
OPTIMAL = 1.01e-6  # largest gap of an optimal result, with rounding

NOT_COVERED = (
    "answer", "currency", "given", "interrupted", "pipelines.bound_requests_per_s",
    "pipelines.limit",
    "pipelines.max_sequences", "pipelines.requests_per_s", "pipelines.tpot_s",
    "pipelines.ttft_s", "reasons", "requests", "seed", "solve_time_s", "stopped",
    "think_time_s", "throughput.bound_requests_per_s", "throughput.fluid_bound",
    "throughput.is_lower_bound", "throughput.n_requests",
    "throughput.pipelines_bound_requests_per_s", "throughput.placements.origin",
    "throughput.placements.simulated_requests_per_s", "throughput.quantity",
    "throughput.simulated_requests_per_s", "time_limit_s", "unused.gain_per_s",
    "unused.machines (that the runtime cannot use)", "unused.reason", "unused.why", "users",
    "weights",
)  # fmt: skip
"""Fields that the check does not cover, or of which it checks the arithmetic alone."""


class Stage(NamedTuple):
    """A stage of a pipeline in the file."""

    machine: str
    gpus: int
    start: int
    stop: int


Stages = tuple[Stage, ...]


def placement_not_covered(table: Mapping[str, Any]) -> list[str]:
    """Return the fields of a verified placement that the check does not cover."""
    if not table.get("pipelines"):
        return sorted({*table} - {"format", "version", "digest", "pipelines", "throughput"})
    lengths = ["output_tokens", "prompt_tokens"] if table.get("requests") else []
    return sorted([*NOT_COVERED, *lengths])


def verify_placement(problem: PlacementProblem, table: Any) -> str:
    """Verify the file of a placement, and return a sentence that states what is proved.

    Parameters
    ----------
    problem : PlacementProblem
        The problem that it answers; see `hypsolve.planning.placement_file`.
    table : dict
        As `PlacementPlan.to_dict` returns it.

    Raises
    ------
    Refuted
        With the first claim that does not hold.
    ValueError
        If `table` is no placement, or nothing can be verified.
    """
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise ValueError("not a placement, as hypsolve place --save writes it")
    version = table.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(f"placement: version must be {VERSION}, got {version!r:.60}")
    _check_query(problem, table)
    if not _list("pipelines", table.get("pipelines")):
        need(table.get("throughput") is None, "throughput: there must be none")
        need(
            table.get("status") not in ("optimal", "feasible"), "status: there is no placement"
        )
        return "nothing: the file has no placement, and that there is none has no certificate"
    try:
        return _Check(problem, table).run()
    except Refuted:
        if problem.objective is not PlacementObjective.GOODPUT:
            raise
        relaxed = problem.replace(objective=PlacementObjective.THROUGHPUT)
        found = _Check(relaxed, table).run()
        return f"{found}; no target counts there, since none was met"


def _check_query(problem: PlacementProblem, table: dict[str, Any]) -> None:
    """Refute a file that is not about the problem."""
    name = table.get("machines")
    need(isinstance(name, str) and name, "machines: must be a name")
    named = dataclasses.replace(problem.fleet, name=str(name))
    same = problem.replace(fleet=named).digest() == table.get("digest")
    need(same, "digest: of another model, other machines or another query")
    need(table.get("model") == problem.model.name, "model: it is", problem.model.name)
    need(table.get("runtime") == problem.runtime.to_dict(), "runtime: it has other values")
    need(
        table.get("objective") == str(problem.objective), "objective: it is", problem.objective
    )
    for field in ("ttft_slo_s", "tpot_slo_s", "max_stages"):
        value = getattr(problem, field)
        same = table.get(field) == value and type(table.get(field)) is not bool
        need(same, f"{field}: it is", value)
    if table.get("users") is None:
        rate = problem.requests_per_s
        need(table.get("rate_per_s") == rate, "rate_per_s: it is", rate)
    if table.get("requests") is None:
        for field in ("prompt_tokens", "output_tokens"):
            tokens = set(getattr(problem.requests, field).tolist())
            need({table.get(field)} == tokens, f"{field}: they are", sorted(tokens)[:5])


class _Check:
    """The check of a file that has a placement."""

    def __init__(self, problem: PlacementProblem, table: dict[str, Any]) -> None:
        self.problem, self.table = problem, table
        self.machines = {machine.name: machine for machine in problem.fleet.machines}
        self._servers: dict[tuple[object, ...], Server] = {}
        self._carried: dict[tuple[object, ...], bool] = {}

    def run(self) -> str:
        """Check all claims and return what they are."""
        table = self.table
        throughput = _table("throughput", table.get("throughput"))
        listed = _list("throughput.placements", throughput.get("placements"))
        need(listed, "throughput.placements: must not be empty")
        rates = []
        for n, each in enumerate(listed):
            rates.append(self._listed(f"throughput.placements[{n}]", each))
        served = _list("pipelines", table.get("pipelines"))
        stages = [self._stages(f"pipelines[{p}]", each) for p, each in enumerate(served)]
        first = [
            self._stages("throughput.placements[0]", each) for each in listed[0]["pipelines"]
        ]
        need(stages == first, "pipelines: must be those of throughput.placements[0]")
        largest = [
            self._pipeline(f"pipelines[{p}]", of_each, _table(f"pipelines[{p}]", each))
            for p, (of_each, each) in enumerate(zip(stages, served, strict=True))
        ]
        self._check_rates(throughput, served, rates)
        self._check_bound(throughput, listed, rates)
        self._check_machines(throughput, stages)
        runs = [(rate, len([*same])) for rate, same in itertools.groupby(largest)]
        listed_rates = ", ".join(
            f"{n} x {rate:.6g}" if n > 1 else f"{rate:.6g}" for rate, n in runs
        )
        others = len(listed) - 1
        also = f"; so do {others} other placements" if others > 1 else ""
        also = "; so does 1 other placement" if others == 1 else also
        return (
            f"the placement keeps the rules and carries {rates[0]:.6g} requests/s{also}; its"
            f" pipelines carry at most {listed_rates}, in the fluid model"
            f" ({self.problem.runtime.batching} batching; means, no simulation)"
        )

    # rules

    def _listed(self, where: str, given: Any) -> float:
        """Check a placement that was simulated, and return the rate that it carries."""
        table = _table(where, given)
        pipelines = _list(f"{where}.pipelines", table.get("pipelines"))
        need(pipelines, f"{where}.pipelines: must not be empty")
        placed: list[tuple[Stages, Fraction]] = []
        for p, each in enumerate(pipelines):
            at = f"{where}.pipelines[{p}]"
            stages = self._stages(at, each)
            load = Fraction(_number(f"{at}.requests_per_s", each.get("requests_per_s")))
            self._check_pipeline(at, stages)
            if load:
                need(self._carries(stages, load * (1 - CARRIED)),
                     f"{at}.requests_per_s: it is not carried")  # fmt: skip
            placed.append((stages, load))
        self._check_gpus(where, [stages for stages, _ in placed])
        self._check_links(where, placed)
        total = sum((load for _, load in placed), Fraction(0))
        rate = _number(f"{where}.fluid_requests_per_s", table.get("fluid_requests_per_s"))
        need(_same(rate, float(total)), f"{where}.fluid_requests_per_s: it is", float(total))
        asked = self.problem.requests_per_s
        if self.problem.objective.needs_rate and asked is not None:
            need(total >= Fraction(asked) * (1 - CARRIED), f"{where}: must carry", asked)
        return rate

    def _stages(self, where: str, given: Any) -> Stages:
        rows = _list(f"{where}.stages", _table(where, given).get("stages"))
        need(rows, f"{where}.stages: must not be empty")
        found = []
        for s, row in enumerate(rows):
            at = f"{where}.stages[{s}]"
            table = _table(at, row)
            blocks = _list(f"{at}.blocks", table.get("blocks"))
            need(len(blocks) == 2, f"{at}.blocks: must be two numbers")
            for value in (*blocks, table.get("gpus")):
                need(type(value) is int and value >= 0, f"{at}: must have whole numbers")
            name = table.get("machine")
            need(isinstance(name, str) and name in self.machines, f"{at}.machine: not known")
            found.append(Stage(str(name), table["gpus"], blocks[0], blocks[1]))
        return tuple(found)

    def _check_pipeline(self, where: str, stages: Stages) -> None:
        """Refute a pipeline that breaks a rule by itself."""
        problem, fleet = self.problem, self.problem.fleet
        at = 0
        for stage in stages:
            need(stage.start == at < stage.stop, f"{where}: blocks must be in order, each once")
            at = stage.stop
        need(
            at == problem.model.n_blocks, f"{where}: blocks must end at", problem.model.n_blocks
        )
        need(len(stages) <= problem.max_stages, f"{where}: more than", problem.max_stages,
             "stages")  # fmt: skip
        for stage in stages:
            machine, words = self.machines[stage.machine], "GPUs cannot compute as one"
            is_known = stage.gpus in self._degrees(machine)
            need(is_known, f"{where}: {machine.name}: {stage.gpus} {words}")
            site = machine.site
            for pin in fleet.pins:
                meets = max(stage.start, pin.start) < min(stage.stop, pin.stop)
                words = f"blocks {pin.start}:{pin.stop} must not be at {site}"
                need(not meets or site in pin.sites, f"{where}: {words}")
        if problem.degrees is DegreeRule.COMMON:
            need(len({s.gpus for s in stages}) == 1, f"{where}: must have one degree")
        used = {stage.machine for stage in stages}
        for apart in fleet.apart:
            need(len(used & apart) < 2, f"{where}: its machines must not serve together")
        for before, behind in itertools.pairwise((*stages, stages[0])):
            link = self._link(self.machines[before.machine], self.machines[behind.machine])
            need(len(stages) == 1 or link is not None,
                 f"{where}: no link from {before.machine} to {behind.machine}")  # fmt: skip
        server = self._server(stages)
        for k, stage in enumerate(stages):
            c, memory = server.nodes[k][0]
            room = server.room(c, memory, server.content(stage.start, stage.stop))
            need(
                room != 0,
                f"{where}: {stage.machine} has no room for {stage.start}:{stage.stop}",
            )

    def _degrees(self, machine: Machine) -> set[int]:
        """Return the numbers of GPUs that a stage may have."""
        node, model = machine.node, self.problem.model
        found = {1}
        if self.problem.degrees is DegreeRule.ONE or node.interconnect is None:
            return found
        heads, kv_heads = model.n_heads, model.n_kv_heads
        for degree in node.interconnect.degrees:
            if not 1 < degree <= node.gpus or not heads or not kv_heads:
                continue
            if heads % degree == 0 and (kv_heads % degree == 0 or degree % kv_heads == 0):
                found.add(degree)
        return found

    def _link(self, start: Machine, end: Machine) -> Link | None:
        return self.problem.fleet.site_link(start.site, end.site)

    def _check_gpus(self, where: str, placed: Sequence[Stages]) -> None:
        used: Counter[str] = Counter()
        for stages in placed:
            for stage in stages:
                used[stage.machine] += stage.gpus
        for name, n in used.items():
            has = self.machines[name].node.gpus
            need(n <= has, f"{where}: {name} has {has} GPUs, {n} are used")

    def _check_links(self, where: str, placed: Sequence[tuple[Stages, Fraction]]) -> None:
        """Refute loads that send more bytes over a shared link than it carries."""
        requests, blocks = self.problem.requests, self.problem.model.blocks
        tokens = [
            int(p) + int(o) - 1
            for p, o in zip(requests.prompt_tokens, requests.output_tokens, strict=True)
        ]
        mean = Fraction(sum(tokens), len(tokens))
        sent: dict[tuple[str, ...], Fraction] = defaultdict(Fraction)
        limits: dict[tuple[str, ...], Fraction] = {}
        for stages, load in placed:
            for before, behind in itertools.pairwise(stages):
                start, end = self.machines[before.machine], self.machines[behind.machine]
                size = load * mean * Fraction(blocks[before.stop - 1].output_bytes_per_token)
                for key, link in self._shared(start, end):
                    sent[key] += size
                    limits[key] = Fraction(link.bytes_per_s)
        for key, size in sent.items():
            need(
                size <= limits[key] * (1 + CARRIED), f"{where}: link {' '.join(key)}: too slow"
            )

    def _shared(self, start: Machine, end: Machine) -> Iterator[tuple[tuple[str, ...], Link]]:
        """Yield the links on the way that pipelines share."""
        if start.name == end.name:
            return
        between = self._link(start, end)
        if start.site != end.site and between is not None:
            yield (start.site, end.site), between
        if start.uplink is not None:
            yield ("out of", start.name), start.uplink
        if end.uplink is not None:
            yield ("into", end.name), end.uplink

    # the fluid model

    def _server(self, stages: Stages) -> Server:
        """Return the exact numbers of a pipeline, one node for each stage."""
        key = tuple((self.machines[s.machine].kind, s.machine, s.gpus) for s in stages)
        if key not in self._servers:
            groups = [(stage.machine, stage.gpus) for stage in stages]
            server = Server(self.problem.serving_instance(groups))
            if server.bends_up():
                raise ValueError(
                    "placement: collective operations must have (delta - beta) max(switch, 1)"
                    " <= alpha to be verified"
                )
            self._servers[key] = server
        return self._servers[key]

    def _carries(self, stages: Stages, rate: Fraction) -> bool:
        key = (stages, rate)
        if key not in self._carried:
            server, cuts = self._server(stages), _cuts(stages)
            if self.problem.runtime.batching is Batching.STAGE:
                self._carried[key] = not hold_chain.carries(server, cuts, rate)
            else:
                self._carried[key] = bool(cycles_that_carry(server, cuts, rate))
        return self._carried[key]

    def _pipeline(self, where: str, stages: Stages, table: dict[str, Any]) -> float:
        """Check the rate and the latencies of a pipeline that is served; return its rate."""
        most = _number(f"{where}.fluid_requests_per_s", table.get("fluid_requests_per_s"))
        exact = Fraction(most)
        need(most == 0 or self._carries(stages, exact * (1 - CARRIED)),
             f"{where}.fluid_requests_per_s: it is not carried")  # fmt: skip
        more = max(exact * (1 + MORE), MORE)
        need(not self._carries(stages, more), f"{where}.fluid_requests_per_s: more is carried")
        load = _number(f"{where}.load_per_s", table.get("load_per_s"))
        need(load <= most * (1 + SAME), f"{where}.load_per_s: above the largest rate")
        names = "fluid_ttft_s", "fluid_tpot_s"
        if not load:
            for name in names:
                need(table.get(name) is None, f"{where}.{name}: there is no load")
            return most
        lows, highs = self._latencies(stages, Fraction(load))
        for at, name in enumerate(names):
            claimed = Fraction(_number(f"{where}.{name}", table.get(name)))
            low, high = Fraction(lows[at], ONE), Fraction(highs[at], ONE)
            sound = low * (1 - CLOSE) <= claimed <= high * (1 + CLOSE)
            need(sound, f"{where}.{name}: it is {float(high):.9g}")
        return most

    def _latencies(
        self, stages: Stages, load: Fraction
    ) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Return bounds on the latencies at a load."""
        server, cuts = self._server(stages), _cuts(stages)
        low = load * (1 - CARRIED)
        if self.problem.runtime.batching is Batching.STAGE:
            return (
                hold_chain.latencies(server, cuts, float(low), False),
                hold_chain.latencies(server, cuts, float(load), True),
            )
        cycles = cycles_that_carry(server, cuts, low)
        need(cycles, "pipelines.load_per_s: it is not carried")
        return min(
            ((each.latencies(low, False), each.latencies(load, True)) for each in cycles),
            key=lambda pair: pair[0][2],
        )

    # sums

    def _check_rates(
        self, throughput: dict[str, Any], served: Sequence[Any], rates: Sequence[float]
    ) -> None:
        """Refute rates and shares that do not add up."""
        need(throughput.get("objective") == self.table["objective"], "throughput.objective")
        fluid = _number("throughput.fluid_requests_per_s",
                        throughput.get("fluid_requests_per_s"))  # fmt: skip
        need(_same(fluid, rates[0]), "throughput.fluid_requests_per_s: it is", rates[0])
        total = _number("throughput.simulated_requests_per_s",
                        throughput.get("simulated_requests_per_s"))  # fmt: skip
        shares = [_number(f"pipelines[{p}].share", each.get("share"))
                  for p, each in enumerate(served)]  # fmt: skip
        need(_same(sum(shares), 1.0), "pipelines: shares must add up to 1")
        for p, (share, each) in enumerate(zip(shares, served, strict=True)):
            where = f"pipelines[{p}].requests_per_s"
            need(_same(_number(where, each.get("requests_per_s")), share * total), where, "must"
                 " be its share of throughput.simulated_requests_per_s")  # fmt: skip
        limited = [each["load_per_s"] for each in served]
        loads = [load / share for load, share in zip(limited, shares, strict=True) if share]
        most = max(loads, default=0.0)
        for p, (share, each) in enumerate(zip(shares, served, strict=True)):
            is_limited = _same(limited[p], each["fluid_requests_per_s"])
            sound = is_limited or _same(limited[p], share * most)
            need(sound, f"pipelines[{p}].load_per_s: must be its share of one rate")
        bounds = [each.get("bound_requests_per_s") for each in served]
        own = throughput.get("pipelines_bound_requests_per_s")
        if None in bounds:
            need(own is None, "throughput.pipelines_bound_requests_per_s: it is not known")
        else:
            known = sum(_number("pipelines.bound_requests_per_s", bound) for bound in bounds)
            same = _same(_number("throughput.pipelines_bound_requests_per_s", own), known)
            need(same, "throughput.pipelines_bound_requests_per_s: it is", known)
        bound, gap = throughput.get("bound_requests_per_s"), throughput.get("gap")
        if bound is None:
            need(gap is None, "throughput.gap: there is no bound")
            return
        limit = _number("throughput.bound_requests_per_s", bound)
        need(
            total <= limit * (1 + SAME), "throughput.simulated_requests_per_s: above its bound"
        )
        need(limit, "throughput.bound_requests_per_s: must be positive")
        need(type(gap) in (int, float), "throughput.gap: must be a number")
        true_gap = 1 - total / limit
        need(abs(float(gap or 0.0) - true_gap) <= SAME, "throughput.gap: it is", true_gap)

    def _check_bound(
        self, throughput: dict[str, Any], listed: Sequence[Any], rates: Sequence[float]
    ) -> None:
        """Refute a bound that a placement here passes, and a wrong gap or status."""
        status, method = self.table.get("status"), self.table.get("method")
        need(status in ("optimal", "feasible"), "status: there is a placement")
        at = next((n for n, each in enumerate(listed) if each.get("origin") == method), None)
        need(at is not None, "method: it has no placement in throughput.placements")
        assert at is not None
        bound, gap = throughput.get("fluid_bound"), throughput.get("fluid_gap")
        if bound is None:
            need(gap is None, "throughput.fluid_gap: there is no bound")
            need(status == "feasible", "status: not proved without a bound")
            return
        limit = _number("throughput.fluid_bound", bound)
        if self.problem.objective.needs_rate:
            values = [
                self._price(
                    {row["machine"] for line in each["pipelines"] for row in line["stages"]}
                )
                for each in listed
            ]
            sound = min(values) >= limit * (1 - OPTIMAL)
            need(sound, "throughput.fluid_bound: a placement here is cheaper")
            true_gap = 1 - limit / values[at] if values[at] > 0 else 0.0
        else:
            sound = max(rates) <= limit * (1 + OPTIMAL)
            need(sound, "throughput.fluid_bound: a placement here passes it")
            true_gap = 1 - rates[at] / limit if limit > 0 else 0.0
        claimed = _number("throughput.fluid_gap", gap)
        need(abs(claimed - max(true_gap, 0.0)) <= SAME, "throughput.fluid_gap: it is", true_gap)
        need(status != "optimal" or true_gap <= OPTIMAL, "status: not optimal")

    def _price(self, names: set[str]) -> float:
        return float(sum(Fraction(self.machines[name].price_per_hour) for name in names))

    def _check_machines(self, throughput: dict[str, Any], placed: Sequence[Stages]) -> None:
        """Refute prices, idle GPUs and unused machines that are not those of the pipelines."""
        used: Counter[str] = Counter()
        for stages in placed:
            for stage in stages:
                used[stage.machine] += stage.gpus
        price = self._price(set(used))
        claimed = _number("price_per_hour", self.table.get("price_per_hour"))
        need(_same(claimed, price), "price_per_hour: it is", price)
        idle = {name: self.machines[name].node.gpus - n for name, n in used.items()}
        idle = {name: n for name, n in idle.items() if n}
        need(self.table.get("idle_gpus") == idle, "idle_gpus: they are", idle)
        per_tokens = self.table.get("price_per_million_tokens")
        rate = throughput["simulated_requests_per_s"]
        if price and rate:
            tokens = float(self.problem.requests.output_tokens.mean())
            true = price / (rate * tokens * 3600) * 1e6
            same = _same(_number("price_per_million_tokens", per_tokens), true)
            need(same, "price_per_million_tokens: it is", true)
        else:
            need(per_tokens is None, "price_per_million_tokens: there is none")
        rows = [_table("unused", row).get("machines")
                for row in _list("unused", self.table.get("unused"))]  # fmt: skip
        names = [name for row in rows for name in _list("unused.machines", row)]
        need(len(set(names)) == len(names), "unused: a machine is there twice")
        need(not set(names) & set(used), "unused: a machine of a pipeline is there")
        lacking = set(self.machines) - set(used) - set(names)
        if self.table.get("interrupted") or not rows:
            return  # the search for reasons was cut off
        need(not lacking, "unused: it lacks", ", ".join(sorted(lacking)))


def _cuts(stages: Stages) -> list[int]:
    return [0, *(stage.stop for stage in stages)]


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= SAME * max(abs(a), abs(b))


def _table(where: str, value: Any) -> dict[str, Any]:
    need(isinstance(value, dict), f"{where}: must be a table")
    assert isinstance(value, dict)
    return value


def _list(where: str, value: Any) -> list[Any]:
    need(isinstance(value, list), f"{where}: must be a list")
    assert isinstance(value, list)
    return value


def _number(where: str, value: Any) -> float:
    need(type(value) in (int, float), f"{where}: must be a number")
    need(0 <= value <= LARGEST, f"{where}: must be at least 0 and finite")
    return float(value)

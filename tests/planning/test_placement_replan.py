"""`replan_placement`: exact against enumeration on small fleets, and what goes on serving."""

import dataclasses
import itertools
import json
import math
from functools import cache

import jsonschema
import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning import placement_moves, placement_replan
from hypsolve.planning.json_schema import schema
from hypsolve.planning.place_simulation import PlacementSimulator
from hypsolve.planning.placement_file import SavedPlacement
from hypsolve.planning.placement_moves import FewBytesSearch
from hypsolve.problem.serving_evaluation import check_serving
from hypsolve.verify import verify
from tests.helpers.fleets import fleet, machine, toy_gpu, toy_machine, toy_model

N_BLOCKS = 5
SIZES = [90_000_000, 100_000_000, 100_000_000, 100_000_000, 130_000_000]


def model():
    """Blocks of different sizes."""
    toy = toy_model(N_BLOCKS)
    blocks = tuple(
        hs.Block(
            kind=f"layer {size}", weight_bytes=size, flops_per_token=1e9,
            kv_bytes_per_token=10_000, output_bytes_per_token=1000,
        )
        for size in SIZES
    )  # fmt: skip
    return hs.Model(name=toy.name, blocks=blocks)


def problem_of(machines, **more):
    return hs.PlacementProblem(
        model=model(), fleet=fleet(*machines), requests=hs.Requests([0.0], [64], [16]), **more
    )


def two_cards(name, speed, memory):
    """A machine of two GPUs; the toy model has no heads to share, so each computes alone."""
    gpu = toy_gpu(f"toy {speed:g} {memory:g}", speed, memory)
    links = hs.interconnect("nvlink4", "h100")
    return hs.Machine(node=hs.Node(name=name, gpu=gpu, gpus=2, interconnect=links), site="room")


def enumerated(problem, before, max_bytes):
    """The largest rate of all placements of single GPUs that load few bytes.

    GPUs are numbered; the ones of a machine may swap what they hold.
    """
    fleet_ = problem.fleet
    cards = [(m.name, n) for m in fleet_.machines for n in range(m.node.gpus)]
    held = {}
    for stage in (stage for pipeline in before.pipelines for stage in pipeline.stages):
        held.setdefault(stage.machine, []).append(range(stage.start, stage.stop))

    @cache
    def rate(groups, cuts):
        instance = problem.serving_instance(groups)
        partition = hs.Partition(cuts)
        if check_serving(instance, partition):
            return 0.0
        return hs.evaluate_serving(instance, partition).fluid_requests_per_s

    def splits(names):
        groups = tuple((name, 1) for name in names)
        for inner in itertools.combinations(range(1, N_BLOCKS), len(names) - 1):
            cuts = (0, *inner, N_BLOCKS)
            if (found := rate(groups, cuts)) > 0:
                yield (
                    found,
                    [
                        (name, range(i, j))
                        for name, (i, j) in zip(names, itertools.pairwise(cuts), strict=True)
                    ],
                )

    def loads(stages):
        """Fewest bytes: each machine assigns what it holds to its stages in the best way."""
        total = 0
        for name in {name for name, _ in stages}:
            new = [blocks for other, blocks in stages if other == name]
            n_cards = fleet_.machine(name).node.gpus
            old = [*held.get(name, []), *[range(0)] * n_cards][:n_cards]
            total += min(
                sum(
                    sum(SIZES[b] for b in blocks if b not in kept)
                    for blocks, kept in zip(new, order, strict=False)
                )
                for order in itertools.permutations(old, len(new))
            )
        return total

    best = 0.0

    def search(free, total, stages):
        nonlocal best
        if total > best and loads(stages) <= max_bytes:
            best = total
        if not free:
            return
        first, *rest = free  # the first free card is in a pipeline, or in none
        search(rest, total, stages)
        for n in range(min(len(rest), problem.max_stages - 1) + 1):
            for others in itertools.combinations(rest, n):
                left = [card for card in rest if card not in others]
                for order in set(
                    itertools.permutations([name for name, _ in (first, *others)])
                ):
                    for found, own in splits(order):
                        search(left, total + found, stages + own)

    search(cards, 0.0, [])
    return best


LABS = {
    "a machine left": (
        [toy_machine("a", 1.0, 4e8), toy_machine("b", 2.0, 3e8), toy_machine("c", 1.5, 9e8)],
        [toy_machine("a", 1.0, 4e8), toy_machine("c", 1.5, 9e8)],
    ),
    "a machine joined": (
        [toy_machine("a", 1.0, 4e8), toy_machine("b", 2.0, 3e8)],
        [toy_machine("a", 1.0, 4e8), toy_machine("b", 2.0, 3e8), toy_machine("d", 1.0, 9e8)],
    ),
    "one for another": (
        [toy_machine("a", 1.0, 4e8), toy_machine("b", 1.0, 4e8), toy_machine("c", 3.0, 6e8)],
        [toy_machine("a", 1.0, 4e8), toy_machine("d", 1.0, 4e8), toy_machine("c", 3.0, 6e8)],
    ),
    "two GPUs": (
        [two_cards("box", 1.0, 4e8), toy_machine("b", 2.0, 3e8)],
        [two_cards("box", 1.0, 4e8), toy_machine("d", 2.0, 6e8)],
    ),
}


@pytest.mark.parametrize("lab", LABS)
@pytest.mark.parametrize("batching", ["stage", "pipeline"])
def test_exact_against_enumeration(lab, batching):
    """For every limit, rate and bound of the search are those of all placements."""
    machines, now = LABS[lab]
    runtime = hs.runtime("ideal", max_num_seqs=16, batching=batching)
    before = hs.solve(problem_of(machines, runtime=runtime), "placement_highs").placement
    problem = problem_of(now, runtime=runtime)
    assert before is not None
    rates = []
    for mb in (0, 90, 130, 200, 330, 520, 1000, 9000):
        found = FewBytesSearch(problem, before, max_bytes=mb * 1e6).run()
        best = enumerated(problem, before, mb * 1e6)
        assert found.requests_per_s == pytest.approx(best, rel=2e-6, abs=1e-9)
        assert best <= found.bound_per_s * (1 + 1e-9) or best == 0
        assert found.bound_per_s <= best * (1 + 2e-6)
        rates.append(best)
        moved = sum(size for own in found.loads for size in own.values())
        assert moved <= mb * 1e6 * (1 + 1e-9)
        if found.placement is not None:
            assert not hs.check_placement(problem, found.placement)
    assert rates == sorted(rates)
    assert rates[0] < rates[-1] or lab == "a machine left"


@pytest.mark.parametrize("seed", range(4))
def test_random_placements_against_enumeration(seed):
    """The earlier placement need not be a good one, nor fit the machines of today."""
    rng = np.random.default_rng(seed)
    machines = [
        (two_cards if rng.random() < 0.3 else toy_machine)(
            name, float(rng.choice([1.0, 2.0])), float(rng.choice([2e8, 3e8, 4e8, 7e8]))
        )
        for name in ("a", "b", "c")[: 2 + seed % 2]
    ]
    cuts = sorted(rng.choice(np.arange(1, N_BLOCKS), 2, replace=False).tolist())
    names = rng.choice(["a", "b", "gone"], 3, replace=False)
    stages = tuple(
        hs.PlacedStage(str(name), 1, int(i), int(j))
        for name, (i, j) in zip(names, itertools.pairwise([0, *cuts, N_BLOCKS]), strict=True)
    )
    before = hs.Placement((hs.Pipeline(stages, 1.0),))
    problem = problem_of(machines, max_stages=3)
    for mb in rng.uniform(0, 1200, 4):
        found = FewBytesSearch(problem, before, max_bytes=mb * 1e6).run()
        best = enumerated(problem, before, mb * 1e6)
        assert found.requests_per_s == pytest.approx(best, rel=2e-6, abs=1e-9)
        assert found.bound_per_s <= best * (1 + 2e-6)


def test_seconds_limit_each_machine():
    """A machine behind a slow uplink loads little; others load at the same time."""
    slow = hs.Link(bytes_per_s=1e8, latency_s=1e-4)
    before = hs.Placement((hs.Pipeline((hs.PlacedStage("old", 1, 0, N_BLOCKS),), 1.0),))
    machines = [toy_machine("d", 1.0, 9e8), toy_machine("e", 1.0, 9e8, uplink=slow)]
    problem = problem_of(machines)
    one = sum(SIZES) / 1.25e9  # over the link of the room
    for seconds, n in ((0.9 * one, 0), (1.01 * one, 1), (sum(SIZES) / 1e8 * 1.01, 2)):
        found = FewBytesSearch(problem, before, max_seconds=seconds).run()
        whole = [own for own in found.loads if sum(own.values()) == sum(SIZES)]
        for own in found.loads:
            for name, size in own.items():
                assert size / (1.25e9 if name == "d" else 1e8) <= seconds * (1 + 1e-9)
        assert len(whole) == n or found.placement is None


def test_few_bindings_say_so():
    machines, now = LABS["one for another"]
    before = hs.solve(problem_of(machines), "placement_highs").placement
    found = FewBytesSearch(problem_of(now), before, max_bindings=4).run()
    assert not found.is_complete and math.isinf(found.bound_per_s)


def test_a_pipeline_is_repaired_where_not_all_are_searched():
    """Even if no binding is searched, a machine takes the place of one that is gone."""
    _, now = LABS["one for another"]
    old = (hs.PlacedStage("c", 1, 0, 3), hs.PlacedStage("b", 1, 3, N_BLOCKS))
    before = hs.Placement((hs.Pipeline(old, 1.0),))
    found = FewBytesSearch(problem_of(now), before, max_bytes=3e8, max_bindings=0).run()
    assert not found.is_complete and found.placement is not None
    assert "c" in found.placement.machines


@pytest.mark.parametrize("names", list(itertools.permutations("abde")))
def test_of_equal_rates_the_one_that_serves_meanwhile(names):
    """Two pipelines of the largest rate can be mended from three halves; one way stops both."""
    first, second, other, _ = names
    split = ((0, 3), (3, N_BLOCKS))
    old = [
        hs.Pipeline(
            tuple(hs.PlacedStage(n, 1, *e) for n, e in zip(pair, split, strict=True)), 1.0
        )
        for pair in ((first, second), ("gone", other))
    ]
    machines = [toy_machine(name, 1.0, 3.2e8) for name in sorted(names)]
    found = FewBytesSearch(problem_of(machines), hs.Placement(tuple(old))).run()
    assert found.placement is not None and len(found.placement.pipelines) == 2
    assert old[0].stages in [each.stages for each in found.placement.pipelines]
    best = enumerated(problem_of(machines), hs.Placement(tuple(old)), math.inf)
    assert found.requests_per_s == pytest.approx(best, rel=2e-6)


def test_a_rate_that_is_larger_goes_before_one_that_is_served_meanwhile():
    """Ties are broken, and nothing else: a slow pipeline that serves all the time may stop."""
    old = (hs.PlacedStage("a", 1, 0, 2), hs.PlacedStage("b", 1, 2, N_BLOCKS))
    machines = [toy_machine("a", 1.0, 9e8), toy_machine("b", 1.0, 9e8)]
    before = hs.Placement((hs.Pipeline(old, 1.0),))
    found = FewBytesSearch(problem_of(machines), before).run()
    assert found.placement is not None
    assert old not in [each.stages for each in found.placement.pipelines]


def interrupted_at(monkeypatch, owner, name, at, is_repeated=False):
    """Raise KeyboardInterrupt in call number `at` of a function, and count its calls."""
    real, calls = getattr(owner, name), []

    def function(*arguments, **options):
        calls.append(name)
        if len(calls) == at or (is_repeated and len(calls) > at):
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, function)
    return calls


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6, 9])
def test_an_interrupted_search_keeps_its_bound(monkeypatch, at):
    """The answer is a placement within the limit, and the bound is true of all of them."""
    machines, now = LABS["one for another"]
    before = hs.solve(problem_of(machines), "placement_highs").placement
    best = enumerated(problem_of(now), before, 330e6)
    calls = interrupted_at(monkeypatch, placement_moves, "by_highs", at)
    found = FewBytesSearch(problem_of(now), before, max_bytes=330e6).run()
    assert found.is_interrupted == (at <= len(calls))
    assert found.placement is not None and not hs.check_placement(
        problem_of(now), found.placement
    )
    assert found.requests_per_s <= best * (1 + 1e-9) <= found.bound_per_s * (1 + 2e-9)
    assert sum(size for own in found.loads for size in own.values()) <= 330e6


def test_an_interrupt_before_all_pipelines_are_known_proves_nothing(monkeypatch):
    machines, now = LABS["one for another"]
    before = hs.solve(problem_of(machines), "placement_highs").placement
    interrupted_at(monkeypatch, FewBytesSearch, "_best", 4)
    found = FewBytesSearch(problem_of(now), before).run()
    assert found.is_interrupted and not found.is_complete and math.isinf(found.bound_per_s)


SHORT = {"prompt_tokens": 128, "output_tokens": 16, "time_limit_s": 15.0}


@pytest.fixture(scope="module")
def plan():
    return hs.place("llama-3-8b", fleet(machine("a"), machine("b"), machine("c")), **SHORT)


def test_pipelines_that_stay_serve_all_the_time(plan):
    now = fleet(machine("a"), machine("b"), machine("d", "a100-80gb"))
    again = hs.replan_placement(plan, now)
    assert [each.is_kept for each in again.pipelines].count(True) == 2
    assert list(again.moved_bytes) == ["d"] and again.stopped_pipelines == (
        (hs.PlacedStage("c", 1, 0, 34),),
    )
    size = hs.model("llama-3-8b").weight_bytes
    assert again.moved_bytes["d"] == size
    assert again.move_s == pytest.approx(size / 1.25e9)
    kept = [each for each in again.pipelines if each.is_kept]
    assert all(each.interruption_s == 0 and not each.loads for each in kept)
    assert again.during_per_s == pytest.approx(sum(each.requests_per_s for each in kept))
    assert again.before_per_s == plan.throughput.simulated_requests_per_s
    assert again.during_per_s < again.before_per_s < again.after_per_s
    assert again.is_proved and again.is_complete
    assert "without c and with d besides" in again.changes


def test_nothing_changes_if_machines_stay(plan):
    again = hs.replan_placement(plan.to_dict(), plan.query.fleet)
    assert not again.moved_bytes and not again.stopped_pipelines and again.changes == ""
    assert all(each.is_kept for each in again.pipelines)
    assert again.fluid_per_s == pytest.approx(plan.throughput.fluid_requests_per_s, rel=1e-6)


def test_without_moves_what_is_left_serves(plan):
    again = hs.replan_placement(plan, fleet(machine("a"), machine("d")), max_move_bytes=0)
    assert [str(each.stages[0]) for each in again.pipelines] == ["a 0:34"]
    assert again.after_per_s == again.during_per_s
    assert again.free_per_s > again.fluid_per_s * 1.5
    again = hs.replan_placement(plan, fleet(machine("d")), max_move_bytes=0)
    assert not again.fits and again.during_per_s == 0 and "no placement" in str(again)
    assert len(again.stopped_pipelines) == 3 and again.to_dict()["placement"]["pipelines"] == []


def test_the_new_placement_is_a_file_for_every_command(plan, tmp_path):
    now = fleet(machine("a"), machine("d", "a100-80gb"), machine("mac", "apple-m2-ultra"))
    again = hs.replan_placement(plan, now, max_move_s=60)
    path = tmp_path / "new.json"
    again.plan.save(path)
    table = json.loads(path.read_text())
    jsonschema.validate(table, schema("placement"))
    assert hs.load_placement(path, now).to_dict() == again.plan.to_dict()
    assert "keeps the rules" in verify(SavedPlacement.of(path).query(now).problem(), table)
    third = hs.replan_placement(path, now)
    assert not third.moved_bytes
    json.dumps(again.to_dict(), allow_nan=False)


NOW = fleet(machine("a"), machine("b"), machine("d", "a100-80gb"))


@pytest.mark.parametrize(
    ("owner", "name", "words"),
    [
        (placement_replan, "solve", "the search for placements was stopped"),
        (placement_moves, "by_highs", "the search for placements that load few bytes was"),
        (PlacementSimulator, "_brief_rate", "not all pipelines were simulated at length"),
    ],
)
def test_an_interrupt_leaves_the_best_so_far(plan, monkeypatch, owner, name, words):
    """It left nothing, wherever it came."""
    interrupted_at(monkeypatch, owner, name, 1)
    again = hs.replan_placement(plan, NOW)
    assert again.fits and again.interrupted and words in again.stopped
    assert str(again).startswith(f"stopped: {again.stopped}\n")
    table = again.to_dict()
    jsonschema.validate(table, schema("placement-replan"))
    assert table["interrupted"] and table["placement"]["interrupted"]
    share = sum(each["share"] for each in table["placement"]["pipelines"])
    assert share == pytest.approx(1)
    if owner is PlacementSimulator:
        assert again.after_per_s == 0 and table["pipelines"][0]["requests_per_s"] is None
        assert "left out of these rates, for want of a simulation: pipeline 1, " in str(again)
        assert all(each["share"] > 0 for each in table["placement"]["pipelines"])
    if name == "by_highs":
        assert again.is_proved and not again.is_complete  # by the search without limits


def test_pipelines_without_a_rate_are_left_out_of_the_sum(plan, monkeypatch):
    """One pipeline was simulated before the interrupt, and two others were not."""
    now = fleet(machine("a"), machine("d", "a100-80gb"), machine("e", "l40s"))
    interrupted_at(monkeypatch, PlacementSimulator, "_brief_rate", 2)
    again = hs.replan_placement(plan, now)
    known = [p.requests_per_s for p in again.pipelines if not math.isnan(p.requests_per_s)]
    assert len(known) == 1 and again.after_per_s == known[0] > 0
    assert again.plan.throughput.simulated_requests_per_s == pytest.approx(known[0])


def test_the_gap_is_printed_where_the_answer_is_not_proved(plan):
    again = dataclasses.replace(
        hs.replan_placement(plan, NOW, time_limit_s=5), fluid_per_s=8.0, fluid_bound=10.0
    )
    assert "no placement of these machines carries more than 10 there (gap 20.0%)" in str(again)
    assert again.to_dict()["gap"] == pytest.approx(0.2) and not again.is_proved


def test_a_seed_reaches_the_method_and_the_arrivals(plan, monkeypatch):
    seeds, real = [], placement_moves.by_highs
    monkeypatch.setattr(
        placement_moves, "by_highs", lambda *given: seeds.append(given[-1]) or real(*given)
    )
    again = hs.replan_placement(plan, NOW, seed=7)
    assert again.plan.query.seed == 7 and set(seeds) == {7}


def test_the_schema_is_that_of_the_record(plan):
    """Every field is required, and no other one is taken."""
    table = hs.replan_placement(plan, NOW).to_dict()
    check = jsonschema.Draft202012Validator(schema("placement-replan"))
    check.validate(json.loads(json.dumps(table, allow_nan=False)))
    assert not check.is_valid({**table, "more": 1}) and table["stopped_pipelines"]
    for name in table:
        assert not check.is_valid({key: of for key, of in table.items() if key != name}), name
    for rows in ("pipelines", "stopped_pipelines"):
        assert not check.is_valid({**table, rows: ["c 0:34"]})


def test_rented_machines_are_placed_for_a_rate():
    offers = fleet(machine("a", price_per_hour=1.0), machine("b", price_per_hour=1.0))
    rented = hs.rent("llama-3-8b", offers, rate_per_s=10, **SHORT)
    again = hs.replan_placement(rented, offers)
    assert again.plan.query.objective == "throughput" and len(again.pipelines) == 2


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"max_move_bytes": -1}, "replan: max_move_bytes must be"),
        ({"max_move_s": math.nan}, "replan: max_move_s must be"),
        ({"objective": "cost", "rate_per_s": 1}, "objective must be throughput or goodput"),
        ({"model": "llama-2-7b"}, "model must be that of the plan"),
        ({"max_moves": 3}, "unknown option 'max_moves'"),
    ],
)
def test_bad_arguments(plan, asked, words):
    with pytest.raises((ValueError, TypeError), match=words):
        hs.replan_placement(plan, fleet(machine("a")), **asked)


def test_random_limits_never_pass_the_bound(plan):
    """More may be loaded: the rate does not fall."""
    now = fleet(machine("a"), machine("d"), machine("e"))
    rates = []
    for gib in sorted(np.random.default_rng(0).uniform(0, 40, 4)):
        found = FewBytesSearch(
            plan.query.problem().replace(fleet=now), plan.placement, max_bytes=gib * 2**30,
        ).run()  # fmt: skip
        assert found.requests_per_s <= found.bound_per_s
        rates.append(found.requests_per_s)
    assert rates == sorted(rates)


def test_equal_pipelines_share_a_row(plan):
    """A fleet of 64 machines filled the screen with a row for each."""
    now = fleet(machine("a"), machine("b"), *(machine(f"new-{n}", "l40s") for n in range(4)))
    again = hs.replan_placement(plan, now)
    text = str(again)
    rows = [line for line in text.splitlines() if "all layers" in line]
    rows = [line for line in rows if not line.startswith("stops")]
    assert len(rows) == 2 and len(again.pipelines) == 6
    kept = next(row for row in rows if "serves all the time" in row)
    new = next(row for row in rows if "starts after" in row)
    assert "a, b" in kept and "2 x " in kept and "new-0 to 3" in new and "L40S" in new
    size = hs.model("llama-3-8b").weight_bytes
    assert f"4 x {size / 1e9:.3f} GB" in new and f"{size / 1.25e9:.4g} s" in new
    assert "stops: c (all layers)" in text
    none = hs.replan_placement(plan, fleet(machine("d")), max_move_bytes=0)
    assert "stops: 3 pipelines: a, b, c (all layers)" in str(none).replace("a to c", "a, b, c")


def test_the_placement_that_serves_most_in_simulation_is_taken(plan, monkeypatch):
    """Leave pipelines as they are where the fluid model overestimates those to load."""
    real = PlacementSimulator.rate

    def rate(self, placement, served, *given, **more):
        found = real(self, placement, served, *given, **more)
        factor = 0.2 if "d" in placement.machines else 1.0
        of_pipelines = tuple(factor * each for each in found.of_pipelines)
        return dataclasses.replace(
            found, requests_per_s=sum(of_pipelines), of_pipelines=of_pipelines
        )

    monkeypatch.setattr(PlacementSimulator, "rate", rate)
    again = hs.replan_placement(plan, NOW)
    assert sorted(again.plan.machines) == ["a", "b"] and not again.moved_bytes
    assert again.during_per_s == again.after_per_s > 0
    assert again.best_fluid_per_s > again.fluid_per_s and not again.is_proved
    words = f"; another one carries {again.best_fluid_per_s:.4g} there, and serves less in sim"
    assert words in str(again)
    served = [each.simulated_requests_per_s for each in again.plan.throughput.placements]
    assert len(served) == 2 and served[0] > served[1]
    jsonschema.validate(again.to_dict(), schema("placement-replan"))

"""Certificates of rates: what is so is confirmed, and no changed claim that is not."""

import copy
import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import hypsolve as hs
from hypsolve.problem.serving_evaluation import evaluate_serving, refusal
from hypsolve.verify import Refuted, hold_chain, level_ranges, verify
from hypsolve.verify.__main__ import main
from hypsolve.verify.directed import BITS, ONE, fixed, over, power, times
from hypsolve.verify.iterations import Server
from hypsolve.verify.roots import least_root
from hypsolve.verify.serving_claims import serving_not_covered
from tests.helpers.serving_oracles import (
    feasible_splits,
    mixed_lengths,
    random_serving,
    with_targets,
)
from tests.helpers.sizes import n_cases

MODES = ("stage", "pipeline", "serial")
N_DRAWN = n_cases(16, 40)


def solved(instance, **options):
    """Return the result of the exact method as JSON reads it."""
    result = hs.solve(instance, "throughput_exact", **options).to_dict()
    return json.loads(json.dumps(result, allow_nan=False))


def drawn(mode, seed, n):
    """Yield random servers; a third has targets or users, and a sixth mixed lengths."""
    rng = np.random.default_rng([seed, MODES.index(mode), 40])
    for case in range(n):
        instance = random_serving(rng, mode)
        if case % 6 == 5:
            instance = mixed_lengths(instance, rng)
        yield with_targets(instance, rng) if case % 3 == 0 else instance


def is_refuted(instance, result):
    try:
        verify(instance, result)
    except (Refuted, ValueError):
        return True
    return False


# --- what is confirmed ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_every_optimum_and_every_infeasible_case_is_verified(mode, seed):
    """The verifier shares no code with the kernels; the margins must leave it room."""
    statuses = []
    for instance in drawn(mode, seed, N_DRAWN):
        result = solved(instance)
        text = verify(instance, result)
        assert repr(result["certificate"]["refuted_requests_per_s"]) in text
        statuses.append(result["status"])
    assert statuses.count("optimal") >= 0.375 * N_DRAWN
    assert set(statuses) <= {"optimal", "infeasible"}


def with_lines(instance, rng):
    """Return the instance with collective operations; half of them jump up at the switch."""
    shape = instance.blocks.collective_s.shape[:2]
    small, switch = rng.uniform(0, [1e-3, 1e-4]), float(rng.integers(2, 60))
    large = rng.uniform(0.2, 1) * small[1]
    start = (small[0] + small[1] * switch) * rng.uniform(0.5, 1.5) - large * switch
    lines = [*small, switch, max(start, 0.0), large]
    blocks = replace(instance.blocks, collective_s=np.full((*shape, 5), lines))
    return replace(instance, blocks=blocks)


@pytest.mark.parametrize("mode", MODES)
def test_collective_operations_that_jump_are_verified(mode):
    """Seconds over tokens rise at a jump, which every proof must treat by itself.

    Under ``stage``, few such servers have two solutions, of which the method took the larger
    one. Their claim is refuted, or not certified.
    """
    rng = np.random.default_rng([17, MODES.index(mode)])
    n_jumps = n_not = 0
    for instance in drawn(mode, 9, 60):
        instance = with_lines(instance, rng)
        result = solved(instance)
        server = Server(instance)
        jumps = any(
            server.iterations(c, server.content(0, instance.n_blocks)).jumps(instance.lengths)
            for c in range(instance.n_classes)
        )
        is_verified = result["certificate"] is not None and not is_refuted(instance, result)
        assert is_verified or (jumps and mode == "stage")
        n_jumps += jumps
        n_not += not is_verified
    assert n_jumps >= 15 and n_not <= 1


@pytest.mark.parametrize("mode", MODES)
def test_a_rate_that_some_split_carries_is_not_refuted(mode):
    """A false certificate of the right form: that of the true bound, with a lower rate."""
    tried, n = 0, n_cases(15, 25)
    for instance in drawn(mode, 7, n):
        result = solved(instance)
        if result["status"] != "optimal":
            continue
        rate = result["served"]["fluid_requests_per_s"]
        result["certificate"]["refuted_requests_per_s"] = rate * (1 - 1e-7)
        result["served"]["fluid_requests_per_s"] = rate * (1 - 2e-7)
        result["fluid_bound"] = rate * (1 - 1e-7)
        result["fluid_gap"] = 1 - (1 - 2e-7) / (1 - 1e-7)
        assert is_refuted(instance, result)
        tried += 1
    assert tried >= 0.4 * n


@pytest.mark.parametrize("mode", ["pipeline", "serial"])
def test_servers_of_unequal_nodes_are_not_refuted_by_the_slowest(mode):
    """Ranges of equal shares refute twice the slow server's rate, but not the sum of both."""
    instance = hs.ServingInstance.from_tables(
        fixed_s=[[1e-3], [3e-3]], block_kind=[0] * 2, tiers=[[(0, 1e9), (1, 1e9)]],
        prompt_tokens=100, output_tokens=10, max_num_seqs=20, batching=mode,
    )  # fmt: skip
    result = solved(instance)
    assert "no split carries" in verify(instance, result)
    for field in ("served", "certificate"):
        name = "fluid" if field == "served" else "refuted"
        result[field][f"{name}_requests_per_s"] *= 0.9
    result["fluid_bound"] = result["certificate"]["refuted_requests_per_s"]
    with pytest.raises(Refuted, match="the servers of tier 0 may carry the rate"):
        verify(instance, result)


@pytest.mark.parametrize("mode", MODES)
def test_bounds_of_one_split_enclose_its_scored_numbers(mode):
    """Numbers rounded down and up, and the re-scorer in floats, by other code."""
    rng = np.random.default_rng([3, MODES.index(mode)])
    compared = 0
    for instance in drawn(mode, 5, 40):
        splits = list(feasible_splits(instance))
        if not splits:
            continue
        split = splits[int(rng.integers(len(splits)))]
        scored = evaluate_serving(instance, split)
        if not scored.fluid_requests_per_s:
            continue
        rate, server = Fraction(scored.fluid_requests_per_s), Server(instance)
        below, above = (1 - Fraction(1, 10**9)) * rate, (1 + Fraction(1, 10**6)) * rate
        cuts = list(split.cuts)
        if mode == "stage":
            assert not hold_chain.carries(server, cuts, below)
            assert hold_chain.carries(server, cuts, above)
            low = hold_chain.latencies(server, cuts, float(below), False)
            high = hold_chain.latencies(server, cuts, float(rate), True)
        else:
            assert not level_ranges.cycles_that_carry(server, cuts, above)
            cycles = level_ranges.cycles_that_carry(server, cuts, below)
            low = min((c.latencies(below, False) for c in cycles), key=lambda times: times[2])
            high = min((c.latencies(rate, True) for c in cycles), key=lambda times: times[2])
        times_s = scored.latencies
        for at, value in enumerate((times_s.ttft_s, times_s.tpot_s, times_s.latency_s)):
            assert low[at] / ONE <= value * (1 + 1e-6)
            assert value <= high[at] / ONE * (1 + 1e-6)
        compared += 1
    assert compared >= 20


def campus(**changes):
    """Return a deployment of the size of a plan: 82 blocks, four tiers, unequal nodes."""
    gpus = (("rtx-3090",) * 6, ("a100-40gb",) * 4, ("l40s",) * 6, ("h100",) * 2)
    tiers = tuple(
        hs.Tier(
            name=f"tier-{k}",
            nodes=tuple(
                hs.Node(name=f"{k}-{at}", gpu=hs.gpu(gpu)) for at, gpu in enumerate(of_tier)
            ),
            link=hs.Link(bytes_per_s=1.25e9, latency_s=2e-4) if k < 3 else None,
        )
        for k, of_tier in enumerate(gpus)
    )
    deployment = hs.Deployment(
        model=hs.model("llama-3-70b"),
        network=hs.Network(name="four", tiers=tiers),
        requests=hs.Requests([0.0], [512], [128]),
        runtime=hs.runtime("ideal"),
    )
    return hs.to_serving_instance(deployment, **changes)


def test_names_and_extrapolated_are_covered(cases):
    """Both could be changed in a file and were still verified; older results have no digest."""
    instance, result = cases["stage"]
    verify(instance, result)
    tiers = tuple(reversed(instance.names.tier_names))
    renamed = replace(instance, names=replace(instance.names, tier_names=tiers))
    is_renamed = tiers != instance.names.tier_names
    assert is_renamed and is_refuted(renamed, result)
    assert is_refuted(instance, result | {"extrapolated": not result["extrapolated"]})
    assert is_refuted(instance, result | {"names_digest": None})
    older = {key: value for key, value in result.items() if key != "names_digest"}
    verify(instance, older)
    assert "extrapolated" in serving_not_covered(older)
    assert "extrapolated" not in serving_not_covered(result)


@pytest.mark.parametrize("changes", [{}, {"objective": "goodput", "tpot_slo_s": 0.2}])
def test_a_large_model_has_a_certificate_of_moderate_size(changes, tmp_path, capsys):
    """82 blocks on four tiers, on the command line, from files: a megabyte at most."""
    instance = campus(**changes)
    result = hs.solve(instance, "throughput_exact")
    assert result.partition is not None
    paths = tmp_path / "instance.json", tmp_path / "result.json"
    hs.save(instance, paths[0])
    result.save(paths[1])
    assert paths[1].stat().st_size < 1_000_000
    assert main([str(path) for path in paths]) == 0
    said = capsys.readouterr().out
    assert "in the fluid model (stage batching; means, no simulation)" in said
    assert "not covered: alternatives, instance (its name), message" in said
    assert "served.limit" in said
    changed = json.loads(paths[1].read_text())
    changed["cuts"][1] -= 1
    paths[1].write_text(json.dumps(changed))
    assert main([str(path) for path in paths]) == 1
    assert capsys.readouterr().out.startswith("refuted: ")


# --- what is refuted --------------------------------------------------------------------------


def find(mode, wanted):
    """Return the first random server with a result of some kind, and the result."""
    for seed in range(20, 40):
        for instance in drawn(mode, seed, 20):
            result = solved(instance)
            if wanted(instance, result):
                return instance, result
    raise AssertionError("no such case")


def has_steps(n):
    def wanted(instance, result):
        steps = result["certificate"]["hold_steps"]
        return result["status"] == "optimal" and len(steps) >= n and instance.n_tiers > 1

    return wanted


def by_labels(instance, result):
    steps = result["certificate"]["hold_steps"]
    return result["status"] == "optimal" and any(not s["potentials_s"] for s in steps[1:])


def has_ranges(instance, result):
    return result["status"] == "optimal" and 4 < len(result["certificate"]["level_ranges"]) < 9


KINDS = {
    "stage": ("stage", has_steps(3)),
    "targets": ("stage", by_labels),
    "infeasible": ("stage", lambda instance, result: result["status"] == "infeasible"),
    "pipeline": ("pipeline", has_ranges),
    "serial": ("serial", has_ranges),
}
FREE = {"instance", "method", "alternatives", "solve_time_s", "message",
        "statistics"}  # fmt: skip


@pytest.fixture(scope="module")
def cases():
    return {name: find(*kind) for name, kind in KINDS.items()}


def places(value, path=()):
    """Yield the paths of all covered fields of a result."""
    if path and (path[0] in FREE or path == ("served", "limit")):
        return
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def replaced(result, path, value):
    result = copy.deepcopy(result)
    parent = result
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return result


def at(result, path):
    for key in path:
        result = result[key]
    return result


def others(old):
    """Return values that a field may be changed to, of right and of wrong types."""
    found = [None, -1, 0, 1, 0.5, 1e30, 10**400, "1", True, [], {}]
    if type(old) in (int, float) and abs(old) < 1e100:
        found += [old + 1, old - 1, -old, old * 0.99, old * 1.01, old * (1 + 1e-5), old / 2]
    if isinstance(old, list) and old:
        found += [old[1:], old[:-1], [*old, old[0]], old[::-1]]
    return [value for value in found if value != old or type(value) is not type(old)]


def is_true(instance, result, truth):
    """Return whether claims hold, judged by the unchanged result and by the re-scorer."""
    refuted = result["certificate"]["refuted_requests_per_s"]
    same = all(result[key] == truth[key] for key in ("digest", "objective"))
    if truth["status"] == "infeasible":
        same = same and result["status"] == "infeasible" and refuted <= 1.0001e-9
        return same and all(
            refusal(instance, split, refuted) for split in feasible_splits(instance)
        )
    best, served = truth["served"]["fluid_requests_per_s"], result["served"]
    rate = served["fluid_requests_per_s"]
    same = (
        same and refuted >= best * (1 - 1e-9) and result["fluid_bound"] >= refuted * (1 - 1e-11)
    )
    split = hs.Partition(tuple(result["cuts"]))
    same = same and not refusal(instance, split, rate * (1 - 2e-9))
    scored = evaluate_serving(instance, split)
    if rate > scored.fluid_requests_per_s * (1 - 1e-6):
        for name in ("ttft_s", "tpot_s", "latency_s"):
            same = same and served[name] == pytest.approx(
                getattr(scored.latencies, name), rel=1e-3
            )
    gap = max(0.0, 1 - rate / result["fluid_bound"])
    same = same and result["fluid_gap"] == pytest.approx(gap, abs=1e-11)
    if result["status"] == "optimal":
        return same and rate >= best * (1 - 2e-6)
    return same and result["status"] == "feasible"


@pytest.mark.parametrize("name", KINDS)
def test_each_field_is_covered(cases, name):
    """Every field outside of the certificate, and its scalars, with all other values."""
    instance, truth = cases[name]
    n_refuted = n_true = 0
    for path in places(truth):
        if "potentials_s" in path and len(path) > path.index("potentials_s") + 1:
            continue  # the next test draws some of these
        for value in others(at(truth, path)):
            result = replaced(truth, path, value)
            if is_refuted(instance, result):
                n_refuted += 1
                continue
            assert is_true(instance, result, truth), (path, value)
            n_true += 1
    assert n_refuted > 10 * n_true


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_whatever_is_changed_what_is_confirmed_is_true(cases, name, data):
    """Several changes at once, potentials among them."""
    instance, truth = cases[name]
    paths = list(places(truth))
    result = truth
    for _ in range(data.draw(st.integers(1, 4))):
        path = data.draw(st.sampled_from(paths))
        try:
            old = at(result, path)
            result = replaced(result, path, data.draw(st.sampled_from(others(old))))
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change has taken it away
    assume(result != truth)
    if not is_refuted(instance, result):
        assert is_true(instance, result, truth)


def claimed_infeasible(result, others):
    """Every field says that there is no answer."""
    return result | {
        "status": "infeasible", "cuts": None, "served": None, "fluid_gap": None,
        "fluid_bound": None,
    }  # fmt: skip


def lowered(result, others):
    """All rates are lower by the same factor, as of a slower server."""
    certificate, served = result["certificate"], result["served"]
    rate = {"refuted_requests_per_s": certificate["refuted_requests_per_s"] * 0.9}
    per_s = {"fluid_requests_per_s": served["fluid_requests_per_s"] * 0.9}
    changed = result | {"served": served | per_s, "certificate": certificate | rate}
    return changed | {"fluid_bound": result["fluid_bound"] * 0.9}


def with_another_split(result, others):
    """The second best split takes the numbers of the best one."""
    return result | {"cuts": others[0]["cuts"]}


def with_the_second_best(result, others):
    """The second best split is called optimal, with the bound of its own rate."""
    served = others[0]["served"]
    rate = served["fluid_requests_per_s"]
    bound = rate * (1 + 1e-8)
    certificate = result["certificate"] | {"refuted_requests_per_s": bound}
    return result | {
        "cuts": others[0]["cuts"], "served": served, "certificate": certificate,
        "fluid_bound": bound, "fluid_gap": 1 - rate / bound,
    }  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "change", [claimed_infeasible, lowered, with_another_split, with_the_second_best]
)
def test_groups_of_fields_that_agree_with_each_other_are_refuted(mode, change):
    """A result called infeasible was confirmed with the certificate of the optimum."""
    n_refuted = 0
    for instance in drawn(mode, 3, 30):
        result = solved(instance, n_splits=2)
        if result["status"] != "optimal" or not result["alternatives"]:
            continue
        rates = [result["served"], result["alternatives"][0]["served"]]
        best, second = (each["fluid_requests_per_s"] for each in rates)
        if second < 0.99 * best:
            assert is_refuted(instance, change(result, result["alternatives"]))
            n_refuted += 1
    assert n_refuted >= 5


def test_kv_memory_at_a_rate_that_all_batches_serve_is_confirmed():
    """Seconds in proportion to the contents: a node serves one rate, whatever the batch.

    The largest rate with KV memory was then taken to be 0. Oracles: the re-scorer, and that no
    rate that it refuses is confirmed.
    """
    instance = random_serving(np.random.default_rng([777, 22]), "stage")
    result = solved(instance)
    assert result["served"]["limit"] == "tier tier-2: KV cache is full"
    verify(instance, result)
    split, server = hs.Partition(tuple(result["cuts"])), Server(instance)
    rate = result["served"]["fluid_requests_per_s"]
    for factor in (0.5, 0.9, 1 - 1e-6, 1 + 1e-6, 1.1):
        is_refused = bool(refusal(instance, split, rate * factor))
        carried = not hold_chain.carries(server, result["cuts"], Fraction(rate * factor))
        assert is_refused == (factor > 1) == (not carried)


def test_potentials_that_matter_must_be_as_they_are(cases):
    """No chain leads to a cut whose potential is inf, and none is shorter than a potential."""
    instance, truth = cases["stage"]
    steps = truth["certificate"]["hold_steps"]
    n_refuted = 0
    for s, step in enumerate(steps):
        for k, row in enumerate(step["potentials_s"]):
            for c, value in enumerate(row):
                path = ("certificate", "hold_steps", s, "potentials_s", k, c)
                if not value:  # no chain, the start, or a cut behind which all is closed
                    continue
                for wrong in (None, value * 1.001 + 1e-9, -value - 1, "0"):
                    assert is_refuted(instance, replaced(truth, path, wrong)), path
                    n_refuted += 1
    assert n_refuted > 10


def test_results_without_a_certificate_are_named(tmp_path):
    instance, _ = find("stage", lambda instance, result: result["status"] == "optimal")
    other = hs.solve(instance.replace(objective="cost"), "throughput_exact").to_dict()
    with pytest.raises(ValueError, match="'cost' without a certificate: throughput_exact"):
        verify(instance, other)
    with pytest.raises(ValueError, match="not a result, as ServingResult"):
        verify(instance, {"status": "optimal"})
    with pytest.raises(ValueError, match="version must be 1 or 2, got 3"):
        verify(instance, other | {"version": 3})
    with pytest.raises(TypeError, match="certificate must be a RateCertificate, got"):
        hs.ServingOutcome("infeasible", certificate={})


# --- arithmetic -------------------------------------------------------------------------------


@given(st.floats(0, 1e12), st.floats(1e-12, 1e12))
def test_operations_enclose_the_exact_numbers(a, b):
    """Oracle: fractions."""
    exact_a, exact_b, unit = Fraction(a), Fraction(b), Fraction(1, 2**BITS)
    down, up = ((fixed(a, u), fixed(b, u)) for u in (False, True))
    for low, high, exact in (
        (times(*down, False), times(*up, True), exact_a * exact_b),
        (over(down[0], up[1], False), over(up[0], down[1], True), exact_a / exact_b),
    ):
        assert low * unit <= exact <= high * unit
        assert (high - low) * unit <= exact / 10**30 + 10**20 * unit


@given(st.integers(0, 1024), st.integers(0, 12), st.integers(1, 5))
def test_powers_enclose_the_exact_numbers(top, n, root):
    """Oracle: whole exponents in fractions, and roots by their powers."""
    base = Fraction(top, 1024)
    low, high = (power(float(base), n * ONE, u) for u in (False, True))
    assert Fraction(low, ONE) <= base**n <= Fraction(high, ONE)
    low, high = (power(float(base), fixed(Fraction(1, root), u), u) for u in (True, False))
    slack = Fraction(1, 2**100)
    assert (
        max(Fraction(high, ONE) - slack, 0) ** root
        <= base
        <= (Fraction(low, ONE) + slack) ** root
    )


@given(st.floats(1e-6, 10), st.floats(0, 0.999), st.floats(0, 5), st.floats(1e-3, 10))
def test_roots_are_enclosed_and_jumps_do_not_hide_smaller_ones(a, slope, jump, where):
    """Oracle: the closed form of a line with a step."""

    def f(z, up):
        line = fixed(a, up) + times(fixed(slope, up), z, up)
        return line + (fixed(jump, up) if z > fixed(where, False) else 0)

    first = Fraction(a) / (1 - Fraction(slope))
    root = first if first <= where else (Fraction(a) + Fraction(jump)) / (1 - Fraction(slope))
    top = fixed(1e9, True)
    low, high = (least_root(f, top, [fixed(where, False)], up) for up in (False, True))
    assert Fraction(low, ONE) <= root <= Fraction(high, ONE)
    if first < where * (1 - 1e-9) or first > where * (1 + 1e-9):
        assert high - low <= high >> 30

"""Plans for requests of different lengths: choice, simulation, bounds, files."""

import json
import math
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.exporters.layout import BenchmarkLoad
from hypsolve.planning.forecast import predict
from hypsolve.planning.load import arriving, evenly, in_whole_rounds, with_requests
from hypsolve.planning.mix_bound import bound_of_mix
from hypsolve.planning.plan import record_to_dict
from hypsolve.planning.query import solve_query
from hypsolve.planning.rate_bound import bound_on_rate
from hypsolve.planning.request_mix import N_REPRESENTATIVES, RequestMix, representatives_of
from hypsolve.planning.simulation_search import Splits
from hypsolve.planning.throughput import RateSearch
from tests.cli.test_cli import run
from tests.helpers import simpy_model

WIRE = hs.Link(bytes_per_s=1.25e8, latency_s=2e-4)
GPUS = ("l4", "t4", "rtx-3060", "rtx-4090")


def lab(first="t4", second="l4", n=(2, 1)):
    tiers = [
        hs.Tier(
            name=f"tier-{k}",
            nodes=tuple(hs.Node(name=f"{k}-{j}", gpu=hs.gpu(gpu)) for j in range(m)),
            link=WIRE if k == 0 else None,
        )
        for k, (gpu, m) in enumerate(zip((first, second), n, strict=True))
    ]
    return hs.Network(name="lab", tiers=tuple(tiers))


def random_requests(n, seed=0, most=(400, 40)):
    """Lengths with long tails, arrivals in bursts."""
    rng = np.random.default_rng(seed)
    prompt, output = (
        np.minimum(rng.lognormal(np.log(m / 6), 1.0, n).astype(int) + 1, m) for m in most
    )
    gaps = rng.exponential(1.0, n) * (rng.random(n) < 0.3)
    return hs.Requests(gaps.cumsum(), prompt, output)


def flat(value, name=""):
    """The numbers and words of nested tables, by their names."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: math.nan if value is None else value}
    return {k: v for key in value for k, v in flat(value[key], f"{name}.{key}").items()}


def assert_close(one, other):
    """Words are equal, and numbers up to rounding."""
    found, wanted = flat(one), flat(other)
    words = [name for name, value in wanted.items() if isinstance(value, str)]
    assert [found.pop(name) for name in words] == [wanted.pop(name) for name in words]
    assert found == pytest.approx(wanted, rel=1e-9, nan_ok=True)


def query(requests, network=None, **more):
    """A query whose simulations are short: visits are limited by the time limit."""
    arguments = {"time_limit_s": 1.0, "concurrency": 2, **more}
    return hs.PlanQuery.of("llama-3.2-1b", network or lab(), requests=requests, **arguments)


def write(path, requests):
    rows = zip(requests.arrival_s, requests.prompt_tokens, requests.output_tokens, strict=True)
    lines = [f"{t!r},{p},{o}" for t, p, o in ((float(t), p, o) for t, p, o in rows)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]))
    return path


@pytest.mark.parametrize("users", [None, 5])
def test_requests_of_equal_lengths_are_the_lengths_of_every_request(users):
    """Requests that arrive as a plan draws them itself change nothing that is computed."""
    load = {"users": users} if users else {"rate_per_s": 3.0}
    plain = hs.PlanQuery.of(
        "llama-3.2-1b", lab(), prompt_tokens=120, output_tokens=20, time_limit_s=1.0,
        concurrency=2, **load,
    )  # fmt: skip
    drawn = arriving(plain.deployment(), 3.0, 400, np.random.default_rng(plain.seed)).requests
    mixed = query(drawn, **load)
    assert (mixed.prompt_tokens, mixed.output_tokens) == (120, 20)
    split = hs.Partition((0, 6, 18))
    found, wanted = (
        record_to_dict(predict(each.deployment(), split, each.load)) for each in (mixed, plain)
    )
    found["load"]["mix"] = None
    assert_close(found, wanted)
    (_, found), (_, wanted) = (
        RateSearch(
            each.deployment(), each.rules(), each.load, objective="throughput",
            prices_per_hour={},
        ).run(600.0)
        for each in (mixed, plain)
    )  # fmt: skip
    assert_close(record_to_dict(found), record_to_dict(wanted) | {"arrivals": found.arrivals})


def test_the_forecast_is_that_of_the_requests_themselves():
    """Simulated anew, once by `hypsolve.simulate` and once by the SimPy twin."""
    requests = random_requests(400, seed=1)
    asked = query(requests, rate_per_s=2.0)
    split = hs.Partition((0, 6, 18))
    forecast = predict(asked.deployment(), split, asked.load, only="mean latency")
    span_s = np.ptp(requests.arrival_s)
    arrival_s = (requests.arrival_s - requests.arrival_s[0]) * (399 / 2.0 / span_s)
    served = replace(asked.deployment(), requests=replace(requests, arrival_s=arrival_s))
    twin = simpy_model.simulate(served, split, link_contention=True)
    trace = hs.simulate(served, split, link_contention=True)
    for latency_s in (trace.latency_s, twin.end_s - arrival_s):
        assert forecast.latency_s.mean == pytest.approx(latency_s.mean(), rel=1e-9)
        assert forecast.latency_s.p95 == pytest.approx(np.percentile(latency_s, 95), rel=1e-9)
    assert forecast.n_requests == 400
    assert forecast.output_tokens_per_s == pytest.approx(2.0 * requests.output_tokens.mean())


def test_requests_arrive_at_their_own_rate_unless_one_is_given():
    requests = random_requests(500, seed=2)
    own = 499 / np.ptp(requests.arrival_s)
    assert query(requests).rate_per_s == pytest.approx(own)
    for rate in (own, 7.5):
        served = query(requests, rate_per_s=rate).load
        plan_of = predict(
            query(requests).deployment(), hs.Partition((0, 6, 18)), served, only="mean latency"
        )
        assert plan_of.load.rate_per_s == rate
    burst = replace(requests, arrival_s=np.zeros(500))
    with pytest.raises(ValueError, match="arrive at two times at least, unless rate_per_s"):
        query(burst)
    assert query(burst, rate_per_s=2.0).rate_per_s == 2.0
    assert query(burst, users=3).users == 3


@pytest.mark.parametrize("seed", range(12))
def test_no_schedule_of_random_requests_exceeds_the_bounds(seed):
    """The requests themselves, shuffled, in whole rounds: any split, all modes, and users."""
    rng = np.random.default_rng(seed)
    network = lab(*rng.choice(GPUS, 2), n=rng.integers(1, 3, 2))
    runtime = ["ideal", "vllm", "llama.cpp"][seed % 3]
    requests = random_requests(int(rng.integers(2, N_REPRESENTATIVES)), seed)
    users = int(rng.integers(1, 40)) if seed % 4 == 0 else None
    load = {"users": users} if users else {"rate_per_s": 1.0}
    asked = query(requests, network, runtime=runtime, **load)
    deployment = asked.deployment()
    order = rng.permutation(len(requests))
    deployment = replace(
        deployment,
        requests=hs.Requests(
            np.zeros(len(requests)),
            requests.prompt_tokens[order],
            requests.output_tokens[order],
        ),
    )
    instance = hs.to_instance(deployment, allow_empty=True)
    search = RateSearch(
        deployment, {"allow_empty": True}, asked.load, objective="throughput",
        prices_per_hour={},
    )  # fmt: skip
    of_all = search.bound(has_users=False)
    for cut in rng.integers(0, 19, 3).tolist():
        split = hs.Partition((0, cut, 18))
        if hs.check(instance, split):
            continue
        bound = bound_on_rate(deployment, instance, split)
        assert bound <= of_all * (1 + 1e-7)
        many = evenly(deployment, 1.5 * bound, in_whole_rounds(deployment, 300))
        trace = hs.simulate(many, split, link_contention=True)
        assert len(trace.end_s) / trace.end_s.max() <= bound * (1 + 1e-9)
        if users is not None:
            bound = bound_of_mix(many, split, users=users)
            trace = hs.simulate(many, split, link_contention=True, users=users)
            took_s = trace.end_s.max() - trace.arrival_s.min()
            assert len(trace.end_s) / took_s <= bound * (1 + 1e-9)


@pytest.mark.parametrize("load", [{}, {"users": 8}, {"ttft_slo_s": 2.0, "tpot_slo_s": 0.2}])
def test_a_search_states_rates_below_its_bound(load):
    asked = query(random_requests(700, seed=5), **load)
    search = RateSearch(
        asked.deployment(), asked.rules(), asked.load, objective=asked.objective,
        prices_per_hour={},
    )  # fmt: skip
    _, found = search.run(600.0)
    assert 0 < found.simulated_requests_per_s <= found.bound_requests_per_s
    assert found.arrivals == "arrivals as given"
    # the moments of all requests, not those of the representatives
    serving = hs.to_serving_instance(
        replace(asked.deployment(), requests=asked.requests.requests),
        objective=asked.objective, users=asked.users,
        ttft_slo_s=asked.ttft_slo_s, tpot_slo_s=asked.tpot_slo_s,
        **{name: rule for name, rule in asked.rules().items() if name != "stage_rule"},
    )  # fmt: skip
    fluid = hs.solve(serving, "throughput_exact").fluid_requests_per_s
    assert found.fluid_requests_per_s == pytest.approx(fluid, rel=1e-9)


def test_the_least_mean_latency_is_that_of_all_splits_simulated():
    """Every split serves the requests themselves; bounds of mean times are below each."""
    requests = random_requests(60, seed=6, most=(2000, 12))
    asked = query(requests, rate_per_s=20.0, objective="mean_latency", time_limit_s=600.0)
    solution = solve_query(asked)
    assert solution.result.status == "optimal"
    served = with_requests(asked.deployment(), asked.load)
    instance = hs.to_instance(served, **asked.rules())
    splits, mean_s = Splits(served, asked.rules()), {}
    for cut in range(1, 18):
        split = hs.Partition((0, cut, 18))
        if not hs.check(instance, split):
            trace = hs.simulate(served, split, link_contention=True)
            mean_s[split] = float(trace.latency_s.mean())
            assert splits.bound_s(split.cuts) <= mean_s[split]
    assert len(mean_s) > 10
    assert solution.result.objective_s == pytest.approx(min(mean_s.values()), rel=1e-12)


def test_long_requests_count_more_than_their_mean_says():
    """KV memory is short, and long outputs stay: a plan for the means promises too much."""
    short, long = (256, 16), (256, 1500)
    rows = np.array([short] * 9 + [long])
    requests = hs.Requests(np.arange(10.0), *rows.T)
    network = lab("rtx-3060", "rtx-3060", n=(1, 1))
    mixed = query(requests, network, users=64)
    means = hs.PlanQuery.of(
        "llama-3.2-1b", network, users=64, time_limit_s=1.0, concurrency=2,
        prompt_tokens=mixed.prompt_tokens, output_tokens=mixed.output_tokens,
    )  # fmt: skip
    split = hs.Partition((0, 9, 18))
    a, b = (predict(q.deployment(), split, q.load, only="mean latency") for q in (mixed, means))
    assert a.output_tokens_per_s != b.output_tokens_per_s
    assert a.latency_s.p99 > 2 * b.latency_s.p99


@pytest.mark.parametrize("n", [150, 599, 20_000])
def test_few_requests_stand_for_many_and_every_section_of_them_does(n):
    """A workload of heavy tails; sections of a quarter see the same mix."""
    many = hs.workload("azure_conversation", n_requests=n, rate_per_s=1.0)
    few = representatives_of(many)
    assert len(few) == N_REPRESENTATIVES
    for name in ("prompt_tokens", "output_tokens"):
        whole, chosen = getattr(many, name), getattr(few, name)
        assert chosen.mean() == pytest.approx(whole.mean(), rel=0.005)
        assert set(chosen.tolist()) <= set(whole.tolist())
        for part in np.array_split(chosen, 4):
            assert part.mean() == pytest.approx(chosen.mean(), rel=0.2)
    held, chosen = (
        ((r.prompt_tokens + r.output_tokens) * r.output_tokens).mean() for r in (many, few)
    )
    assert chosen == pytest.approx(held, rel=0.05)
    all_of_them = representatives_of(random_requests(40))
    assert sorted(all_of_them.prompt_tokens) == sorted(random_requests(40).prompt_tokens)


def test_room_is_left_for_the_longest_request_and_its_lack_is_told():
    """Memory for 16 mean requests is no memory for one of 60,000 tokens."""
    requests = random_requests(50)
    longest = np.append(requests.prompt_tokens[:-1], 60_000)
    huge = replace(requests, prompt_tokens=longest)
    asked = query(huge, concurrency=1)
    assert asked.deployment().max_resident_tokens == 60_000 + huge.output_tokens[-1]
    tiny = hs.Node(name="a", gpu=hs.gpu("t4"), memory_bytes=3.2 * 2**30)
    network = hs.Network(name="n", tiers=(hs.Tier(name="box", nodes=(tiny,)),))
    arguments = {"time_limit_s": 5.0, "concurrency": 1, "with_upgrades": False}
    assert hs.plan("llama-3.2-1b", network, requests=requests, **arguments).fits
    plan = hs.plan(
        "llama-3.2-1b", network, requests=huge, **arguments | {"with_upgrades": True}
    )
    assert not plan.fits
    assert any(each.what.startswith("requests cut to ") for each in plan.upgrades)
    assert f"request 50, the longest, 60000 + {huge.output_tokens[-1]} tokens" in (str(plan))


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A plan for a file, and the names of file, network and plan."""
    folder = tmp_path_factory.mktemp("mix")
    file = write(folder / "mine.csv", random_requests(300, seed=4))
    network = folder / "lab.toml"
    network.write_text(
        """
[[tiers]]
name = "desk"
nodes = [{ gpu = "t4", count = 2 }]
link = { gbps = 1, latency_ms = 0.2 }
[[tiers]]
name = "rack"
nodes = [{ gpu = "l4" }]
"""
    )
    plan = hs.plan(
        "llama-3.2-1b", network, requests=file, concurrency=2, time_limit_s=4.0,
        with_upgrades=False,
    )  # fmt: skip
    path = folder / "plan.json"
    path.write_text(json.dumps(plan.to_dict(), allow_nan=False))
    return plan, file, network, path


def test_the_text_and_the_file_say_what_was_simulated(planned):
    plan, file, _, path = planned
    requests = hs.read_requests(file)
    means = requests.prompt_tokens.mean(), requests.output_tokens.mean()
    words = str(plan)
    assert f"300 requests of mine.csv, mean tokens: prompt {means[0]:.4g} (p95 " in words
    assert "600 of them simulated token by token" in words  # twice, to have 400
    assert "144 of them that stand for all" in words
    stated = json.loads(path.read_text())["requests"]
    assert stated["n_requests"] == 300 and stated["source"] == "mine.csv"
    assert stated["output_tokens"]["mean"] == means[1]
    assert stated["output_tokens"]["std"] == pytest.approx(requests.output_tokens.std())
    assert stated["prompt_tokens"]["p95"] == np.percentile(requests.prompt_tokens, 95)
    schema = hs.schema("plan")
    jsonschema.validate(json.loads(path.read_text()), schema)
    assert "requests" in schema["required"]


def test_a_plan_file_can_be_used_without_the_requests(planned):
    """`replan` and `simulate --plan` know lengths, load and room from the file alone."""
    plan, _, network, path = planned
    again = hs.replan("llama-3.2-1b", network, path, max_moves=2, time_limit_s=4.0)
    mix = again.query.requests
    assert mix.table == plan.query.requests.table and mix.requests is None
    assert again.query.load.describe().startswith("requests like those of mine.csv at ")
    assert again.query.rate_per_s == plan.query.rate_per_s
    assert again.deployment.max_resident_tokens == plan.deployment.max_resident_tokens
    assert again.throughput.simulated_requests_per_s > 0
    assert again.throughput.simulated_requests_per_s <= again.throughput.bound_requests_per_s
    stated = json.loads(json.dumps(again.to_dict(), allow_nan=False))
    assert stated["requests"] == plan.to_dict()["requests"]
    other = hs.replan(
        "llama-3.2-1b", network, path, max_moves=1, prompt_tokens=100, time_limit_s=4.0
    )
    assert other.query.requests is None and other.query.prompt_tokens == 100


def test_commands_take_a_file_of_requests(capsys, planned):
    _, file, network, path = planned
    base = ("--model", "llama-3.2-1b", "--network", network, "--time-limit", 4)
    code, out, _ = run(capsys, "simulate", *base, "--plan", path, "--requests", 30, "--json")
    assert code == 0 and json.loads(out)["n_requests"] == 30
    asked = ("simulate", *base, "--objective", "path", "--concurrency", 2, "--json")
    code, out, _ = run(capsys, *asked, "--trace", file)
    assert code == 0 and json.loads(out)["n_requests"] == 300
    burst = file.with_name("burst.csv")
    burst.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n0,200,7\n")
    code, out, _ = run(capsys, *asked, "--trace", burst)
    assert code == 0 and json.loads(out)["n_requests"] == 2
    asked = ("compare", *base, "--concurrency", 2, "--method", "even_split", "--json")
    code, out, _ = run(capsys, *asked, "--requests", file)
    forecast = json.loads(out)[0]["forecast"]
    assert code == 0 and forecast["n_requests"] == 600
    assert forecast["load"]["mix"] == "mine.csv"


def test_the_benchmark_of_an_export_says_that_its_lengths_are_means(planned):
    plan, _, _, _ = planned
    load = BenchmarkLoad.of(plan)
    longest = plan.query.requests.table["longest"]
    assert load.tokens == longest["prompt_tokens"] + longest["output_tokens"]
    words = hs.export(plan, "vllm")
    means = f"{plan.query.prompt_tokens} + {plan.query.output_tokens} tokens each, the means"
    assert f"{means} of lengths that differ in mine.csv" in words
    assert f"--max-model-len {load.tokens}" in words


def test_an_upgrade_for_what_does_not_fit_cuts_the_requests():
    requests = RequestMix.of(random_requests(200, seed=3))
    cut = requests.clipped(100)
    assert cut.longest_tokens == 100
    assert (cut.requests.output_tokens == np.minimum(requests.requests.output_tokens, 99)).all()
    assert (
        cut.requests.prompt_tokens
        == np.minimum(requests.requests.prompt_tokens, 100 - cut.requests.output_tokens)
    ).all()


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (None, (), "requests.csv: No such file"),
        ("", (), "must hold at least one request"),
        ("arrival_s,prompt_tokens\n0,5", (), "line 1: must name the columns"),
        ("arrival_s,prompt_tokens,output_tokens\n0,5,-1", (), "line 2"),
        (
            "arrival_s,prompt_tokens,output_tokens\n0,5,0",
            (),
            "output_tokens must be at least 1",
        ),
        ("arrival_s,prompt_tokens,output_tokens\n0,5,5", (), "arrive at two times at least"),
        ("arrival_s,prompt_tokens,output_tokens\n0,5,5\n1,9000000000,5", (), "request 2 of"),
        ("arrival_s,prompt_tokens,output_tokens\n0,5,5", ("--prompt", 5), "--requests and"),
    ],
)
def test_bad_requests_are_refused_in_one_line(capsys, tmp_path, planned, rows, options, words):
    path = tmp_path / "requests.csv"
    if rows is not None:
        path.write_text(rows)
    base = ("plan", "--model", "llama-3.2-1b", "--network", planned[2], "--requests", path)
    code, out, err = run(capsys, *base, *options)
    assert code == 2 and not out
    assert words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"requests": 3}, "requests must be a table"),
        ({"requests": {}}, "requests must have the key 'source'"),
        ({"longest": {"number": 0}}, "longest: number must be at least 1"),
        ({"representatives": {"prompt_tokens": []}}, "must hold prompt_tokens and"),
        (
            {"representatives": {"prompt_tokens": [1], "output_tokens": [1, 2]}},
            "output_tokens must",
        ),
        ({"rate_per_s": 0}, "rate_per_s must be positive"),
        ({"output_tokens": {"mean": math.inf}}, "mean must be"),
        ({"prompt_tokens": {"mean": 5.0}}, "requests.prompt_tokens: std must be a number"),
        ({"longest": {"number": 1, "prompt_tokens": 1}}, "output_tokens must be a whole"),
        ({"source": 5}, "source must be a string"),
    ],
)
def test_a_plan_file_with_bad_requests_is_refused(tmp_path, planned, change, words):
    document = json.loads(planned[3].read_text())
    document["requests"] = change.get("requests", document["requests"] | change)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(document, allow_nan=True).replace("Infinity", "1e999"))
    with pytest.raises((ValueError, TypeError), match=words):
        hs.replan("llama-3.2-1b", planned[2], path, max_moves=2)


def test_lengths_beside_requests_are_refused():
    with pytest.raises(ValueError, match="requests have lengths of their own, got prompt_to"):
        query(random_requests(20), prompt_tokens=5)
    with pytest.raises(TypeError, match="requests must be a file or Requests, got 5"):
        query(5)

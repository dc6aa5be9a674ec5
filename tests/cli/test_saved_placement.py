"""`hypsolve simulate`, `export` and `verify` of the file of a placement."""

import json

import jsonschema
import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning import placement_moves
from hypsolve.planning.json_schema import schema
from tests.cli.test_cli import run
from tests.cli.test_place import ASKED, LAB


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A placement and its machines."""
    folder = tmp_path_factory.mktemp("placement")
    machines, placement = folder / "lab.toml", folder / "placement.json"
    machines.write_text(LAB)
    asked = {"prompt_tokens": 128, "output_tokens": 16, "time_limit_s": 20}
    hs.place("llama-3-8b", machines, runtime="vllm", **asked).save(placement)
    return placement, ("--machines", machines)


def test_simulate(capsys, files):
    placement, machines = files
    code, out, err = run(
        capsys, "simulate", placement, *machines, "--rate", 20, "--requests", 400, "--slo-ttft",
        1,
    )  # fmt: skip
    assert (code, err) == (0, "")
    for words in ("4 pipelines behind a router (weighted), 20 requests/s", "desk-0 0:34",
                  "within targets", "SLO"):  # fmt: skip
        assert words in out, words


def test_simulate_json_is_the_simulation_from_python(capsys, files):
    placement, machines = files
    asked = ("--rate", 20, "--requests", 400, "--policy", "hypsched_rt", "--seed", 3)
    code, out, _ = run(capsys, "simulate", placement, *machines, *asked, "--json")
    assert code == 0
    table = json.loads(out)
    assert table["n_requests"] == 400 == sum(each["n_requests"] for each in table["pipelines"])
    assert table["policy"] == "hypsched_rt" and len(table["pipelines"]) == 4
    plan = hs.load_placement(placement, machines[1])
    rng = np.random.default_rng(3)
    arrival_s = rng.exponential(1.0, 400).cumsum()
    arrival_s = (arrival_s - arrival_s[0]) * 399 / (arrival_s[-1] - arrival_s[0]) / 20
    trace = hs.simulate_placement(
        plan.result.problem, plan.placement, hs.Requests(arrival_s, [128] * 400, [16] * 400),
        "hypsched_rt", seed=3, link_contention=True,
    )  # fmt: skip
    assert table["ttft_s"]["p95"] == pytest.approx(trace.metrics().ttft_s.p95)


def test_users_and_trace(capsys, files, tmp_path):
    placement, machines = files
    code, out, _ = run(
        capsys, "simulate", placement, *machines, "--users", 8, "--requests", 80, "--json"
    )
    assert code == 0 and json.loads(out)["n_finished"] == 80
    requests = tmp_path / "requests.csv"
    rows = [f"{n / 4},{50 + n},{8 + n % 5}" for n in range(40)]
    requests.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    code, out, _ = run(
        capsys,
        "simulate",
        placement,
        *machines,
        "--trace",
        requests,
        "--requests",
        40,
        "--json",
    )
    table = json.loads(out)
    assert code == 0 and table["offered_s"] == pytest.approx(10.0)
    tokens = sum(8 + n % 5 for n in range(40))
    assert table["output_tokens_per_s"] * table["offered_s"] == pytest.approx(tokens)


def test_export_is_that_of_place(capsys, files):
    placement, machines = files
    code, out, err = run(capsys, "export", placement, "vllm", *machines)
    assert (code, err) == (0, "") and out.count("vllm serve") == 4
    same = run(capsys, "place", *ASKED, *machines, "--export", "vllm")[1]
    start = [line for line in out.splitlines() if line.startswith("vllm serve")]
    assert start == [line for line in same.splitlines() if line.startswith("vllm serve")]
    _, _, err = run(capsys, "export", placement, "sglang", *machines)
    assert "was made for vllm" in err


def test_other_machines_are_noted_or_refused(capsys, files, tmp_path):
    placement, _ = files
    new = tmp_path / "new.toml"
    new.write_text(LAB.replace("count = 2\n", "count = 3\n", 1))
    asked = ("--rate", 20, "--requests", 400)
    code, _, err = run(capsys, "simulate", placement, "--machines", new, *asked)
    assert code == 0 and "with desk-2 besides" in err
    new.write_text(LAB.replace("max_count = 2", "max_count = 1"))
    code, _, err = run(capsys, "simulate", placement, "--machines", new, *asked)
    assert code == 2 and "rack-1" in err


@pytest.mark.parametrize(
    ("command", "more", "words"),
    [
        ("simulate", ("--network", "net.toml"), "No such option '--network'"),
        ("simulate", ("--rate", 1, "--users", 2), "--users and --rate exclude each other"),
        ("simulate", ("--requests", 1), "requests must be at least 2"),
        ("simulate", ("--rate", 0), "rate_per_s must be"),
        ("simulate", ("--model", "llama-2-7b"), "model must be that of the plan"),
        ("simulate", ("--policy", "rr"), "'rr'"),
        ("export", (), "Missing argument"),
        ("export", ("vlm",), "vllm"),
    ],
)
def test_bad_input_is_one_line(capsys, files, command, more, words):
    placement, machines = files
    code, out, err = run(capsys, command, placement, *more, *machines)
    assert code == 2 and not out
    assert err.startswith("hypsolve: ") and words in err and err.count("\n") == 1


def test_missing_files(capsys, files, tmp_path):
    placement, machines = files
    assert run(capsys, "simulate", placement)[0] == 2
    code, _, err = run(capsys, "simulate", tmp_path / "none.json", *machines)
    assert code == 2 and "none.json" in err
    code, _, err = run(capsys, "simulate", machines[1], *machines)
    assert code == 2 and "not JSON" in err


def test_verify(capsys, files, tmp_path):
    placement, machines = files
    code, out, err = run(capsys, "verify", placement, *machines)
    assert (code, err) == (0, "") and out.startswith("verified: the placement keeps the rules")
    assert "\nnot covered: answer, currency" in out
    table = json.loads(placement.read_text())
    table["pipelines"][0]["fluid_requests_per_s"] *= 1.01
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(table))
    code, out, _ = run(capsys, "verify", bad, *machines)
    assert code == 1
    assert out == "refuted: pipelines[0].fluid_requests_per_s: it is not carried\n"


def test_replan(capsys, files, tmp_path):
    placement, _ = files
    new = tmp_path / "lab.toml"
    new.write_text(LAB.replace("count = 2\n", "count = 3\n", 1))
    saved = tmp_path / "new.json"
    code, out, err = run(capsys, "replan", placement, "--machines", new, "--save", saved)
    assert code == 0 and err == f"{saved}: written\n"
    assert "4 of 5 pipelines serve all the time; 1 machine to load 16.060 GB" in out
    assert "proved: no placement of these machines carries more there" in out
    assert run(capsys, "verify", saved, "--machines", new)[0] == 0
    asked = ("--max-move-gib", 10, "--json")
    code, out, _ = run(capsys, "replan", placement, "--machines", new, *asked)
    table = json.loads(out)
    assert code == 0 and sum(table["moved_bytes"].values()) <= 10 * 2**30
    jsonschema.validate(table, schema("placement-replan"))
    new.write_text('machines = [{gpu = "rtx-4090", name = "other"}]\n')
    asked = ("--max-move-seconds", 0)
    code, out, _ = run(capsys, "replan", placement, "--machines", new, *asked)
    assert code == 1 and "no placement that loads in at most 0 s serves a request" in out


def test_an_interrupted_replan_is_printed_with_code_130(capsys, files, tmp_path, monkeypatch):
    """Nothing was printed."""
    placement, machines = files
    saved, real, n_calls = tmp_path / "new.json", placement_moves.by_highs, 0

    def interrupted(*given):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(placement_moves, "by_highs", interrupted)
    asked = ("--seed", 5, "--save", saved)
    code, out, err = run(capsys, "replan", placement, *machines, *asked)
    assert code == 130 and out.startswith("stopped: the search for placements that load few")
    assert "4 of 4 pipelines serve all the time" in out and err == f"{saved}: written\n"
    assert json.loads(saved.read_text())["seed"] == 5
    assert run(capsys, "verify", saved, *machines)[0] == 0

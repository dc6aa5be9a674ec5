"""The command line: what it prints, its exit codes, and one line where the input is bad."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import hypsolve as hs
from hypsolve import cli
from hypsolve.cli import commands
from hypsolve.cli.examples import NETWORK as EXAMPLE
from hypsolve.planning import comparison, forecast, planner, simulation_search
from hypsolve.planning.layers import describe_cuts
from hypsolve.planning.load import arriving

SHORT = ("--output", 16)  # tokens: most of the time of a plan goes into simulating them


def run(capsys, *arguments):
    """Exit code, output, errors."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.fixture
def example(tmp_path, capsys):
    path = tmp_path / "network.toml"
    assert run(capsys, "init", path)[0] == 0
    return path


OF_OBJECTIVE = {
    (): (
        "requests/s; proved: no split and no schedule serves more than ",
        "under the limits of this runtime (gap ", "splits that were simulated; in the fluid",
        "requests one at a time: HypSplit-DP's split for ", "largest share: ",
    ),
    ("--objective", "bottleneck"): (
        "proved optimal: no split over all tiers has a bottlen",
        "bottleneck stage: ", "slack of the others: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("objective", OF_OBJECTIVE)
def test_plan_of_the_example(capsys, example, objective):
    arguments = ("plan", "--model", "llama-3-8b", "--network", example, *objective, *SHORT)
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    for words in (
        "llama-3-8b on network: 512 + 16 tokens, KV cache for 16 sequences",
        "2 x RTX 4090", "embedding", "layer", "head",
        *OF_OBJECTIVE[objective],
        "with a rate of 1 per second, simulated token by token: 1 requests/s",
        "no schedule of this split serves more", "per million output tokens", "what would help",
        "runtime ideal: every node forms its own batches", "TTFT    mean", "TPOT    mean",
        "twice the rate of the link from 'box': ",
    ):  # fmt: skip
        assert words in out, words
    assert "extrapolated" not in out.partition("what would help")[0]


def test_plan_as_json_is_the_plan(capsys, example):
    arguments = (
        "plan",
        "--model",
        "phi-3-mini",
        "--network",
        example,
        "--weights",
        "int8",
        "--json",
    )
    code, out, _ = run(capsys, *arguments, "--prompt", 100, "--output", 20, "--rate", 3)
    assert code == 0
    document = json.loads(out)
    same = hs.plan(
        "phi-3-mini", example, prompt_tokens=100, output_tokens=20, rate_per_s=3, weights="int8"
    ).to_dict()
    for each in (document, same):
        each["result"].pop("solve_time_s")
    assert document == json.loads(json.dumps(same))


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [("plan", "--dtype", "--weights"), ("replan", "--from", "--before")],
)
def test_an_old_option_suggests_the_new_one(capsys, command, old, new):
    code, out, err = run(capsys, command, old, "x")
    message = f"hypsolve: unknown option {old}; did you mean {new}?\n"
    assert (code, out, err) == (2, "", message)


def test_infeasible_is_exit_code_1_with_a_reason(capsys, example):
    arguments = ("plan", "--model", "llama-3-70b", "--network", example, "--concurrency", 300)
    code, out, _ = run(capsys, *arguments, *SHORT)
    assert code == 1
    assert "infeasible: the tiers together reach block" in out
    assert "what would make it fit, simulated" in out
    assert "weights in gptq-int4" in out


def test_outputs_of_one_token_have_no_later_ones(capsys, example):
    arguments = ("plan", "--model", "phi-3-mini", "--network", example, "--output", 1)
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "nan" not in out and "a token;" not in out


def test_extrapolated_costs_are_marked(capsys, example):
    arguments = ("plan", "--model", "llama-3-8b", "--network", example, "--weights", "int4")
    out = run(capsys, *arguments, "--output", 16)[1]
    assert "extrapolated: no times of such weights were measured" in out


def test_methods_side_by_side(capsys, example):
    arguments = ("compare", "--model", "llama-3-8b", "--network", example, *SHORT)
    code, out, err = run(capsys, *arguments, "--objective", "bottleneck")
    assert (code, err) == (0, "")
    *table, note, layers, limits, error = out.strip().splitlines()
    assert (
        error.startswith("expected error: ")
        and note.startswith("gap: ")
        and layers.startswith("layers by tier: ")
    )
    assert "TTFT and TPOT (mean, p50, p95, p99)" in limits
    rows = {line.split()[0]: line for line in table[1:]}
    assert next(iter(rows)) == "throughput_exact"
    partitions = {n for n, m in hs.METHODS.items() if m.decides == "partition"}
    assert set(rows) - {"throughput_exact"} == partitions
    alone = re.compile(r"(optimal|feasible) +(\S+ \S+) +(\S+%)")
    found = {name: alone.search(row).groups() for name, row in rows.items()}
    exact = [found[name] for name in partitions if hs.METHODS[name].exact]
    assert len(exact) == 5 and all(each == exact[0] for each in exact)
    assert exact[0][0] == "optimal"
    code, out, _ = run(capsys, *arguments, "--method", "even_split", "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["method"] == "even_split"
    ttft_s = row["forecast"]["ttft_s"]
    assert 0 < ttft_s["p50"] <= ttft_s["p95"] <= ttft_s["p99"]
    best = planner.split("llama-3-8b", example, output_tokens=16, objective="bottleneck")
    gap = found["even_split"][2]  # to the bound that an exact method proved
    assert gap == f"{1 - best.result.bound_s / row['objective_s']:.2%}" and row["gap"] == 1.0


def test_methods_by_simulated_mean_latency(capsys, example):
    arguments = ("compare", "--model", "llama-3-8b", "--network", example, "--output", 16)
    asked = ("--objective", "mean_latency", "--rate", 3, "--time-limit", 300)
    code, out, err = run(capsys, *arguments, *asked)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()[1:-4]}
    alone = re.compile(r"(optimal|feasible) +(\S+) (s|ms) ")
    found = {name: alone.search(row).groups() for name, row in rows.items()}
    assert next(iter(rows)) == "simulated" and found["simulated"][0] == "optimal"
    seconds = {name: in_seconds(number, unit) for name, (_, number, unit) in found.items()}
    assert seconds["simulated"] == min(seconds.values()) < seconds["even_split"]
    assert set(rows) == {"simulated"} | {
        n for n, m in hs.METHODS.items() if m.decides == "partition"
    }


def test_a_bound_that_was_proved_holds_for_the_others(example):
    methods = ("even_split", "simulated", "even_split")
    found = comparison.compare(
        "llama-3-8b", example, methods, objective="mean_latency", rate_per_s=3, output_tokens=16
    )
    before, best, after = found
    assert best.bound_s == best.objective_s == after.bound_s > before.bound_s
    assert after.gap == 1 - best.objective_s / after.objective_s
    assert before.objective_s == after.objective_s > best.objective_s


def in_seconds(number, unit):
    return float(number) * {"s": 1, "ms": 1e-3, "us": 1e-6}[unit]


def read_to_end(terminal):
    """Read a terminal until the other end is closed: a program that fills it would wait."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 1000):
            pass


def test_an_interrupted_search_prints_the_best_so_far(example):
    """Progress goes to a terminal alone."""
    terminal, stderr = pty.openpty()
    command = [
        sys.executable, "-m", "hypsolve.cli", "plan", "--model", "llama-3-8b", "--network",
        str(example), "--objective", "mean_latency", "--rate", "4",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    os.close(stderr)
    seen = b""
    while b"splits simulated, least mean latency" not in seen:
        seen += os.read(terminal, 1000)
    process.send_signal(signal.SIGINT)
    reader = threading.Thread(target=read_to_end, args=(terminal,))
    reader.start()
    try:
        out, _ = process.communicate(timeout=300)
    finally:  # for one that hangs
        process.kill()
        reader.join()
        os.close(terminal)
    assert process.returncode == 130
    assert out.startswith("stopped: ")
    assert (
        "not proved optimal: no split over all tiers has a mean latency" in out
        and "(gap " in out
    )
    assert "stopped: the search was stopped: this is the best split so far" in out
    assert "what would help" not in out


def test_pareto_lists_and_draws(capsys, example, tmp_path):
    arguments = ("pareto", "--model", "llama-3-8b", "--network", example, "--rate", 2, *SHORT)
    code, out, _ = run(capsys, *arguments, "--png", tmp_path / "pareto.png")
    assert code == 0 and (tmp_path / "pareto.png").stat().st_size > 5000
    points = json.loads(run(capsys, *arguments, "--json")[1])
    assert len([line for line in out.splitlines() if " requests/s  " in line]) == len(points)
    assert "may be better" not in out  # within the time, all that may be were simulated
    assert out.startswith("simulated with a rate of 2 per second; runtime ideal")
    latencies_s = [point["latency_mean_s"] for point in points]
    rates = [point["max_requests_per_s"] for point in points]
    assert latencies_s == sorted(latencies_s, reverse=True)
    assert rates == sorted(rates, reverse=True)
    solution = planner.split("llama-3-8b", example, objective="path", output_tokens=16)
    again = forecast.predict(solution.deployment, hs.Partition(tuple(points[0]["cuts"])), 2.0)
    assert again.latency_s.mean == latencies_s[0]


def test_simulate_serves_what_it_is_told(capsys, example, tmp_path):
    base = ("simulate", "--model", "llama-3-8b", "--network", example, "--objective", "path")
    arguments = (*base, *SHORT, "--json")
    drawn = json.loads(
        run(capsys, *arguments, "--requests", 50, "--rate", 2, "--ttft-slo", 1)[1]
    )
    assert drawn["n_requests"] == 50 and drawn["slo_attainment"] > 0
    trace = tmp_path / "requests.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n1,20000,7\n")
    picture = tmp_path / "trace.json"
    code, out, _ = run(capsys, *arguments, "--trace", trace, "--perfetto", picture)
    served = json.loads(out)
    assert code == 0 and (served["n_requests"], served["n_unfinished"]) == (2, 0)
    assert json.loads(picture.read_text())["traceEvents"]
    words = run(capsys, *arguments[:-1], "--requests", 5)[1]
    assert "latency" in words and "5, of which 0 never ended" in words


def test_simulate_serves_what_plan_is_asked_for(capsys, example):
    """As many tokens, links that queue, the same rate; a workload has its own lengths."""
    base = ("simulate", "--model", "llama-3-8b", "--network", example, "--rate", 3)
    asked = (*base, "--prompt", 90, "--output", 7, "--requests", 40, "--seed", 4)
    out = run(capsys, *asked)[1]
    line = out.splitlines()[0]
    assert "40 requests, 3 per second, " in line and "of 90 + 7 tokens on average" in line
    served = json.loads(run(capsys, *asked, "--json")[1])
    solution = planner.split(
        "llama-3-8b", example, prompt_tokens=90, output_tokens=7, rate_per_s=3
    )
    deployment, result = solution.deployment, solution.result
    given = arriving(deployment, 3, 40, np.random.default_rng(4))
    trace = forecast.serve(given, result.partition)
    assert served["latency_s"]["mean"] == trace.latency_s.mean()
    of_workload = ("--objective", "path", "--workload", "azure_conversation", "--requests", 40)
    drawn = run(capsys, *base, *of_workload)[1]
    assert "of 512 + 256 tokens" not in drawn.splitlines()[0]
    assert "40 requests, 3 per second, " in drawn.splitlines()[0]
    random = [
        json.loads(
            run(capsys, *asked[:-1], seed, "--policy", "random", "--json")[1]
        )["latency_s"]["mean"]
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert random[0] == random[1] != random[2]


def test_simulate_takes_the_split_of_a_plan(capsys, example, tmp_path):
    base = ("--model", "llama-3-8b", "--network", example, *SHORT)
    path = tmp_path / "plan.json"
    path.write_text(run(capsys, "plan", *base, "--objective", "path", "--json")[1])
    cuts = json.loads(path.read_text())["result"]["cuts"]
    asked = ("simulate", *base, "--requests", 20)
    out = run(capsys, *asked, "--plan", path)[1]
    assert out.startswith(f"layers {describe_cuts(cuts)}: 20 requests")
    assert not run(capsys, *asked)[1].startswith(f"layers {describe_cuts(cuts)}: ")
    for options, message in (
        (("--objective", "path"), "--plan excludes --method and --objective"),
        (("--model", "phi-3-medium"), "must split 42 blocks over desk, box, rented, got 34"),
        (("--concurrency", 10_000), "the split does not fit: memory: tier 'rented'"),
    ):
        code, out, err = run(capsys, *asked, "--plan", path, *options)
        assert (code, out) == (2, "") and message in err
    document = json.loads(path.read_text())
    document["stages"][0]["tier"], document["stages"][2]["tier"] = "rented", "desk"
    path.write_text(json.dumps(document))
    assert "tiers must be in the order desk, box, rented" in run(
        capsys, *asked, "--plan", path
    )[2]  # fmt: skip


def test_room_is_left_for_the_sequences_asked_for(capsys, example):
    """More of them leave less on each node: the dispatcher sees less room than there is."""
    asked = ("simulate", "--model", "llama-3-8b", "--network", example, *SHORT, "--json")
    deployments = []
    real = commands.simulate_requests

    def simulate(deployment, *arguments, **options):
        deployments.append(deployment)
        return real(deployment, *arguments, **options)

    commands.simulate_requests = simulate
    try:
        run(capsys, *asked, "--requests", 5, "--concurrency", 3)
    finally:
        commands.simulate_requests = real
    assert deployments[0].max_resident_tokens == 3 * (512 + 16)


def test_a_comparison_ends_with_the_search_that_was_stopped(example, monkeypatch):
    calls = []

    def serve(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return forecast.serve(*arguments)

    monkeypatch.setattr(simulation_search, "serve", serve)
    (found,) = comparison.compare(
        "llama-3-8b", example, objective="mean_latency", output_tokens=4
    )
    assert found.message.endswith("interrupted") and len(calls) == 2


def test_an_interrupted_comparison_says_so(capsys, example, monkeypatch):
    real = comparison.solve_query

    def solve_query(query, *others, **options):
        if query.method == "memory_proportional":
            raise KeyboardInterrupt
        return real(query, *others, **options)

    monkeypatch.setattr(comparison, "solve_query", solve_query)
    arguments = ("compare", "--model", "llama-3-8b", "--network", example, *SHORT)
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (130, "stopped: 2 of 12 methods are finished\n")
    rows = out.partition("layers by tier: ")[0].splitlines()[1:]
    methods = [line.split()[0] for line in rows]
    assert methods == ["throughput_exact", "hypsplit_dp", "even_split"]


def test_an_interrupt_before_there_is_a_split_is_exit_code_130(capsys, example, monkeypatch):
    def solve_query(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(planner, "solve_query", solve_query)
    code, out, err = run(capsys, "plan", "--model", "llama-3-8b", "--network", example)
    assert (code, out, err.strip()) == (130, "", "hypsolve: stopped")


def test_an_interrupted_search_is_not_followed_by_another(capsys, example, monkeypatch):
    """Where the best so far cannot be expressed, Ctrl-C ends the command all the same."""
    real, calls = simulation_search.serve, []

    def serve(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(simulation_search, "serve", serve)
    command = ("plan", "--model", "llama-3-8b", "--network", example, "--output", 8)
    code, out, err = run(capsys, *command, "--objective", "mean_latency", "--export", "vllm")
    assert (code, out) == (130, "") and len(calls) == 3
    assert err.startswith("stopped: the search was stopped: this is the best split so far\n")
    assert "vllm cannot express it: " in err
    assert "tier 'box' has 2, tier 'rented' has 1: box-rtx-4090-1 would be left out" in err


def test_nobody_reads_on(example):
    """As with `| head`: not an error of ours, and not the code for what does not fit."""
    command = [sys.executable, "-m", "hypsolve.cli", "schema", "network"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("plan", "--report", "nowhere/x.html"), "nowhere/x.html: cannot write a report here"),
        (("pareto", "--png", "nowhere/x.png"), "nowhere/x.png: no such folder to write in"),
        (("pareto", "--png", "x.xyz"), "x.xyz: the name must end in .png or .svg or .pdf"),
        (("simulate", "--perfetto", "nowhere/x.json"), "nowhere/x.json: no such folder"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_work(
    command, message, capsys, example, monkeypatch
):
    monkeypatch.setattr(planner, "solve_query", None)  # would be an error if called
    base = ("--model", "llama-3-8b", "--network", example)
    code, out, err = run(capsys, command[0], *base, *command[1:])
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("model", ["no/config.json", "config.json", "", "a/b"])
def test_a_model_that_is_not_there(model, capsys, example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "plan", "--model", model, "--network", example)
    assert code == 2 and "no such file or folder, nor a model of that name" in err


def test_a_model_by_its_repository(example):
    short = {"output_tokens": 16, "with_upgrades": False}
    named = hs.plan("llama-3-8b", example, **short)
    found = hs.plan("meta-llama/Meta-Llama-3-8B", example, **short)
    assert found.model == named.model and found.result.objective_s == named.result.objective_s
    assert named.upgrades == () == named.alternatives and named.forecast is not None


@pytest.mark.parametrize("command", ["plan", "compare", "pareto", "simulate"])
def test_every_command_says_that_nothing_fits(capsys, example, command):
    base = (command, "--model", "llama-3-70b", "--network", example, *SHORT)
    arguments = (*base, "--concurrency", 300)
    code, out, err = run(capsys, *arguments)
    assert code == 1 and "infeasible" in out and err == ""
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 1 and err == ""
    json.loads(out)


EVERY_METHOD = [
    *hs.METHODS, *hs.THROUGHPUT_METHODS, *hs.PLACEMENT_METHODS, *hs.LAYER_FLOW_METHODS,
]  # fmt: skip


@pytest.mark.parametrize("command", ["gpus", "interconnects", "models", "methods"])
def test_lists(capsys, command):
    known = {
        "gpus": hs.gpus(), "interconnects": hs.interconnects(), "models": hs.models(),
        "methods": EVERY_METHOD,
    }[command]  # fmt: skip
    code, out, _ = run(capsys, command)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(known)
    rows = json.loads(run(capsys, command, "--json")[1])
    assert [next(iter(row.values())) for row in rows] == list(known)
    assert all(row.get("source", "x") and row.get("what", "x") for row in rows)


def test_the_list_of_gpus_fits_a_terminal(capsys):
    """Sources of hundreds of characters are cut there, and whole for a single GPU."""
    _, out, err = run(capsys, "gpus")
    assert max(map(len, out.splitlines())) <= 110 and "hypsolve gpus NAME" in err
    for name in ("rtx-3090", "apple-m1"):
        _, out, err = run(capsys, "gpus", name)
        assert err == "" and hs.gpu(name).source in out and name in out.splitlines()[0]
        assert json.loads(run(capsys, "gpus", name, "--json")[1])["source"] == (
            hs.gpu(name).source
        )
    code, out, err = run(capsys, "gpus", "rtx-309")
    assert (code, out) == (2, "") and "unknown gpu 'rtx-309'; did you mean rtx-3090?" in err


def test_init_leaves_a_file_alone(capsys, example):
    example.write_text("mine")
    code, _, err = run(capsys, "init", example)
    assert (code, err) == (2, f"hypsolve: {example} exists already; give another name\n")
    assert example.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan",), "Missing option '--model'"),
        (("plan", "--model", "gpt-9", "--network", "NET"), "unknown model 'gpt-9'"),
        (("plan", "--model", "llama-3-8b", "--network", "no.toml"), "No such file"),
        (
            ("plan", "--model", "llama-3-8b", "--network", "NET", "--rate", "0"),
            "rate_per_s must",
        ),
        (("plan", "--model", "llama-3-8b", "--network", "NET", "--rate", "x"), "'x' is not"),
        (
            ("plan", "--model", "llama-3-8b", "--network", "NET", "--objective", "x"),
            "'x' is not",
        ),
        (("plan", "--model", "llama-3-8b", "--network", "NET", "--nothing"), "--nothing"),
        (("fly",), "No such command 'fly'"),
        (
            ("compare", "--model", "llama-3-8b", "--network", "NET", "--method", "heft"),
            "method 'heft' decides a schedule, too",
        ),
        (
            (
                "simulate",
                "--model",
                "llama-3-8b",
                "--network",
                "NET",
                *SHORT,
                "--trace",
                "no.csv",
            ),
            "no.csv",
        ),
    ],
)
def test_bad_input_is_exit_code_2_and_one_line(capsys, example, arguments, message):
    given = [example if each == "NET" else each for each in arguments]
    code, out, err = run(capsys, *given)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("hypsolve: ")
    assert err.count("\n") == 1


def test_a_bad_network_file_is_one_line(capsys, example):
    example.write_text(example.read_text().replace("rtx-4090", "rtx-4091"))
    code, _, err = run(capsys, "plan", "--model", "llama-3-8b", "--network", example)
    assert code == 2 and "unknown gpu 'rtx-4091'; did you mean rtx-4090?" in err
    assert err.count("\n") == 1


def test_help_and_version(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "hypsolve plan --model llama-3-8b" in out
    assert run(capsys, "--version")[0] == 0


def test_the_command_is_installed(tmp_path):
    script = os.path.join(os.path.dirname(sys.executable), "hypsolve")
    done = subprocess.run([script, "init"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "network.toml").read_text() == EXAMPLE


def test_methods_are_listed_in_their_own_words_alone(capsys):
    rows = json.loads(run(capsys, "methods", "--json")[1])
    assert [row["method"] for row in rows] == EVERY_METHOD
    proofs = {(row["solves"], row["method"]): row["proves"] for row in rows}
    assert proofs["ServingInstance", "throughput_exact"] == "optimum of the fluid model"
    assert proofs["ServingInstance", "even_split"] == proofs["Instance", "gpipe"] == "nothing"
    assert proofs["Instance", "joint_exact"] == "optimum"
    assert proofs["PlacementProblem", "placement_highs"] == "optimum of the fluid model"
    assert proofs["PlacementProblem", "replica_per_machine"] == "nothing"
    assert proofs["LayerFlowProblem", "stage_dp"] == "bound"
    assert proofs["LayerFlowProblem", "layer_cpsat"] == "optimum"
    for row in rows:
        assert row["what"] and "]_" not in row["what"] and "Examples" not in row["source"]

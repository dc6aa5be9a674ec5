"""Held-out forecasts never see what they forecast."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hypsolve.calibration import splits
from hypsolve.calibration.predictors import PREDICTORS
from hypsolve.calibration.runs import ServingRun
from hypsolve.calibration.servers import expected_error, fitted_groups, fitted_servers

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("HYPSOLVE_SHARED") or ROOT.parent / "shared")
DATA = SHARED / "data" / "serving_runs"
needs_data = pytest.mark.skipif(
    not (DATA / "dense_runs.csv").is_file(),
    reason="measured runs not here: set HYPSOLVE_SHARED or put them at ../shared",
)
RUN = ServingRun(
    gpu="h100_sxm", runtime="vllm", model="meta-llama/Llama-3.1-8B", tensor_parallel=1,
    prompt_tokens=512, output_tokens=64, concurrency=4, ttft_s=0.1, tpot_s=0.01,
)  # fmt: skip


@pytest.fixture
def table():
    """Two groups of the fit, one that it does not know; two degrees, three lengths each."""
    return [
        replace(RUN, model=model, tensor_parallel=degree, prompt_tokens=p)
        for model in ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "microsoft/Phi-3-mini-4k-instruct")
        for degree in (1, 2)
        for p in (128, 256, 512)
    ]


@pytest.fixture
def seen(monkeypatch, table):
    """Record what each fit sees, in the order of the fits."""
    calls = []
    true_fit = splits.fit_servers

    def spy(runs, *, base=None):
        calls.append(runs)
        return true_fit(runs[:1], base=base, n_steps=1)

    monkeypatch.setattr(splits, "fit_servers", spy)
    known = {run.group for run in table[:12]}
    monkeypatch.setattr(splits, "fitted_groups", lambda: known)
    return calls


def test_a_group_is_held_out_over_all_degrees(table, seen):
    """A fit that saw another degree of the group has seen its model."""
    splits.new_groups(table)
    groups = [{run.group for run in runs} for runs in seen]
    assert groups == [{table[6].group}, {table[0].group}]  # the third takes the catalogue's


def test_half_of_the_lengths_is_held_out(table, seen):
    """Every length is forecast by a fit to the other half, of known and unknown groups."""
    splits.new_lengths(table)
    lengths = [{run.prompt_tokens for run in runs} for runs in seen]
    assert lengths == [{256}, {128, 512}, {256}, {128, 512}]
    assert [len({run.group for run in runs}) for runs in seen] == [2, 2, 1, 1]
    assert splits.halves(table[:3]) == [0, 1, 0]


def test_every_server_of_the_catalogue_states_what_is_known():
    """A profile says what it was fitted to, its intervals and its held-out errors."""
    assert fitted_servers() and fitted_groups()
    for (gpu, runtime), server in fitted_servers().items():
        assert server.n_runs > 0 and server.models and "aiconfigurator_core" in server.source
        by_form = (server.new_groups, server.new_lengths, server.three_numbers)
        for errors in (*by_form, server.simulated_groups, server.simulated_lengths):
            assert set(errors) == {"tpot", "tokens_per_s", "ttft"}
            assert all(0 < error < 10 for error in errors.values()), (gpu, runtime)
        low, at, high = (each.to_array() for each in (server.low, server.costs, server.high))
        assert (low <= high).all() and ((0.5 * low < at) & (at < 2 * high)).all()


PUBLISHED = {
    "calibrated_new_groups": "new_groups", "calibrated_new_lengths": "new_lengths",
    "simulated_new_groups": "simulated_groups", "simulated_new_lengths": "simulated_lengths",
    "today": "three_numbers",
}  # fmt: skip
MODELS = {
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b", "Qwen/Qwen3-32B": "qwen3-32b",
    "nvidia/Qwen3-32B-NVFP4": "qwen3-32b", "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
}  # fmt: skip


def published():
    """Read the published errors: by server, model and kind, a list of (runs, errors)."""
    with (ROOT / "results" / "validation_errors.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["predictor"] in PUBLISHED]
    found = {}
    for row in rows:
        if row["gpu"] == "gb200":  # its runs are not those of a B200
            continue
        server = row["gpu"].split("_")[0], row["runtime"].replace("trtllm", "tensorrt-llm")
        errors = {key: float(row[f"{key}_s" if key[0] == "t" and "_" not in key else key])
                  for key in ("ttft", "tpot", "tokens_per_s")}  # fmt: skip
        key = server, PUBLISHED[row["predictor"]]
        found.setdefault(key, []).append((MODELS[row["model"]], int(row["n"]), errors))
    return found


def mean(groups, name):
    return sum(n * errors[name] for _, n, errors in groups) / sum(n for _, n, _ in groups)


def test_errors_of_servers_are_those_that_results_publish():
    """The mean of 69 runs of two models was printed as that of the 57 runs of one of them."""
    assert {server for server, _ in published()} == set(fitted_servers())
    for (server, kind), groups in published().items():
        found = fitted_servers()[server]
        of_model = {}
        for each in groups:
            of_model.setdefault(each[0], []).append(each)
        assert set(found.by_model) == set(of_model)
        pairs = [(found, groups), *((found.by_model[m], of_model[m]) for m in of_model)]
        for errors, some in pairs:
            assert errors.n_counted == sum(n for _, n, _ in some)
            for name, error in getattr(errors, kind).items():
                # the published ones were simulated a few versions earlier
                assert error == pytest.approx(mean(some, name), rel=0.02, abs=2e-4)


def test_simulations_of_fitted_servers_are_as_true_as_the_closed_form():
    """Within a point and a half, but for TPOT of SGLang, which computes prompts first."""
    for (_, runtime), server in fitted_servers().items():
        for closed, simulated in (
            (server.new_groups, server.simulated_groups),
            (server.new_lengths, server.simulated_lengths),
        ):
            assert simulated["tokens_per_s"] <= closed["tokens_per_s"] + 0.015
            if runtime != "sglang":
                assert simulated["tpot"] <= closed["tpot"] + 0.015
            assert simulated["tokens_per_s"] < server.three_numbers["tokens_per_s"]


def test_the_expected_error_is_that_of_the_forecast():
    """Plans forecast by three numbers, not by the fitted coefficients."""
    errors = fitted_servers()["h100", "vllm"].three_numbers
    assert f"time per output token {errors['tpot']:.0%}" in expected_error("h100", "vllm")
    assert expected_error("t4", "vllm") == "not validated on this GPU and runtime"


@needs_data
def test_the_catalogue_is_what_the_runs_give():
    """A table that was edited by hand, or made of other sources, would be cited wrongly."""
    from experiments import validation
    from hypsolve.calibration.fit import fit_servers
    from hypsolve.calibration.rules import fit_for

    used = fit_for(validation.load(DATA))
    assert {run.group for run in used} == fitted_groups()
    made = fit_servers(used)
    for server in fitted_servers().values():
        costs = made.costs(server.gpu, server.runtime).to_array()
        assert server.costs.to_array() == pytest.approx(costs, rel=0.02)


def test_the_table_of_servers_can_be_made_and_read_again(tmp_path, monkeypatch):
    """Forecasts read the factors, groups and errors that `experiments.fit_servers` writes."""
    import tomllib

    from experiments import fit_servers as script
    from hypsolve.calibration import servers
    from hypsolve.calibration.fit import fit_servers

    runs = [
        replace(RUN, gpu=gpu, concurrency=users, prompt_tokens=p, tpot_s=0.006 + users * 1e-4)
        for gpu in ("h100_sxm", "gb200") for users in (1, 8) for p in (128, 256)
    ]  # fmt: skip
    fit = fit_servers(runs, n_steps=3)
    monkeypatch.setattr(script, "PREDICTORS", {
        name: PREDICTORS["today_fluid"] for name in script.SPLITS.values()
    })  # fmt: skip
    drawn = script.draws(runs, 2, print)
    rows = script.server_rows(runs, runs, fit, drawn)
    path = tmp_path / "servers.toml"
    path.write_text(script.render(fit, runs, rows))
    table = tomllib.loads(path.read_text())
    monkeypatch.setattr(servers, "_table", lambda: table)
    for cached in (servers.catalog_fit, servers.fitted_servers):
        cached.cache_clear()
    try:
        assert servers.fitted_groups() == {run.group for run in runs}
        made, found = fit.costs("h100", "vllm"), servers.fitted_servers()["h100", "vllm"]
        assert found.costs.to_array() == pytest.approx(made.to_array(), rel=1e-3)
        assert found.n_runs == 4 and found.models == ("llama-3.1-8b",)
        errors = script.errors(runs[:1], script.np.array([[0.2, 2 * runs[0].tpot_s, 100]]))
        assert (errors["ttft"], errors["tpot"]) == pytest.approx((1, 1))
    finally:
        for cached in (servers.catalog_fit, servers.fitted_servers):
            cached.cache_clear()

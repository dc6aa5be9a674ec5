"""Held-out forecasts never see what they forecast."""

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

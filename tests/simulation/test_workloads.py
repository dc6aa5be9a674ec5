"""Random workloads, and the fits that they are drawn from."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import fit_traces
from hypsolve.simulation import workloads
from hypsolve.simulation.workloads import WORKLOAD_MAX_TOKENS, WORKLOADS, workload

ROOT = Path(__file__).parents[2]
TRACES = Path(os.environ.get("HYPSOLVE_SHARED", ROOT.parent / "shared")) / "data" / "traces"
FIELDS = ("arrival_s", "prompt_tokens", "output_tokens")


# the front door


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_that_of_its_sampler(name):
    requests = workload(name, n_requests=50, rate_per_s=3.0, seed=9)
    same = WORKLOADS[name](50, 3.0, np.random.default_rng(9))
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(requests, field), getattr(same, field))
    other = workload(name, n_requests=50, rate_per_s=3.0, seed=8)
    assert (other.prompt_tokens != requests.prompt_tokens).any()


def test_the_default_needs_a_number_and_a_rate_only():
    requests = workload(n_requests=20, rate_per_s=1.0)
    same = workload("synthetic", n_requests=20, rate_per_s=1.0, seed=0)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(requests, field), getattr(same, field))


@given(
    name=st.sampled_from(list(WORKLOADS)),
    n_requests=st.integers(1, 60),
    factor=st.sampled_from([0.25, 2.0, 8.0]),
    seed=st.integers(0, 2**64),
    max_tokens=st.none() | st.integers(516, 9000),
)
def test_a_rate_only_stretches_time(name, n_requests, factor, seed, max_tokens):
    options = {"n_requests": n_requests, "seed": seed, "max_tokens": max_tokens}
    once = workload(name, rate_per_s=1.5, **options)
    fast = workload(name, rate_per_s=1.5 * factor, **options)
    assert len(once) == n_requests
    np.testing.assert_array_equal(once.arrival_s, fast.arrival_s * factor)
    np.testing.assert_array_equal(once.prompt_tokens, fast.prompt_tokens)
    np.testing.assert_array_equal(once.output_tokens, fast.output_tokens)
    assert (np.diff(once.arrival_s) >= 0).all()
    limit = WORKLOAD_MAX_TOKENS[name] if max_tokens is None else max_tokens
    assert (once.prompt_tokens + once.output_tokens).max() <= limit


@pytest.mark.parametrize(
    ("name", "prompt", "output"),
    [
        ("synthetic", [178, 116, 269, 748], [45, 41, 90, 82]),
        ("azure_conversation", [1076, 382, 385, 415], [420, 81, 97, 142]),
        ("azure_code", [2265, 1075, 1212, 4567], [45, 9, 11, 16]),
    ],
)
def test_a_seed_gives_the_same_requests_in_every_version(name, prompt, output):
    requests = workload(name, n_requests=4, rate_per_s=1.0, seed=7)
    assert requests.prompt_tokens.tolist() == prompt
    assert requests.output_tokens.tolist() == output


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"name": "azure"},
            ValueError,
            "unknown workload 'azure'; .*choose one of synthetic, a",
        ),
        ({"name": None}, ValueError, "unknown workload None; choose one of synthetic, azure_"),
        ({"n_requests": 0}, ValueError, "workload: n_requests must be at least 1, got 0"),
        (
            {"n_requests": 10**12},
            ValueError,
            "workload: n_requests must be at most 10000000, got 1000000000000",
        ),
        (
            {"n_requests": 2.0},
            TypeError,
            "workload: n_requests must be a whole number, got 2.0",
        ),
        ({"rate_per_s": 0}, ValueError, "workload: rate_per_s must be positive and finite"),
        (
            {"rate_per_s": np.inf},
            ValueError,
            "workload: rate_per_s must be positive and finite",
        ),
        ({"rate_per_s": "x"}, TypeError, "workload: rate_per_s must be a number, got 'x'"),
        ({"rate_per_s": 1e-320}, ValueError, "requests: arrival_s must be .* got inf"),
        ({"seed": -1}, ValueError, "workload: seed must be at least 0, got -1"),
        ({"seed": None}, TypeError, "workload: seed must be a whole number, got None"),
        ({"max_tokens": 9}, ValueError, "synthetic: max_tokens must be at least 516, got 9"),
        ({"max_tokens": "x"}, TypeError, "synthetic: max_tokens must be a whole number, got"),
    ],
)
def test_wrong_arguments_are_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        workload(**({"n_requests": 2, "rate_per_s": 1.0} | options))


def test_it_needs_nothing_but_the_package(tmp_path):
    """As a user of the wheel has it: no folder of the repository to import from."""
    (tmp_path / "hypsolve").symlink_to(ROOT / "hypsolve")
    code = (
        "from hypsolve.simulation.workloads import WORKLOADS, workload\n"
        "for name in WORKLOADS:\n"
        "    assert len(workload(name, n_requests=3, rate_per_s=1.0)) == 3\n"
        "import sys\n"
        "assert not {'instances', 'experiments'} & set(sys.modules)\n"
    )
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=clean)


# the samplers


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": -3}, ValueError, "n must be at least 1, got -3"),
        ({"n": 10**7 + 1}, ValueError, "n must be at most 10000000, got 10000001"),
        ({"n": 2.0}, TypeError, "n must be a whole number, got 2.0"),
        ({"rate": 0}, ValueError, "rate must be positive and finite, got 0"),
        ({"rate": "x"}, TypeError, "rate must be a number, got 'x'"),
        ({"rng": 3}, TypeError, "rng must be a Generator, got 3"),
        ({"max_tokens": 10}, ValueError, "max_tokens must be at least"),
        ({"max_tokens": "x"}, TypeError, "max_tokens must be a whole number, got 'x'"),
    ],
)
def test_a_sampler_refuses_by_name(name, options, error, message):
    arguments = {"n": 2, "rate": 1.0, "rng": np.random.default_rng(0)}
    assert len(WORKLOADS[name](**arguments)) == 2
    with pytest.raises(error, match=f"{name}: {message}"):
        WORKLOADS[name](**(arguments | options))


@pytest.mark.parametrize("name", WORKLOADS)
def test_lengths_are_within_limits(name):
    requests = workload(name, n_requests=3000, rate_per_s=2.0, seed=5)
    total = requests.prompt_tokens + requests.output_tokens
    assert WORKLOAD_MAX_TOKENS[name] / 2 < total.max() <= WORKLOAD_MAX_TOKENS[name]
    short = workload(name, n_requests=3000, rate_per_s=2.0, seed=5, max_tokens=600)
    assert (short.prompt_tokens + short.output_tokens).max() <= 600


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("synthetic", 0.05), ("azure_conversation", 0.05), ("azure_code", 0.5)],
)
def test_mean_rate_is_as_asked(name, tolerance):
    requests = workload(name, n_requests=20_000, rate_per_s=4.0, seed=1)
    assert len(requests) / requests.arrival_s[-1] == pytest.approx(4.0, rel=tolerance)


def test_azure_lengths_look_like_the_traces():
    # means and medians of the published traces, of which the fits saw two thirds
    chat = workload("azure_conversation", n_requests=50_000, rate_per_s=1.0, seed=2)
    code = workload("azure_code", n_requests=50_000, rate_per_s=1.0, seed=2)
    assert np.median(chat.prompt_tokens) == pytest.approx(1016, rel=0.1)
    assert np.median(chat.output_tokens) == pytest.approx(115, rel=0.15)
    assert np.median(code.prompt_tokens) == pytest.approx(1460, rel=0.15)
    assert np.median(code.output_tokens) == 13
    long = (chat.prompt_tokens > 1000) & (chat.prompt_tokens < 1200)
    assert chat.output_tokens[long].mean() > 2 * chat.output_tokens[~long].mean()


# the fits


@pytest.mark.skipif(not TRACES.is_dir(), reason="traces not here: set HYPSOLVE_SHARED")
def test_fits_are_reproduced_from_the_traces(capsys):
    assert fit_traces.main([str(TRACES)]) == 0
    printed = capsys.readouterr().out
    fits = eval(f"dict({','.join(printed.splitlines())})", {"Fit": workloads.Fit})
    for name, stored in (
        ("AZURE_CONVERSATION", workloads.AZURE_CONVERSATION),
        ("AZURE_CODE", workloads.AZURE_CODE),
    ):
        fit = fits[name]
        assert (fit.n, fit.max_prompt, fit.max_output) == (
            stored.n,
            stored.max_prompt,
            stored.max_output,
        )
        for field in ("weights", "means", "covariances", "gap_weights", "gap_means"):
            np.testing.assert_allclose(getattr(fit, field), getattr(stored, field), atol=2e-3)
        assert fit.ks == pytest.approx(stored.ks, abs=0.003)
        assert max(fit.ks[key] for key in ("prompt", "output")) < 0.06


def test_the_fit_without_traces_says_so_and_exits_2(tmp_path, capsys):
    assert fit_traces.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fit_traces: ") and "azure_llm_2023_conv.csv" in error
    assert error.count("\n") == 1

"""Fitted servers of the catalogue (``servers.toml``), and the error to expect of a forecast.

A server is a GPU under a runtime. ``python -m experiments.fit_servers`` makes the table.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

import numpy as np

from hypsolve.calibration.fit import Fit
from hypsolve.calibration.server_costs import NAMES, ServerCosts

QUANTITIES = {"tpot": "time per output token", "tokens_per_s": "tokens/s", "ttft": "TTFT"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanErrors:
    """Mean relative errors of forecasts of measured runs (0.05 is 5 %).

    The runs are all that count by `hypsolve.calibration.rules.left_out`, also those that no
    coefficient was fitted to. Each dict has ``tpot``, ``tokens_per_s`` and ``ttft``.

    Attributes
    ----------
    n_counted : int
        Runs whose errors these are.
    max_counted_users : int
        Largest number of users in these runs. Batches of more are an extrapolation.
    new_groups, new_lengths : dict of str to float
        Of the closed form, on models and on lengths to which the coefficients had not been
        fitted.
    simulated_groups, simulated_lengths : dict of str to float
        Likewise, of simulations with the coefficients as `OperatorRates`.
    three_numbers : dict of str to float
        Of `hypsolve.plan` and `hypsolve.simulate` today: their profiles of GPUs have three
        numbers, which were fitted to block times and not to servers.
    """

    n_counted: int
    max_counted_users: int
    new_groups: dict[str, float]
    new_lengths: dict[str, float]
    simulated_groups: dict[str, float]
    simulated_lengths: dict[str, float]
    three_numbers: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedServer(MeanErrors):
    """A GPU under a runtime, and how well its coefficients forecast what they had not seen.

    The errors are those of all its runs that count; `by_model` has those of each model.

    Attributes
    ----------
    gpu, runtime : str
        Names in the catalogue.
    costs, low, high : ServerCosts
        Coefficients, and the ends of their 90 % intervals: the fit was repeated on lengths of
        requests that were drawn with replacement.
    n_runs : int
        Runs of this server that they were fitted to.
    max_users : int
        Largest number of users in these runs. Batches of more are an extrapolation.
    models : tuple of str
        Models of these runs.
    by_model : dict of str to MeanErrors
        Errors of the runs of each measured model, by its name in the catalogue; of all models
        with runs that count, also of those that no coefficient was fitted to.
    source : str
    """

    gpu: str
    runtime: str
    costs: ServerCosts
    low: ServerCosts
    high: ServerCosts
    n_runs: int
    max_users: int
    models: tuple[str, ...]
    by_model: dict[str, MeanErrors]
    source: str


@functools.cache
def _table() -> dict[str, Any]:
    path = resources.files("hypsolve.catalog").joinpath("servers.toml")
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def fitted_groups() -> frozenset[tuple[str, str, str]]:
    """Return the groups of runs (GPU, runtime, model) that the catalogue was fitted to.

    The names are those of the table of runs.
    """
    groups = _table().get("groups", [])
    return frozenset((gpu, runtime, model) for gpu, runtime, model in groups)


@functools.cache
def catalog_fit() -> Fit:
    """Return the fit of the catalogue, which has coefficients for any GPU and runtime.

    Examples
    --------
    >>> costs = catalog_fit().costs("h100", "vllm")
    >>> 0.8 < costs.read_16 < 1  # of 3.35 TB/s
    True
    """
    parts = {
        (part["gpu"], part["runtime"]): np.log([part["factors"][name] for name in NAMES])
        for part in _table().get("parts", [])
    }
    return Fit(parts, int(_table().get("n_runs", 0)))


@functools.cache
def fitted_servers() -> dict[tuple[str, str], FittedServer]:
    """Return the servers of the catalogue by GPU and runtime.

    Examples
    --------
    >>> ("h100", "tensorrt-llm") in fitted_servers()
    True
    """
    source = _table().get("source", "")
    return {
        (row["gpu"], row["runtime"]): FittedServer(
            gpu=row["gpu"],
            runtime=row["runtime"],
            costs=catalog_fit().costs(row["gpu"], row["runtime"]),
            low=ServerCosts(**row["low"]),
            high=ServerCosts(**row["high"]),
            n_runs=row["n_runs"],
            max_users=row["max_users"],
            models=tuple(row["models"]),
            by_model={model: MeanErrors(**errors) for model, errors in row["by_model"].items()},
            source=source,
            **{field.name: row[field.name] for field in fields(MeanErrors)},
        )
        for row in _table().get("servers", [])
    }


def describe_errors(errors: Mapping[str, float]) -> str:
    """Write mean relative errors in words.

    Examples
    --------
    >>> describe_errors({"tpot": 0.078, "tokens_per_s": 0.058, "ttft": 0.32})
    'time per output token 8%, tokens/s 6%, TTFT 32%'
    """
    return ", ".join(f"{words} {errors[name]:.0%}" for name, words in QUANTITIES.items())


def expected_error(gpu: str, runtime: str) -> str:
    """Return what is known of the error of a plan's forecast, as one sentence.

    Parameters
    ----------
    gpu, runtime : str
        Names in the catalogue.

    Returns
    -------
    str
        The mean errors of forecasts with the GPU's three numbers on measured servers, to which
        they were not fitted; or that there are none.

    Examples
    --------
    >>> expected_error("rtx-4090", "vllm")
    'not validated on this GPU and runtime'
    >>> expected_error("h100", "vllm").startswith("expected error of this forecast: ")
    True
    """
    found = fitted_servers().get((gpu, runtime))
    if found is None:
        return "not validated on this GPU and runtime"
    return (
        f"expected error of this forecast: {describe_errors(found.three_numbers)} (mean of"
        f" {found.n_counted} measured runs of {' and '.join(found.by_model)})"
    )

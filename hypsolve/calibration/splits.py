"""Held-out forecasts: of groups, and of lengths, to which their coefficients were not fitted.

`new_groups` leaves out whole groups (GPU, runtime, model) in turn, over all degrees of tensor
parallelism. `new_lengths` fits to half of the lengths of every group, and forecasts the others,
both ways. Groups to which the coefficients of the catalogue were not fitted are forecast by
these, or by a fit to half of their lengths that starts from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hypsolve.calibration.fit import Fit, fit_servers
from hypsolve.calibration.rules import fit_for
from hypsolve.calibration.runs import ServingRun, of_groups
from hypsolve.calibration.servers import catalog_fit, fitted_groups
from hypsolve.problem.arrays import Array

Group = tuple[str, str, str]


def new_groups(runs: Sequence[ServingRun]) -> Array:
    """Forecast each group by a fit that did not see it.

    Parameters
    ----------
    runs : sequence of ServingRun
        Runs that can be deployed.

    Returns
    -------
    ndarray, shape (n_runs, 3)
        Time to first token, time per output token, tokens per second.
    """
    return _forecast(runs, fits_of_new_groups(runs))


def fits_of_new_groups(runs: Sequence[ServingRun]) -> list[Fit]:
    """Return the fit of each run that did not see its group."""
    known, made = fitted_groups(), {}
    seen = [run for run in fit_for(runs) if run.group in known]
    for group in dict.fromkeys(run.group for run in runs):
        made[group] = catalog_fit()
        if group in known:
            made[group] = fit_servers([run for run in seen if run.group != group])
    return [made[run.group] for run in runs]


def new_lengths(runs: Sequence[ServingRun]) -> Array:
    """Forecast half of the lengths of every group by a fit to the other half, both ways.

    Returns
    -------
    ndarray, shape (n_runs, 3)
        As in `new_groups`.
    """
    return _forecast(runs, fits_of_new_lengths(runs))


def fits_of_new_lengths(runs: Sequence[ServingRun]) -> list[Fit]:
    """Return the fit of each run that saw only the other half of its group's lengths."""
    known, usable = fitted_groups(), {id(run) for run in fit_for(runs)}
    half, made = halves(runs), [catalog_fit()] * len(runs)
    for is_known in (True, False):
        some = [i for i, run in enumerate(runs) if (run.group in known) == is_known]
        base = None if is_known else catalog_fit()
        for tested in (0, 1):
            others = [runs[i] for i in some if half[i] != tested and id(runs[i]) in usable]
            fit = fit_servers(others, base=base)
            for i in some:
                if half[i] == tested:
                    made[i] = fit
    return made


def halves(runs: Sequence[ServingRun]) -> list[int]:
    """Return the half, 0 or 1, of each run's lengths.

    The lengths (prompt and output tokens) of a group are sorted, and go to the halves in turn.
    """
    half: dict[tuple[Group, int, int], int] = {}
    for group, of_group in of_groups(runs).items():
        lengths = sorted({(run.prompt_tokens, run.output_tokens) for run in of_group})
        half |= {(group, *each): i % 2 for i, each in enumerate(lengths)}
    return [half[run.group, run.prompt_tokens, run.output_tokens] for run in runs]


def _forecast(runs: Sequence[ServingRun], fits: Sequence[Fit]) -> Array:
    """Return the forecasts of runs, each by its own fit."""
    made = np.zeros((len(runs), 3))
    by_fit: dict[int, list[int]] = {}
    for i, fit in enumerate(fits):
        by_fit.setdefault(id(fit), []).append(i)
    for index in by_fit.values():
        made[index] = np.array(fits[index[0]].forecast([runs[i] for i in index])).T
    return made

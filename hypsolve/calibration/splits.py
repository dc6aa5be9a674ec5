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
    known = fitted_groups()
    seen = [run for run in fit_for(runs) if run.group in known]
    made = np.zeros((len(runs), 3))
    for group in dict.fromkeys(run.group for run in runs):
        fit = catalog_fit()
        if group in known:
            fit = fit_servers([run for run in seen if run.group != group])
        _fill(made, fit, runs, [i for i, run in enumerate(runs) if run.group == group])
    return made


def new_lengths(runs: Sequence[ServingRun]) -> Array:
    """Forecast half of the lengths of every group by a fit to the other half, both ways.

    Returns
    -------
    ndarray, shape (n_runs, 3)
        As in `new_groups`.
    """
    known, usable = fitted_groups(), {id(run) for run in fit_for(runs)}
    half = halves(runs)
    made = np.zeros((len(runs), 3))
    for is_known in (True, False):
        some = [i for i, run in enumerate(runs) if (run.group in known) == is_known]
        base = None if is_known else catalog_fit()
        for tested in (0, 1):
            others = [runs[i] for i in some if half[i] != tested and id(runs[i]) in usable]
            fit = fit_servers(others, base=base)
            _fill(made, fit, runs, [i for i in some if half[i] == tested])
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


def _fill(made: Array, fit: Fit, runs: Sequence[ServingRun], index: list[int]) -> None:
    if index:
        made[index] = np.array(fit.forecast([runs[i] for i in index])).T

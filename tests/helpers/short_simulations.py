"""Plans with short simulations: what they print, export or keep is not about their length.

Tests of how a load is judged are marked ``full_length``, a test or a whole module: they
simulate as many requests as users get. So does every test in the profile ``nightly``. The time
limits of plans count the seconds of this process alone: on a busy machine, no search is cut.
"""

import os
import time

import pytest

from hypsolve.planning import (
    comparison,
    forecast,
    saturation,
    simulation_search,
    sustained_rate,
)
from hypsolve.solvers import clock

SHORT = (
    (sustained_rate, "MAX_SIMULATED", 4000),
    (sustained_rate, "LONG", 400),
    (forecast, "MAX_SIMULATED", 4000),
    (forecast, "SETTLED_ROUNDS", sustained_rate.ROUNDS),
    (forecast, "DOUBLED_VISITS", 3e5),
    (saturation, "LONG", 1000),
)
FULL = tuple((module, name, getattr(module, name)) for module, name, _ in SHORT)


def set_lengths(patch, lengths):
    """Set `SHORT` or `FULL` lengths of simulations, as long as a patch lasts."""
    for module, name, value in lengths:
        patch.setattr(module, name, value)


def count_own_seconds(patch):
    """Let time limits count the seconds of this process, as long as a patch lasts."""
    for module in (clock, comparison):
        patch.setattr(module, "now", time.process_time)
    patch.setattr(simulation_search, "perf_counter", time.process_time)


def lengths_of(node):
    """Return the lengths of simulations in a test or a module."""
    is_nightly = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
    return FULL if is_nightly or node.get_closest_marker("full_length") else SHORT


@pytest.fixture(scope="module", autouse=True)
def short_simulations(request):
    """For the fixtures of a module, too: plans that several of its tests read."""
    with pytest.MonkeyPatch.context() as patch:
        count_own_seconds(patch)
        set_lengths(patch, lengths_of(request.node))
        yield


@pytest.fixture(autouse=True)
def full_length(request):
    """For a test that is marked, in a module that is not."""
    with pytest.MonkeyPatch.context() as patch:
        set_lengths(patch, lengths_of(request.node))
        yield

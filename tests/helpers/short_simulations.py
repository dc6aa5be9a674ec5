"""Short simulations for tests of what plans and commands print, export or refuse.

Tests of how a load is judged are marked ``full_length``, a test or a whole module: they
simulate as many requests as users get. The profile ``nightly`` shortens nothing. Time limits
count the CPU seconds of the test's own process, so a busy machine does not cut a search short.
"""

import time

import pytest

from hypsolve.planning import forecast, saturation, sustained_rate
from hypsolve.solvers import clock
from tests.helpers.sizes import n_cases

SHORT = (
    (sustained_rate, "MAX_SIMULATED", 4000),
    (sustained_rate, "LONG", 400),
    (forecast, "MAX_SIMULATED", 4000),
    (forecast, "SETTLED_ROUNDS", sustained_rate.ROUNDS),
    (forecast, "DOUBLED_VISITS", 3e5),
    (saturation, "LONG", 1000),
)
FULL = tuple((module, name, getattr(module, name)) for module, name, _ in SHORT)


def count_cpu_seconds(patch):
    """Let time limits count the CPU seconds of this process, as long as a patch lasts."""
    patch.setattr(clock, "now", time.process_time)


def set_lengths(patch, lengths):
    """Set `SHORT` or `FULL` lengths of simulations, as long as a patch lasts."""
    for module, name, value in lengths:
        patch.setattr(module, name, value)


def lengths_of(node):
    """Return the lengths of simulations in a test or a module."""
    return FULL if node.get_closest_marker("full_length") else n_cases(SHORT, FULL)


@pytest.fixture(scope="module", autouse=True)
def short_simulations(request):
    """Shorten simulations for a whole module, so also for fixtures that hold a plan."""
    with pytest.MonkeyPatch.context() as patch:
        count_cpu_seconds(patch)
        set_lengths(patch, lengths_of(request.node))
        yield


@pytest.fixture(autouse=True)
def full_length(request):
    """Restore full lengths for a marked test in a module that is not marked."""
    with pytest.MonkeyPatch.context() as patch:
        set_lengths(patch, lengths_of(request.node))
        yield

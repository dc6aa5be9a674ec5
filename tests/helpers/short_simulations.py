"""Short simulations for tests of what commands print, export or refuse.

Tests in ``tests/planning`` check how a load is judged, with as many requests as users get. The
profile ``nightly`` shortens nothing. Time limits count the CPU seconds of the test's own
process, so a busy machine does not cut a search short.
"""

import time

import pytest

from hypsolve.planning import forecast, saturation, simulation_search, sustained_rate
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


@pytest.fixture(scope="module", autouse=True)
def short_simulations():
    """Shorten simulations for a whole module, so also for fixtures that hold a plan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "now", time.process_time)
        patch.setattr(simulation_search, "perf_counter", time.process_time)
        for module, name, value in n_cases(SHORT, ()):
            patch.setattr(module, name, value)
        yield

"""Comparison of the simulator with its SimPy models, which all batching modes share."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

import hypsolve
from tests.helpers import scenarios_token as scenarios
from tests.helpers import simpy_model, simpy_pipeline
from tests.helpers.simpy_parts import Answer

VISIT = ("request", "node", "start_s", "end_s", "tokens", "context_tokens")


MODELS = {
    "stage": simpy_model.simulate,
    "pipeline": simpy_pipeline.simulate,
    "serial": simpy_pipeline.simulate,
}
"""The SimPy model of each batching mode."""


def scenario_of_any_mode(seed: int) -> tuple[str, scenarios.Scenario]:
    """Draw a scenario of a batching mode, which changes with every second seed."""
    mode = list(MODELS)[seed // 2 % 3]
    return mode, scenarios.random_scenario(seed, MODELS[mode], (mode,))


class Judge:
    """A SimPy model with its random scenarios, each drawn and answered once.

    Parameters
    ----------
    simulate : callable
        The model.
    modes : sequence of str, optional
        Batching modes of the scenarios, with the options of serving runtimes.
    """

    def __init__(self, simulate: Callable[..., Answer], modes: Sequence[str] = ()) -> None:
        more = (tuple(modes),) if modes else ()

        @cache
        def scenario(seed: int) -> scenarios.Scenario:
            return scenarios.random_scenario(seed, simulate, *more)

        @cache
        def answer(seed: int) -> Answer:
            return scenario(seed).run(simulate)

        self.scenario, self.answer = scenario, answer


def close(ours, theirs, what: str) -> None:
    """Assert equal times, to 1e-9 of each."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=0, equal_nan=True, err_msg=what)


def in_order(visits) -> list[tuple]:
    """Sort visits by request and node, then by time, so that two models can be compared."""
    return sorted(visits, key=lambda visit: (visit[0], visit[1], visit[2], visit[5]))


def assert_agree(ours: hypsolve.Trace, theirs: Answer) -> None:
    """Assert that every time, choice, count and visit is that of the model."""
    np.testing.assert_array_equal(ours.node, theirs.node)
    for what in (
        "restarts",
        "lost_tokens",
        "preemptions",
        "n_iterations",
        "n_tokens",
        "n_visits",
    ):
        np.testing.assert_array_equal(getattr(ours, what), getattr(theirs, what), what)
    for what in ("arrival_s", "end_s", "first_token_s", "reached_s", "admitted_s", "left_s"):
        close(getattr(ours, what), getattr(theirs, what), what)
    for what in ("busy_s", "kv_capacity_bytes"):
        close(getattr(ours, what), getattr(theirs, what), what)
    if np.isnan(theirs.end_s).any():  # SimPy goes on to the last change of speed or rate
        assert ours.end_of_run_s <= theirs.end_of_run_s * (1 + 1e-9)
    else:
        close(ours.end_of_run_s, theirs.end_of_run_s, "end_of_run_s")
    assert ours.visits is not None
    assert (np.diff(ours.visits.end_s) >= 0).all()
    columns = [getattr(ours.visits, name).tolist() for name in VISIT]
    mine, judge = (
        np.array(in_order(visits)).reshape(-1, len(VISIT))
        for visits in (zip(*columns, strict=True), theirs.visits)
    )
    for column, name in enumerate(VISIT):
        close(mine[:, column], judge[:, column], f"visits.{name}")


def assert_series_agree(series: hypsolve.Series, theirs: Answer) -> None:
    """Assert that the average of every bin is that of the intervals of the model."""
    edges_s = series.start_s + series.bin_s * np.arange(series.busy.shape[1] + 1)
    assert edges_s[-1] >= np.nanmax(theirs.end_s, initial=0.0) * (1 - 1e-12)
    for what, intervals in theirs.intervals.items():
        expected = np.zeros_like(getattr(series, what))
        for node, start_s, end_s, weight in intervals:
            within_s = np.minimum(end_s, edges_s[1:]) - np.maximum(start_s, edges_s[:-1])
            expected[node] += weight * np.maximum(within_s, 0.0) / series.bin_s
        got = getattr(series, what)
        if np.isnan(theirs.end_s).any():  # what never ends is cut somewhere in the last bin
            got, expected = got[:, :-1], expected[:, :-1]
        scale = max(expected.max(initial=0.0), 1e-9)
        np.testing.assert_allclose(got / scale, expected / scale, atol=1e-9, err_msg=what)

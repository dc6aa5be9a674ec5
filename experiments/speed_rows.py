"""Rows of the table of experiment `speed`, and its stopwatch."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def row(
    what: str, values: Sequence[float], unit: str, target: float | None = None
) -> dict[str, Any]:
    """Make a row of the table; the target is met if the median is below it."""
    median = statistics.median(values)
    met = "" if target is None else "yes" if median < target else "no"
    return {
        "what": what,
        "target": "" if target is None else f"< {target:g} {unit}".rstrip(),
        "min": min(values),
        "median": median,
        "unit": unit,
        "repeats": len(values),
        "met": met,
    }


def timed_s(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

"""Compile families of kernels before a clock starts, and report progress to the user."""

import importlib
import logging
import sys
import threading
from collections.abc import Callable, Sequence

Progress = Callable[[int, int, str], None]

SECONDS = {
    "hypsplit": 15, "dispatch": 3, "batch_dispatch": 5, "heft": 5, "token_level": 30,
    "token_level.pipeline": 30, "subgradient": 5, "beam_search": 5, "relaxations": 5,
    "list_scheduling": 5, "throughput": 33, "placement": 2, "layer_flow": 2, "layer_layout": 16,
}  # fmt: skip
"""Families of kernels, and about the CPU seconds that each takes to compile (2026, Xeon)."""
FAMILIES = tuple(SECONDS)
PARTS = {"throughput.stage_mode": 20, "throughput.pipeline_mode": 13}
"""Parts of families that can be compiled alone, and their seconds."""
NOTICE_S = 1.5  # a shorter wait needs no notice
_warm: set[str] = set()
_lock = threading.RLock()  # numba compiles one kernel at a time anyway
_logger = logging.getLogger("hypsolve")


def warm(*families: str, progress: Progress | None = None) -> None:
    """Compile families of kernels, or load them from disk, once per process.

    If a family compiles for longer than `NOTICE_S`, a warning of the logger ``hypsolve`` names
    it, says how many families there are, about how long it and those after it take on a free
    core, and where compiled kernels are kept. Threads may call this at once: the second one
    waits for the first.

    Parameters
    ----------
    *families : str
        Modules of `hypsolve.kernels`, in `FAMILIES` or `PARTS`; default: all families.
    progress : callable, optional
        Called as ``progress(done, total, family)`` before each family that is not warm yet, and
        once at the end with ``done == total`` and the name of the last one. Not called if all
        families are warm. With it, no warning is logged.
    """
    wanted = families or FAMILIES
    if _warm.issuperset(wanted):
        return
    with _lock:
        cold = [family for family in dict.fromkeys(wanted) if family not in _warm]
        for done, family in enumerate(cold):
            if progress is not None:
                progress(done, len(cold), family)
            _warm_one(cold[done:], f"{done + 1} of {len(cold)}", quiet=progress is not None)
            _warm.add(family)
        if progress is not None and cold:
            progress(len(cold), len(cold), cold[-1])


def _warm_one(cold: Sequence[str], position: str, *, quiet: bool) -> None:
    """Compile the first of the families that are not warm yet."""
    is_done, family = threading.Event(), cold[0]
    if not quiet:
        args = (is_done, _n_missed(), cold, position)
        threading.Thread(target=_watch, args=args, daemon=True).start()
    try:
        importlib.import_module(f"hypsolve.kernels.{family}").warm_up()
    finally:
        is_done.set()


def _watch(is_done: threading.Event, n_missed: int, cold: Sequence[str], position: str) -> None:
    """Announce a family that compiles for long; one that only loads needs no notice."""
    while not is_done.wait(NOTICE_S):
        if _n_missed() > n_missed:
            _announce(cold, position)
            return


def _n_missed() -> int:
    """Return how many kernels of this process were not found on disk."""
    cache = sys.modules.get("hypsolve.kernels.cache")  # numba is slow to import
    kernels = getattr(cache, "KernelCache", None)  # missing while another thread imports it
    return kernels.n_missed if kernels else 0


def _announce(cold: Sequence[str], position: str) -> None:
    """Log which family compiles, and how long it and those after it take."""
    from hypsolve.kernels.cache import folders

    folder = folders().write
    kept = f"once; kept in {folder}" if folder else "in every process (no cache folder)"
    seconds = [(SECONDS | PARTS)[family] for family in cold]
    rest = f", {sum(seconds)} s with those after it" if len(cold) > 1 else ""
    _logger.warning(
        "compiling the %s kernels (family %s): about %d s on a free core%s; %s",
        cold[0], position, seconds[0], rest, kept,
    )  # fmt: skip

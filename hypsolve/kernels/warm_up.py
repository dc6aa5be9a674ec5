"""Compile a family of kernels before a clock starts, and say so if that takes long."""

import importlib
import logging
import threading

_warm: set[str] = set()
_logger = logging.getLogger("hypsolve")
FAMILIES = (
    "hypsplit", "dispatch", "batch_dispatch", "heft", "token_level",
    "subgradient", "beam_search", "relaxations", "list_scheduling",
)  # fmt: skip


def warm(*families: str) -> None:
    """Compile (or load from numba's cache) the kernels of `hypsolve.kernels.<family>`, once."""
    for family in families or FAMILIES:
        if family in _warm:
            continue
        notice = threading.Timer(1.5, _say, (family,))  # loading from the cache takes less
        notice.daemon = True
        notice.start()
        try:
            importlib.import_module(f"hypsolve.kernels.{family}").warm_up()
        finally:
            notice.cancel()
        _warm.add(family)


def _say(family: str) -> None:
    _logger.warning(
        "compiling the %s kernels: up to half a minute, once where numba can keep its cache",
        family,
    )

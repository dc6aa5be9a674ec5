"""`kernel`: numba's njit with a disk cache if one can be kept; `inlined`: a part of one."""

from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function`; cached on disk, unless no cache folder is writable."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # "no locator available": an installation nobody may write beside
        return numba.njit(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile `function` into its callers: passing a large tuple costs more than it does."""
    return numba.njit(inline="always")(function)

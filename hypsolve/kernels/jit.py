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


def threaded_kernel(function: Callable[..., Any]) -> Any:
    """Like `kernel`, for one that threads may run at once, each on instances of its own."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # as above
        return numba.njit(nogil=True)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile `function` into its callers: passing a large tuple costs more than it does."""
    return numba.njit(inline="always")(function)


def bare_kernel(function: Callable[..., Any]) -> Any:
    """Like `kernel`, for one that allocates nothing: without reference counts.

    They cost more than the work where tuples of arrays are handed about. The option is numba's
    own and may go; then such a kernel is slower, and the same.
    """
    try:
        return numba.njit(cache=True, _nrt=False)(function)
    except RuntimeError:  # as above
        return numba.njit(_nrt=False)(function)
    except KeyError:  # unknown option
        return kernel(function)

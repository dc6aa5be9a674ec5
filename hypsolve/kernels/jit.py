"""Decorators that compile kernels: `kernel`, and variants of it.

`hypsolve.kernels.cache` keeps compiled kernels on disk, in a folder whose name is a digest of
all kernel sources. A kernel may therefore call kernels of other files.
"""

from collections.abc import Callable
from typing import Any

import numba

from hypsolve.kernels.cache import KernelCache


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function`, and keep the machine code on disk."""
    return _cached(function)


def threaded_kernel(function: Callable[..., Any]) -> Any:
    """Compile like `kernel`, for threads that run it at once on instances of their own."""
    return _cached(function, nogil=True)


def bare_kernel(function: Callable[..., Any]) -> Any:
    """Compile like `kernel`, without reference counts; `function` must not allocate.

    Where tuples of arrays are passed on, counting references takes longer than the work itself.
    ``_nrt`` is a private option of numba. If it goes, such a kernel is slower and returns equal
    results.
    """
    try:
        return _cached(function, _nrt=False)
    except KeyError:  # unknown option
        return kernel(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile `function` into its callers.

    Use it where passing a large tuple takes longer than the work of `function`.
    """
    return numba.njit(inline="always")(function)


def _cached(function: Callable[..., Any], **options: Any) -> Any:
    compiled = numba.njit(**options)(function)
    if compiled is not function:  # else NUMBA_DISABLE_JIT is set
        compiled._cache = KernelCache(function)  # as numba's `enable_caching` does
    return compiled

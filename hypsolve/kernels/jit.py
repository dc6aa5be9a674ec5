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


def inner_kernel(function: Callable[..., Any]) -> Any:
    """Compile like `kernel`, for calls from other kernels alone.

    The machine code that reads Python objects is left out. For a large tuple of arrays it takes
    longer to compile than the work itself. A call from Python raises TypeError.
    """
    return _without_wrapper(kernel, function)


def bare_inner_kernel(function: Callable[..., Any]) -> Any:
    """Compile like `bare_kernel`, for calls from other kernels alone; see `inner_kernel`."""
    return _without_wrapper(bare_kernel, function, _nrt=False)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile `function` into its callers.

    Use it where passing a large tuple takes longer than the work of `function`.
    """
    return numba.njit(inline="always")(function)


def _without_wrapper(
    otherwise: Callable[..., Any], function: Callable[..., Any], **options: Any
) -> Any:
    """Compile without wrappers, by private options of numba; `otherwise` if they are gone."""
    try:
        compiled = _cached(function, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)
    except KeyError:  # unknown option
        return otherwise(function)
    if compiled is not function:

        def refuse(*_args: Any, **_kwargs: Any) -> None:
            raise TypeError(f"kernel {function.__name__} can be called from kernels alone")

        # An overload that numba's dispatcher does not know of cannot be called from Python.
        compiled.add_overload = lambda cres: compiled.overloads.update(
            {tuple(cres.signature.args): cres}
        )
        compiled._compile_for_args = refuse
    return compiled


def _cached(function: Callable[..., Any], **options: Any) -> Any:
    compiled = numba.njit(**options)(function)
    if compiled is not function:  # else NUMBA_DISABLE_JIT is set
        compiled._cache = KernelCache(function)  # as numba's `enable_caching` does
    return compiled

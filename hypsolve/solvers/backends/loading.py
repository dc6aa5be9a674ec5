"""Import a solver when it is needed, and run it so that Ctrl-C stops it."""

import contextlib
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def load_backend(method: str, module: str, package: str) -> Any:
    """Import the module of a solver.

    Raises
    ------
    ValueError
        If it cannot be imported; the message names the method and the package to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"method {method!r} needs the package {package!r}, which cannot be imported"
            f" ({error}); pip install '{package}'"
        ) from error


def preload(*modules: str) -> None:
    """Import modules of solvers before a clock starts; `load_backend` reports missing ones."""
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def interruptible(solve: Callable[[], Any], stop: Callable[[], Any]) -> Any:
    """Run `solve` in a thread; at Ctrl-C, call `stop` and raise KeyboardInterrupt here."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(solve)
        try:
            return running.result()
        except KeyboardInterrupt:
            stop()
            raise

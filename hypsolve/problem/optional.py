"""Import of packages that only some functions need."""

import importlib
from typing import Any


def optional(module: str) -> Any:
    """Import and return a module.

    Raises
    ------
    ValueError
        If the import fails; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"this needs the package {module.partition('.')[0]!r}, which cannot be imported"
            f" ({error}); pip install 'hypsolve[experiments]'"
        ) from error

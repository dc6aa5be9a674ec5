"""Import of packages that only some functions need."""

import importlib
from typing import Any


def install(extra: str) -> str:
    """Return the command that installs what an extra of ``pyproject.toml`` brings.

    Examples
    --------
    >>> install("measure")
    'in a clone of hypsolve, run pip install -e ".[measure]"'
    """
    return f'in a clone of hypsolve, run pip install -e ".[{extra}]"'


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
            f" ({error}); {install('experiments')}"
        ) from error

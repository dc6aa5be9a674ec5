"""Functions whose module is imported when they are first needed.

The exact formulations are many; importing them all with the library would show in its start-up.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any


class Later:
    """A function of a module that is not imported yet; `inspect` and `help` see through it."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self.__name__ = self.__qualname__ = name

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(import_module(self._module), self.__name__)
        return function

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Import the module and call the function."""
        return self.__wrapped__(*args, **options)

    def __repr__(self) -> str:
        return f"<function {self._module}.{self.__name__}>"

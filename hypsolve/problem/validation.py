"""Validation of users' input: errors name the object, the field, the rule and the value."""

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from hypsolve.problem.renamed import successor

LARGEST = 1e150  # largest number of a user: sums, products and inverses of a few stay finite
MAX_SHOWN = 60  # choices that a message lists
Choice = TypeVar("Choice", bound=StrEnum)
Kind = TypeVar("Kind")
Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def real(
    owner: str, field: str, value: Any, *, minimum: float = 0.0, strict: bool = False
) -> float:
    """Return `value` as a finite float of at least (or, if `strict`, above) `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{owner}: {field} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not minimum <= number <= LARGEST or (strict and number == minimum):  # nan fails
        raise ValueError(
            f"{owner}: {field} must be {_rule(minimum, strict, number)}, got {value!r}"
        )
    return number + 0.0  # never -0.0


def _rule(minimum: float, strict: bool, number: float = 0.0) -> str:
    if LARGEST < number < math.inf:
        return f"at most {LARGEST:g}"
    if minimum == 0:
        return "positive and finite" if strict else "finite and not negative"
    return f"finite and {'above' if strict else 'at least'} {minimum:g}"


def whole(
    owner: str, field: str, value: Any, *, minimum: int = 0, maximum: float = math.inf
) -> int:
    """Return `value` as an int from `minimum` to `maximum`; the float 3.0 is refused."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{owner}: {field} must be a whole number, got {value!r}")
    number = int(value)
    if not minimum <= number <= maximum:
        limit = f"at least {minimum}" if number < minimum else f"at most {maximum:.12g}"
        n_digits = int(number.bit_length() * math.log10(2)) + 1
        shown = str(number) if n_digits < 60 else f"a number of about {n_digits} digits"
        raise ValueError(f"{owner}: {field} must be {limit}, got {shown}")
    return number


def flag(owner: str, field: str, value: Any) -> bool:
    """Return `value` as a bool; it must be True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{owner}: {field} must be True or False, got {value!r}")
    return bool(value)


def of_type(owner: str, field: str, value: Any, kind: type[Kind], hint: str = "") -> Kind:
    """Return `value`, an instance of `kind`; `hint` ends the error message."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise TypeError(
            f"{owner}: {field} must be {article} {kind.__name__}, got {value!r:.60}{hint}"
        )
    return value


def of_class(owner: str, field: str, value: Any, name: str) -> None:
    """Raise TypeError unless `name` is the class name of `value`."""
    if type(value).__name__ != name:
        raise TypeError(f"{owner}: {field} must be a {name}, got {value!r:.60}")


def some(owner: str, field: str, values: Any, kind: type[Kind]) -> tuple[Kind, ...]:
    """Return a tuple or list of one or more instances of `kind`, as a tuple."""
    if not isinstance(values, tuple | list) or not all(isinstance(v, kind) for v in values):
        raise TypeError(
            f"{owner}: {field} must be a tuple of {kind.__name__}, got {values!r:.60}"
        )
    if not values:
        name = kind.__name__.lower()
        raise ValueError(f"{owner}: {field} must hold at least one {name}, got none")
    return tuple(values)


def text(owner: str, field: str, value: Any) -> str:
    """Return `value`, a string that is not empty."""
    if not isinstance(value, str):
        raise TypeError(f"{owner}: {field} must be a string, got {value!r}")
    if not value:
        raise ValueError(f"{owner}: {field} must not be empty")
    return value


def name(owner: str, value: Any) -> str:
    """Return `value`, a name of printable characters on one line."""
    if not text(owner, "name", value).isprintable():
        raise ValueError(f"{owner}: name must be printable, got {value!r:.60}")
    return str(value)


def one_of(owner: str, field: str, value: Any, kind: type[Choice]) -> Choice:
    """Return `value` as a member of the enumeration `kind`; the error lists the choices."""
    try:
        return kind(value)
    except ValueError:
        raise ValueError(
            f"{owner}: {field} must be one of {', '.join(kind)}, got {value!r}"
        ) from None


def did_you_mean(name: Any, choices: Iterable[str]) -> str:
    """Return ``"did you mean NAME? "`` for the likeliest of `choices`, or an empty string.

    A name that was renamed (`hypsolve.problem.renamed`) suggests its successor; any other name
    suggests the choice with the closest spelling.
    """
    choices = tuple(choices)
    meant = successor(str(name), choices)
    if meant is None:
        spelled = str(name).lower().replace(" ", "-")
        meant = next(iter(difflib.get_close_matches(spelled, choices, 1)), None)
    return "" if meant is None else f"did you mean {meant}? "


def missing_attribute(thing: object, name: str) -> AttributeError:
    """Return the error for an attribute that does not exist, with the likeliest name.

    A class raises it in ``__getattr__``, so that the old name of an attribute suggests the new.

    Examples
    --------
    >>> missing_attribute(range(3), "strt")
    AttributeError("'range' object has no attribute 'strt'; did you mean start?")
    """
    public = [known for known in dir(type(thing)) if not known.startswith("_")]
    hint = "" if name.startswith("_") else did_you_mean(name, public).rstrip()
    text = f"{type(thing).__name__!r} object has no attribute {name!r}"
    return AttributeError(f"{text}{hint and '; ' + hint}")


def known(what: str, name: Any, choices: Iterable[str]) -> str:
    """Return `name` if it is one of `choices`; the error suggests the likeliest choice."""
    choices = tuple(choices)
    if not isinstance(name, str) or name not in choices:
        more = f" and {len(choices) - MAX_SHOWN} more" if len(choices) > MAX_SHOWN else ""
        raise ValueError(
            f"unknown {what} {name!r:.60}; {did_you_mean(name, choices)}choose one of"
            f" {', '.join(choices[:MAX_SHOWN])}{more}"
        )
    return name


def suggest_keywords(
    owner: str,
) -> Callable[[Callable[Parameters, Returned]], Callable[Parameters, Returned]]:
    """Decorate a function so that an unknown keyword argument suggests the likeliest one."""

    def decorate(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
        parameters = inspect.signature(function).parameters

        @functools.wraps(function)
        def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
            for name in kwargs:
                if name not in parameters:
                    takes = [each for each in parameters if each not in ("cls", "self")]
                    raise TypeError(
                        f"{owner}: unknown argument {name!r}; {did_you_mean(name, takes)}"
                        f"choose one of {', '.join(takes)}"
                    )
            return function(*args, **kwargs)

        return checked

    return decorate


def options_of(function: Callable[..., Any]) -> set[str] | None:
    """Return the names of a method's options; None if it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"time_limit_s", "seed"}


def known_options(
    owner: str,
    options: Iterable[str],
    takes: set[str] | None,
    why: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise TypeError for an option that a method does not take; None: it takes any.

    `why` has a remark on some options, which ends the message.
    """
    for option in options:
        if takes is not None and option not in takes:
            listed = ", ".join(sorted(takes)) or "none"
            meant = did_you_mean(option, (*sorted(takes), "time_limit_s", "seed"))
            raise TypeError(
                f"{owner}: unknown option {option!r}; {meant}it takes {listed}"
                f"{why.get(option, '')}"
            )


def reals(
    owner: str, field: str, values: Any, shape: tuple[int | None, ...]
) -> NDArray[np.float64]:
    """Return `values` as a read-only float64 array of numbers that are at least 0.

    None in `shape` allows any length.
    """
    if isinstance(values, np.ndarray) and not values.flags.writeable and values.base is None:
        array = values  # an array of hypsolve: validated again, but not copied
    else:
        array = _rectangle(owner, field, values)
    if array.dtype.kind not in "iuf" and array.size:
        raise TypeError(f"{owner}: {field} must hold numbers, got dtype {array.dtype}")
    array = np.asarray(array, dtype=np.float64, order="C")
    _check_shape(owner, field, array, shape)
    if array.size and not (array.min() >= 0 and array.max() <= LARGEST):  # nan fails both
        bad = ~((array >= 0) & (array <= LARGEST))
        where = tuple(int(axis[0]) for axis in np.nonzero(bad))
        worst = float(array[where])
        raise ValueError(
            f"{owner}: {field} must be {_rule(0.0, False, worst)}, got {worst!r}"
            f" at index {list(where)}"
        )
    if array.flags.writeable:
        array += 0.0  # turns -0.0 into 0.0: equal numbers have equal digests
        array.setflags(write=False)
    return array


def wholes(
    owner: str,
    field: str,
    values: Any,
    shape: tuple[int | None, ...],
    *,
    maximum: int,
    minimum: int = 0,
) -> NDArray[np.int64]:
    """Return `values` as a read-only int64 array of numbers from `minimum` to `maximum`.

    None in `shape` allows any length.
    """
    array = _rectangle(owner, field, values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{owner}: {field} must hold whole numbers, got dtype {array.dtype}")
    _check_shape(owner, field, array, shape)
    if array.size and not (array.min() >= minimum and array.max() <= maximum):
        where = tuple(
            int(axis[0]) for axis in np.nonzero((array < minimum) | (array > maximum))
        )
        raise ValueError(
            f"{owner}: {field} must be from {minimum} to {maximum}, got {array[where]} at index"
            f" {list(where)}"
        )
    array = np.asarray(array, dtype=np.int64, order="C")
    array.setflags(write=False)
    return array


def _rectangle(owner: str, field: str, values: Any) -> NDArray[Any]:
    """Return a copy of `values` as an array."""
    try:
        return np.array(values)
    except ValueError:  # ragged nested lists
        raise ValueError(f"{owner}: {field} must be a rectangular array") from None


def _check_shape(
    owner: str, field: str, array: NDArray[Any], shape: tuple[int | None, ...]
) -> None:
    fits = array.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{owner}: {field} must have shape ({wanted}), got {array.shape}")

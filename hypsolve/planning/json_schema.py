"""JSON Schemas of network files and of plans, made from the types that read and write them."""

import dataclasses
import inspect
import re
import types
from collections.abc import Mapping
from enum import StrEnum
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from hypsolve.formats.network_toml import NetworkFile
from hypsolve.formats.network_toml_types import Key, NetworkTable
from hypsolve.planning.plan import Plan
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Deployment, Model
from hypsolve.problem.instance import Objective
from hypsolve.problem.result import Result
from hypsolve.problem.solution import Status

Schema = dict[str, Any]
BlockNumber = Annotated[int, Key("Number of a block, counted from 0.")]


class ScheduleTable(TypedDict):
    """Requests to nodes over time: a row per request, an entry per tier."""

    node: Annotated[list[list[int]], "Number of the node within its tier; -1: none."]
    start_s: Annotated[list[list[float | None]], "Seconds; null: none."]
    end_s: Annotated[list[list[float | None]], "Seconds; null: none."]


class BoxTable(TypedDict):
    """Why no partition with cuts in these ranges is better; see `hypsolve.verify`."""

    low: Annotated[list[BlockNumber], "Least of each cut."]
    high: Annotated[list[BlockNumber], "Largest of each cut."]
    how: Annotated[str, "`lagrangian_bound`, or `search`: all schedules of one partition."]
    tick_s: Annotated[float, "Seconds."]
    n_ticks: Annotated[int, "From the first arrival on."]
    multipliers: Annotated[
        list[Any], "First node of a group, first tick, multipliers in 2**-24 ticks."
    ]


class CertificateTable(TypedDict):
    """A proof that can be repeated; see `hypsolve.verify`."""

    kind: Annotated[str, "`bottleneck`, `joint` or `infeasible`."]
    value_s: Annotated[float | None, "Objective of the cuts in seconds; null: infinite."]
    bound_s: Annotated[float | None, "No partition is below; in seconds; null: infinite."]
    cuts: Annotated[list[BlockNumber] | None, "Those of the partition."]
    boxes: Annotated[list[BoxTable], "Make up all partitions, where the kind is `joint`."]


class ResultTable(TypedDict):
    """What was solved and what is known of the answer, as `Result.to_dict` writes it."""

    version: Annotated[int, "Version of the format."]
    instance: Annotated[str, "Name of the instance."]
    digest: Annotated[str, "SHA-256 of the instance."]
    extrapolated: Annotated[bool, "Whether costs go beyond what was measured."]
    objective: Annotated[Objective, "What is minimised."]
    method: Annotated[str, "A name of `hypsolve methods`, or of a method of one's own."]
    status: Annotated[Status, "What is known of the answer."]
    objective_s: Annotated[float | None, "In seconds; null: no solution."]
    bound_s: Annotated[float | None, "Proven lower bound in seconds; null: infinite."]
    gap: Annotated[float | None, "(objective_s - bound_s) / objective_s; null: no solution."]
    solve_time_s: Annotated[float, "Wall time of the method in seconds."]
    cuts: Annotated[
        list[BlockNumber] | None,
        "Tier k hosts blocks cuts[k] to cuts[k + 1] - 1; null: no solution.",
    ]
    schedule: Annotated[ScheduleTable | None, "null: none was asked for."]
    certificate: Annotated[CertificateTable | None, "null: none was given."]
    message: Annotated[str, "Why, in words."]
    statistics: Annotated[dict[str, Any], "As the method gave them."]


SCHEMAS: dict[str, tuple[str, type]] = {
    "network": ("Network file of hypsolve", NetworkTable),
    "plan": ("Plan of hypsolve", Plan),
}
_WRITTEN_AS: dict[Any, Any] = {  # of what `Plan.to_dict` does not write field by field
    Model: str,
    NetworkFile: str,
    Result: ResultTable,
    range: Annotated[tuple[BlockNumber, BlockNumber], "The first, and the one after the last."],
}
_NOT_WRITTEN = {Deployment}
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_UNITS = {"_s": "seconds", "_bytes": "bytes", "_tokens": "tokens"}


def schema(kind: str) -> Schema:
    """JSON Schema (draft 2020-12) of a kind of file.

    What a schema cannot say is left to the reader: that names are distinct, that a GPU is
    known, which tiers have a link.

    Parameters
    ----------
    kind : {"network", "plan"}
        The TOML file of `hypsolve.read_network_file`, or what `Plan.to_dict` gives.

    Returns
    -------
    dict
        JSON takes it.

    Examples
    --------
    >>> from hypsolve import schema
    >>> schema("network")["required"]
    ['tiers']
    """
    title, record = SCHEMAS[valid.known("schema", kind, SCHEMAS)]
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, "title": title, **_of(record)}


def _of(hint: Any) -> Schema:
    """Schema of a type; what is in it stands in its place, for editors follow no references."""
    hint = _WRITTEN_AS.get(hint, hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin is NotRequired:
        return _of(args[0])
    if origin is Annotated:
        return _of(args[0]) | _said(args[1], args[0])
    if origin in (Union, types.UnionType):
        choices = [_of(arg) for arg in args]
        plain = all(choice.keys() == {"type"} for choice in choices)
        return {"type": [c["type"] for c in choices]} if plain else {"anyOf": choices}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is list or (origin is tuple and args[1:] == (...,)):
        return {"type": "array", "items": _of(args[0])}
    if origin is tuple and len(set(args)) == 1:
        n = len(args)
        return {"type": "array", "items": _of(args[0]), "minItems": n, "maxItems": n}
    if origin in (dict, Mapping):
        names = {"propertyNames": _of(args[0])} if get_origin(args[0]) is Annotated else {}
        return {"type": "object", **names, "additionalProperties": _of(args[1])}
    if is_typeddict(hint) or dataclasses.is_dataclass(hint):
        return _record(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"type": "string", "enum": [str(choice) for choice in hint]}
    if hint is Any:
        return {}
    if hint not in _PLAIN:
        raise TypeError(f"schema: {hint!r} is no type of a file")
    return {"type": _PLAIN[hint]}


def _said(rule: Key | str, kind: Any) -> Schema:
    """Keywords of what an annotation says."""
    if isinstance(rule, str):
        return {"description": rule}
    found: Schema = {"description": rule.about}
    if kind in (int, float):
        found["exclusiveMinimum" if rule.strict else "minimum"] = rule.minimum
        found["maximum"] = rule.maximum
    elif kind is str:
        found["minLength"] = 1
        if rule.known is not None:  # an editor proposes them, and takes any other
            found["anyOf"] = [{"enum": list(rule.known())}, {}]
        if rule.taken is not None:
            found["not"] = {"enum": list(rule.taken())}
    elif get_origin(kind) is list:
        found |= {"minItems": rule.minimum} if rule.minimum else {}
        found |= {"uniqueItems": True} if rule.distinct else {}
    return found


def _record(kind: Any) -> Schema:
    """Schema of a TypedDict, or of a dataclass written field by field, inf and nan as null."""
    hints = get_type_hints(kind, include_extras=True)
    text, of_fields = _documented(kind)
    if is_typeddict(kind):
        properties = {name: _of(hint) for name, hint in hints.items()}
        required = [name for name in hints if name in kind.__required_keys__]
    else:
        names = [field.name for field in dataclasses.fields(kind)]
        required = [name for name in names if hints[name] not in _NOT_WRITTEN]
        properties = {}
        for name in required:
            hint = float | None if hints[name] is float else hints[name]
            about = " ".join(filter(None, (of_fields.get(name), _unit(name))))
            properties[name] = _of(hint) | ({"description": about} if about else {})
    return {
        "type": "object",
        "description": text,
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _documented(kind: Any) -> tuple[str, dict[str, str]]:
    """What a docstring says of the whole, and under Attributes, of each field."""
    text = (inspect.getdoc(kind) or "").replace("``", "`")
    text = re.sub(r"\b(None|nan|inf)\b", "null", text)  # as JSON has it
    whole, _, rest = text.partition("\n\nAttributes\n----------\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines():
        if line.startswith(" "):
            found |= {name: f"{found.get(name, '')} {line.strip()}".strip() for name in names}
        else:
            names = [name.strip() for name in line.partition(" : ")[0].split(",")]
    return " ".join(whole.split()), found


def _unit(name: str) -> str:
    """The unit that a name ends in, as a sentence."""
    if name.endswith("_per_s"):
        return "Per second."
    units = (unit for end, unit in _UNITS.items() if name.endswith(end) and "_per_" not in name)
    return "".join(f"In {unit}." for unit in units)

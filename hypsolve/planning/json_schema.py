"""JSON Schemas of files: networks, machines, profiles, plans, serving instances, results."""

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

from hypsolve.formats.gpu_profile import ProfileTable
from hypsolve.formats.machines_toml_types import MachinesTable
from hypsolve.formats.network_toml import NetworkFile
from hypsolve.formats.network_toml_types import Key, NetworkTable
from hypsolve.planning.expected_errors import ExpectedError
from hypsolve.planning.layer_flow_file import LayerFlowFile
from hypsolve.planning.place_schema import PlacementFile, PlacementReplanFile, RentCurveFile
from hypsolve.planning.plan import FORMAT, VERSION, Plan
from hypsolve.planning.query import PlanQuery
from hypsolve.planning.request_mix import RequestMix, RequestMixTable
from hypsolve.planning.serving_schema import ServingInstanceFile, ServingResultFile
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import Deployment, Model
from hypsolve.problem.instance import Objective
from hypsolve.problem.result import Result
from hypsolve.problem.serving_result import ServingResult
from hypsolve.problem.solution import Status

Schema = dict[str, Any]
BlockNumber = Annotated[int, Key("Number of a block, counted from 0.")]


class ScheduleTable(TypedDict):
    """Node and times of each request: a row per request, an entry per tier."""

    node: Annotated[list[list[int]], "Number of the node within its tier; -1: none."]
    start_s: Annotated[list[list[float | None]], "Seconds; null: none."]
    end_s: Annotated[list[list[float | None]], "Seconds; null: none."]


class BoxTable(TypedDict):
    """Proof about the partitions with cuts in these ranges; see `hypsolve.verify`."""

    low: Annotated[list[BlockNumber], "Smallest value of each cut."]
    high: Annotated[list[BlockNumber], "Largest value of each cut."]
    how: Annotated[str, "`lagrangian_bound`, or `search`: all schedules of one partition."]
    tick_s: Annotated[float, "Seconds."]
    n_ticks: Annotated[int, "Number of ticks from the first arrival on."]
    multipliers: Annotated[
        list[Any], "First node of a group, first tick, multipliers in 2**-24 ticks."
    ]


class CertificateTable(TypedDict):
    """A proof that can be checked; see `hypsolve.verify`."""

    kind: Annotated[str, "`bottleneck`, `joint` or `infeasible`."]
    value_s: Annotated[float | None, "Objective of the cuts in seconds; null: infinite."]
    bound_s: Annotated[float | None, "Proven lower bound in seconds; null: infinite."]
    cuts: Annotated[list[BlockNumber] | None, "Cuts of the partition."]
    boxes: Annotated[list[BoxTable], "Cover all partitions, if the kind is `joint`."]


class ResultTable(TypedDict):
    """The certified solution, as `Result.to_dict` writes it."""

    version: Annotated[int, "Version of the format."]
    instance: Annotated[str, "Name of the instance."]
    digest: Annotated[str, "SHA-256 of the instance, without names."]
    names_digest: Annotated[str, "SHA-256 of the names in the instance, and of `extrapolated`."]
    extrapolated: Annotated[bool, "Whether costs are extrapolated from measured ones."]
    objective: Annotated[Objective, "Objective that is minimised."]
    method: Annotated[str, "Name in `hypsolve methods`, or of your own method."]
    status: Annotated[Status, "What is proved."]
    objective_s: Annotated[float | None, "In seconds; null: no solution."]
    bound_s: Annotated[float | None, "Proven lower bound in seconds; null: infinite."]
    gap: Annotated[float | None, "(objective_s - bound_s) / objective_s; null: no solution."]
    solve_time_s: Annotated[float, "Wall time of the method in seconds."]
    cuts: Annotated[
        list[BlockNumber] | None,
        "Tier k hosts blocks cuts[k] to cuts[k + 1] - 1; null: no solution.",
    ]
    schedule: Annotated[ScheduleTable | None, "null: the method made none."]
    certificate: Annotated[CertificateTable | None, "null: the method gave none."]
    message: Annotated[str, "Explanation in words."]
    statistics: Annotated[dict[str, Any], "Counts and times of the method."]


SCHEMAS: dict[str, tuple[str, type]] = {
    "network": ("Network file of hypsolve", NetworkTable),
    "machines": ("Machines file of hypsolve", MachinesTable),
    "profile": ("GPU profile of hypsolve", ProfileTable),
    "plan": ("Plan of hypsolve", Plan),
    "serving-instance": ("Serving instance of hypsolve", ServingInstanceFile),
    "serving-result": ("Result on a serving instance of hypsolve", ServingResultFile),
    "placement": ("Placement of hypsolve", PlacementFile),
    "placement-replan": ("New placement after machines changed", PlacementReplanFile),
    "rent-curve": ("Least price against the rate", RentCurveFile),
    "layer-flow": ("Result on a problem of flow through layers", LayerFlowFile),
}
_WRITTEN_AS: dict[Any, Any] = {  # types that `Plan.to_dict` does not write field by field
    Model: Annotated[str, "Name of the model."],
    NetworkFile: Annotated[str, "Name of the network."],
    RequestMix: Annotated[str, "Name of the file of the requests."],
    Result: ResultTable,
    range: Annotated[
        tuple[BlockNumber, BlockNumber], "First block, and the one after the last."
    ],
}
_INLINED = {PlanQuery}  # its fields are written as fields of the plan
_FIELDS_WRITTEN_AS: dict[tuple[type, str], Any] = {
    (PlanQuery, "requests"): RequestMixTable | None  # `Load` only names them
}
_NOT_WRITTEN = {Deployment, Mapping[str, Any], ServingResult | None}
_STATED: dict[type, Schema] = {  # fields that a file states beside those of its type
    Plan: {
        "format": {"const": FORMAT, "description": "Kind of the file."},
        "version": {"const": VERSION, "description": "Version of the format."},
    }
}
_ADDED: dict[type, dict[str, Any]] = {  # likewise, which are no fields of the type
    Plan: {
        "expected_errors": Annotated[
            tuple[ExpectedError, ...],
            "The error to expect of the forecast, for each kind of GPU in use.",
        ]
    }
}
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_UNITS = {"_s": "seconds", "_bytes": "bytes", "_tokens": "tokens"}


def schema(kind: str) -> Schema:
    """Return the JSON Schema (draft 2020-12) of a kind of file.

    A schema cannot express every rule. The readers also check that names are distinct, that
    GPUs are known, which tiers have a link, and that the sizes of tables agree.

    Parameters
    ----------
    kind : {"network", "machines", "profile", "plan", "serving-instance", "serving-result",
        "placement", "placement-replan", "rent-curve", "layer-flow"}
        The TOML file of `hypsolve.read_network_file`; that of `hypsolve.read_machines`; that of
        ``hypsolve measure`` and ``hypsolve calibrate``; the JSON of `Plan.to_dict`; that of
        `hypsolve.save` for a `ServingInstance`; that of `ServingResult.save`; that of
        `PlacementPlan.to_dict`; that of `PlacementReplan.to_dict`; that of
        `RentCurve.to_dict`; or that of `LayerFlowResult.to_dict`.

    Returns
    -------
    dict
        Plain data, for JSON.

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
    """Return the schema of a type, without references, which editors do not follow."""
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
    """Return the keywords that an annotation adds."""
    if isinstance(rule, str):
        return {"description": rule}
    keywords: Schema = {"description": rule.about}
    if kind in (int, float):
        keywords["exclusiveMinimum" if rule.strict else "minimum"] = rule.minimum
        keywords["maximum"] = rule.maximum
    elif kind is str:
        keywords["minLength"] = 1
        if rule.known is not None:  # an editor proposes them, and accepts others
            keywords["anyOf"] = [{"enum": list(rule.known())}, {}]
        if rule.taken is not None:
            keywords["not"] = {"enum": list(rule.taken())}
    elif get_origin(kind) is list:
        keywords |= {"minItems": rule.minimum} if rule.minimum else {}
        keywords |= {"uniqueItems": True} if rule.distinct else {}
    return keywords


def _record(kind: Any) -> Schema:
    """Return the schema of a TypedDict or a dataclass; inf and nan are null."""
    hints = get_type_hints(kind, include_extras=True)
    text, of_fields = _documented(kind)
    if is_typeddict(kind):
        properties = {name: _of(hint) for name, hint in hints.items()}
        required = [name for name in hints if name in kind.__required_keys__]
    else:
        properties = dict(_STATED.get(kind, {}))
        properties |= {name: _of(hint) for name, hint in _ADDED.get(kind, {}).items()}
        hints |= {n: hint for (of, n), hint in _FIELDS_WRITTEN_AS.items() if of is kind}
        for name in (each.name for each in dataclasses.fields(kind)):
            if hints[name] in _INLINED:
                properties |= _record(hints[name])["properties"]
            elif hints[name] not in _NOT_WRITTEN:
                hint = float | None if hints[name] is float else hints[name]
                about = " ".join(filter(None, (of_fields.get(name), _unit(name))))
                properties[name] = _of(hint) | ({"description": about} if about else {})
        required = list(properties)
    return {
        "type": "object",
        "description": text,
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _documented(kind: Any) -> tuple[str, dict[str, str]]:
    """Return the text of a docstring, and the text of each field under Attributes."""
    text = (inspect.getdoc(kind) or "").replace("``", "`")
    text = re.sub(r"\b(None|nan|inf)\b", "null", text)  # as JSON has it
    whole, _, rest = text.partition("\n\nAttributes\n----------\n")
    of_fields: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines():
        if line.startswith(" "):
            more = line.strip()
            of_fields |= {n: f"{of_fields.get(n, '')} {more}".strip() for n in names}
        else:
            names = [name.strip() for name in line.partition(" : ")[0].split(",")]
    return " ".join(whole.split()), of_fields


def _unit(name: str) -> str:
    """Return the unit in which a name ends, as a sentence."""
    if name.endswith("_per_s"):
        return "Per second."
    units = (unit for end, unit in _UNITS.items() if name.endswith(end) and "_per_" not in name)
    return "".join(f"In {unit}." for unit in units)

"""Strict reading of a result's claims: a file may come from anywhere."""

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from typing import Any

from hypsolve.problem.instance import Instance
from hypsolve.problem.result import VERSION

MAX_TICKS = 2**14
SAME = 1e-12  # relative difference of two sums in different orders
LATEST_FIRST_S = 1e3  # first arrival of an old file: times from 0 keep 1e-13 s
LARGEST = sys.float_info.max


class Refuted(Exception):
    """A claim that does not hold."""


def need(holds: Any, *words: Any) -> None:
    """Raise `Refuted` with `words` as its message unless `holds` is true."""
    if not holds:
        raise Refuted(" ".join(map(str, words)))


@dataclass(frozen=True, slots=True)
class BoxClaim:
    """A box of a certificate, with the fields of `hypsolve.problem.solution.BoxProof`."""

    low: list[int]
    high: list[int]
    how: str
    tick_s: float
    n_ticks: int
    multipliers: list[tuple[int, int, list[int]]]


@dataclass(frozen=True, slots=True)
class Claims:
    """Claims of a result; `proved_s` is the bound of its certificate.

    Schedule times of earlier versions counted from 0. They are given here from the first
    arrival, with the rounding of `origin_s`, that arrival; it is 0 in files of today.
    """

    status: str
    kind: str
    objective_s: float
    bound_s: float
    proved_s: float
    cuts: list[int]
    node: list[list[int]]
    start_s: list[list[float]]
    end_s: list[list[float]]
    boxes: list[BoxClaim]
    origin_s: float = 0.0


def read(instance: Instance, result: Any) -> Claims:
    """Return the claims of a result with the right types and shapes, free of contradiction.

    Raises
    ------
    ValueError
        If `result` is not a result, or has no certificate.
    Refuted
        If a field is wrong; the message names it.
    """
    if not isinstance(result, dict) or "status" not in result:
        raise ValueError("not a result, as Result.save writes it")
    if not isinstance(result.get("certificate"), dict):
        raise ValueError(
            f"a result of {result.get('method')!r} for {result.get('objective')!r} without a"
            " certificate: joint_exact gives one for mean_latency and makespan, hypsplit_dp for"
            " bottleneck"
        )
    result = _upgraded(instance, result)
    certificate = result["certificate"]
    need(result.get("digest") == instance.digest(), "digest: of another instance")
    if "names_digest" in result or result.get("version") == VERSION:
        same = result.get("names_digest") == instance.names_digest()
        need(same, "names_digest: of other names, or of another `extrapolated`")
        same = result.get("extrapolated") is bool(instance.extrapolated)
        need(same, "extrapolated: it is", bool(instance.extrapolated))
    need(result.get("objective") == str(instance.objective), "objective: not the instance's")
    kind, status = str(certificate.get("kind")), str(result.get("status"))
    if kind == "infeasible":
        need(status == "infeasible", "status: must be infeasible")
        for where, table in (("", result), ("certificate: ", certificate)):
            for key in ("cuts", "objective_s", "value_s", "bound_s", "gap", "schedule"):
                need(table.get(key) is None, f"{where}{key}: there must be none")
        need(not certificate.get("boxes"), "certificate: boxes: there must be none")
        return Claims(status, kind, math.inf, math.inf, math.inf, [], [], [], [], [])
    claims = _read_answer(instance, result, certificate, status, kind)
    if result.get("version", 1) == VERSION:
        return claims
    return dataclasses.replace(claims, origin_s=float(instance.arrival_s.min()))


def _upgraded(instance: Instance, result: dict[str, Any]) -> dict[str, Any]:
    """Return a result of an earlier version as one of today.

    Version 1, which states no version, has other names of fields. Versions 1 and 2 count the
    times of schedules, and makespans, from time 0 and not from the first arrival.

    Raises
    ------
    ValueError
        If the version is unknown, or if an earlier version has lost digits: its times count
        from 0, and the first arrival is late.
    Refuted
        If the gap of an earlier version, which `_since_first_arrival` replaces, is wrong.
    """
    version = result.get("version", 1)
    if type(version) is not int or version not in (1, 2, VERSION):
        raise ValueError(f"result: version must be 1, 2 or {VERSION}, got {version!r:.60}")
    if version != VERSION:
        result = _since_first_arrival(instance, result)
    boxes = result["certificate"].get("boxes")
    if version != 1 or not isinstance(boxes, list):
        return result
    renamed = [
        {_VERSION_1.get(key, key): _how(key, value) for key, value in box.items()}
        if isinstance(box, dict)
        else box
        for box in boxes
    ]
    return result | {"certificate": result["certificate"] | {"boxes": renamed}}


def _since_first_arrival(instance: Instance, result: dict[str, Any]) -> dict[str, Any]:
    """Subtract the first arrival from schedule times and, of a makespan, from the objective."""
    first_s = float(instance.arrival_s.min())
    is_answer = instance.objective.is_scheduled and result.get("objective_s") is not None
    if first_s == 0 or not is_answer:
        return result
    if first_s > LATEST_FIRST_S:
        raise ValueError(
            f"result: its times count from 0, as versions before {VERSION} do, and have lost"
            f" digits: the first arrival must be at most {LATEST_FIRST_S:g} s, got"
            f" {first_s:g}; solve the instance again"
        )
    changes: dict[str, Any] = {}
    schedule = result.get("schedule")
    if isinstance(schedule, dict):
        times = {key: _rows_less(schedule.get(key), first_s) for key in ("start_s", "end_s")}
        changes["schedule"] = schedule | times
    if result.get("objective") == "makespan":
        changes |= _makespan_less(result, first_s)
    return result | changes


def _makespan_less(result: dict[str, Any], first_s: float) -> dict[str, Any]:
    """Return the changed fields of a makespan that counted from time 0."""
    claimed_s, claimed_bound_s = _checked_gap(result)
    objective_s, bound_s = _less(claimed_s, first_s), _bound_less(claimed_bound_s, first_s)
    certificate = result["certificate"]
    moved = {
        "value_s": _less(certificate.get("value_s"), first_s),
        "bound_s": _bound_less(certificate.get("bound_s"), first_s),
    }
    return {
        "objective_s": objective_s,
        "bound_s": bound_s,
        "gap": _gap(objective_s, bound_s),
        "certificate": certificate | moved,
    }


def _less(value: Any, first_s: float) -> Any:
    """Subtract the first arrival from a number; leave what is none for a later check."""
    sound = type(value) in (int, float) and abs(value) <= LARGEST
    return value - first_s if sound else value


def _bound_less(value: Any, first_s: float) -> Any:
    """Subtract the first arrival from a bound; below the first arrival it proves nothing: 0."""
    sound = type(value) in (int, float) and 0 <= value <= LARGEST
    return max(value - first_s, 0.0) if sound else value


def _rows_less(table: Any, first_s: float) -> Any:
    if not isinstance(table, list):
        return table
    return [[_less(x, first_s) for x in row] if isinstance(row, list) else row for row in table]


COVERED = frozenset(
    {
        "version", "digest", "names_digest", "extrapolated", "objective", "status",
        "objective_s", "bound_s", "gap", "cuts", "schedule", "certificate",
    }
)  # fmt: skip
"""Fields of a result that `hypsolve.verify.verify` confirms or refutes."""
CERTIFICATE = frozenset({"kind", "value_s", "bound_s", "cuts", "boxes"})


SCHEDULE = frozenset({"node", "start_s", "end_s"})
BOX = frozenset(field.name for field in dataclasses.fields(BoxClaim))


def not_covered(result: dict[str, Any]) -> list[str]:
    """Return the fields of a verified result that the check does not cover, at any depth."""
    covered = COVERED if "names_digest" in result else COVERED - {"extrapolated"}
    fields = {str(field) for field in result} - covered
    named = {"instance (its name)" if field == "instance" else field for field in fields}
    certificate = result["certificate"]
    boxes = certificate.get("boxes") or []
    in_boxes = BOX | set(_VERSION_1) if result.get("version", 1) == 1 else BOX
    for where, tables, known in (
        ("schedule", [result.get("schedule") or {}], SCHEDULE),
        ("certificate", [certificate], CERTIFICATE),
        ("certificate.boxes", boxes, in_boxes),
    ):
        named |= {f"{where}.{field}" for table in tables for field in table} - {
            f"{where}.{field}" for field in known
        }
    return sorted(named)


_VERSION_1 = {"price": "multipliers"}


def _how(key: str, value: Any) -> Any:
    return "lagrangian_bound" if key == "how" and value == "prices" else value


def _read_answer(
    instance: Instance, result: Any, certificate: Any, status: str, kind: str
) -> Claims:
    need(status in ("optimal", "feasible"), "status: must be optimal or feasible")
    scheduled = instance.objective.is_scheduled
    need(
        kind == ("joint" if scheduled else str(instance.objective)) and kind in _KINDS,
        "certificate: not of this objective",
    )
    objective_s = _number("objective_s", result.get("objective_s"))
    proved_s = _number("certificate: bound_s", certificate.get("bound_s"))
    value_s = _number("certificate: value_s", certificate.get("value_s"))
    same = abs(value_s - objective_s) <= SAME * objective_s
    need(same, "certificate: value_s must be objective_s")
    objective_s, bound_s = _checked_gap(result)
    limits = (instance.n_tiers + 1, 0, instance.n_blocks)
    cuts = _wholes("cuts", result.get("cuts"), *limits)
    proved = _wholes("certificate: cuts", certificate.get("cuts"), *limits)
    need(proved == cuts, "certificate: cuts must be those of the result")
    shape = (instance.n_requests, instance.n_tiers)
    node, start_s, end_s = [], [], []
    need(scheduled or result.get("schedule") is None, "schedule: there must be none")
    if scheduled:
        schedule = result.get("schedule")
        need(isinstance(schedule, dict), "schedule: must be a table")
        node, start_s, end_s = (
            _rows(key, schedule.get(key), shape) for key in ("node", "start_s", "end_s")
        )
        for r, row in enumerate(node):
            _wholes(f"schedule: node, request {r}", row, shape[1], -1, instance.n_nodes - 1)
        _check_empty(cuts, node, start_s, end_s)
    given = certificate.get("boxes")
    need(isinstance(given, list), "boxes: must be a list")
    need(scheduled or not given, "certificate: boxes: there must be none")
    boxes = [_box(instance, f"box {at}:", box) for at, box in enumerate(given)]
    return Claims(
        status, kind, objective_s, bound_s, proved_s, cuts, node, start_s, end_s, boxes
    )


_KINDS = ("joint", "bottleneck")


def _check_empty(cuts: list[int], node: Any, start_s: Any, end_s: Any) -> None:
    """Refute a node or a time of a request at an empty stage."""
    empty = [k for k in range(len(cuts) - 1) if cuts[k] == cuts[k + 1]]
    for key, table, none in (("node", node, -1), ("start_s", start_s, None),
                             ("end_s", end_s, None)):  # fmt: skip
        sound = all(row[k] == none for row in table for k in empty)
        need(sound, f"schedule: {key} must be {json.dumps(none)} where a stage is empty")


def _checked_gap(result: dict[str, Any]) -> tuple[float, float]:
    """Return objective and bound; refute a gap that is not theirs."""
    objective_s, bound_s, gap = (
        _number(key, result.get(key)) for key in ("objective_s", "bound_s", "gap")
    )
    true_gap = _gap(objective_s, bound_s)
    need(abs(gap - true_gap) <= SAME, "gap: it is", true_gap)
    return objective_s, bound_s


def _gap(objective_s: float, bound_s: float) -> float:
    return (objective_s - bound_s) / objective_s if objective_s > 0 else 0.0


def _number(where: str, value: Any) -> float:
    need(type(value) in (int, float), where, "must be a number")
    need(0 <= value <= LARGEST, where, "must be at least 0 and finite")
    return float(value)


def _wholes(where: str, values: Any, length: int | None, low: int, high: int) -> list[int]:
    need(isinstance(values, list), where, "must be a list")
    need(length in (None, len(values)), where, f"must have {length} entries")
    need(all(type(x) is int and low <= x <= high for x in values), where,
         f"must hold whole numbers of {low} to {high}")  # fmt: skip
    return list(values)


def _rows(where: str, rows: Any, shape: tuple[int, int]) -> list[list[Any]]:
    sound = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    sound = sound and [len(rows), *map(len, rows)] == [shape[0], *[shape[1]] * shape[0]]
    need(sound, f"schedule: {where} must have shape {shape}")
    return list(rows)


def _box(instance: Instance, where: str, box: Any) -> BoxClaim:
    need(isinstance(box, dict), where, "must be a table")
    limits = (instance.n_tiers + 1, 0, instance.n_blocks)
    low, high = (_wholes(f"{where} {key}", box.get(key), *limits) for key in ("low", "high"))
    how, n_ticks, multipliers = (box.get(key) for key in ("how", "n_ticks", "multipliers"))
    need(
        how in ("lagrangian_bound", "search"),
        where,
        "how must be lagrangian_bound or search",
    )
    tick_s = _number(f"{where} tick_s", box.get("tick_s"))
    need(tick_s > 0, where, "tick_s must be positive")
    need(type(n_ticks) is int and 0 < n_ticks <= MAX_TICKS, where, "n_ticks: 1 to", MAX_TICKS)
    need(isinstance(multipliers, list), where, "multipliers must be a list")
    rows = []
    for row in multipliers:
        need(isinstance(row, list) and len(row) == 3, where, "multipliers: rows of 3")
        node, first, run = row
        _wholes(f"{where} multipliers: node, first tick", [node, first], 2, 0, 2**31)
        _wholes(f"{where} multipliers", run, None, 0, 2**62)
        need(first + len(run) <= n_ticks, where, "multipliers: beyond the last tick")
        rows.append((node, first, run))
    return BoxClaim(low, high, how, tick_s, n_ticks, rows)

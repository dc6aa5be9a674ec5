"""Strict reading of the claims of a result on a `ServingInstance`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from hypsolve.problem.runtime import Batching
from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_records import ServingObjective
from hypsolve.problem.serving_result import VERSION
from hypsolve.verify.reading import LARGEST, SAME, need

OBJECTIVES = (ServingObjective.THROUGHPUT, ServingObjective.GOODPUT)
NO_RATE = (
    1.0001e-9  # requests per second: methods count less than 1e-9 as none, and add margins
)
LATENCIES = ("ttft_s", "tpot_s", "latency_s")


@dataclass(frozen=True, slots=True)
class HoldClaim:
    """A step of the chain of hold times; None stands for inf."""

    held_s: float
    potentials_s: list[list[float | None]]


@dataclass(frozen=True, slots=True)
class RangeClaim:
    """Splits that are refuted together, as `LevelRange` in `rate_certificate` states."""

    n_stages: int
    n_pipelines: int
    first_tier: int | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ServingClaims:
    """Claims of a result; `cuts` is empty and `served` is 0 without a solution."""

    status: str
    cuts: list[int]
    served_per_s: float
    latencies_s: list[float]
    price_per_request: float | None
    refuted_per_s: float
    steps: list[HoldClaim]
    ranges: list[RangeClaim]


COVERED = frozenset(
    {
        "version", "digest", "objective", "status", "cuts", "fluid_bound", "fluid_gap",
        "served", "certificate",
    }
)  # fmt: skip
"""Fields of a result that `hypsolve.verify.verify` confirms or refutes."""
NAMES = frozenset({"names_digest", "extrapolated"})
"""Fields that are covered, too, if there is a digest of the names; older results have none."""
SERVED = frozenset({"fluid_requests_per_s", "price_per_request", *LATENCIES})
CERTIFICATE = frozenset({"refuted_requests_per_s", "hold_steps", "level_ranges"})


def serving_not_covered(result: dict[str, Any]) -> list[str]:
    """Return the fields of a verified result that the check does not cover, at any depth."""
    covered = COVERED | NAMES if "names_digest" in result else COVERED
    fields_of = {str(field) for field in result} - covered
    named = {"instance (its name)" if field == "instance" else field for field in fields_of}
    certificate = result["certificate"]
    for where, tables, known in (
        ("served", [result.get("served") or {}], SERVED),
        ("certificate", [certificate], CERTIFICATE),
        ("certificate.hold_steps", certificate["hold_steps"], _names(HoldClaim)),
        ("certificate.level_ranges", certificate["level_ranges"], _names(RangeClaim)),
    ):
        named |= {f"{where}.{field}" for table in tables for field in set(table) - known}
    return sorted(named)


def _names(record: Any) -> set[str]:
    return {field.name for field in fields(record)}


def read_serving(instance: ServingInstance, result: Any) -> ServingClaims:
    """Return the claims of a result with the right types and shapes, free of contradiction.

    Raises
    ------
    ValueError
        If `result` is not a result on a `ServingInstance`, or has no certificate.
    Refuted
        If a field is wrong; the message names it.
    """
    if not isinstance(result, dict) or "status" not in result or "served" not in result:
        raise ValueError("not a result, as ServingResult.save writes it")
    version = result.get("version")
    if type(version) is not int or version not in (1, VERSION):
        raise ValueError(f"result: version must be 1 or {VERSION}, got {version!r:.60}")
    certificate = result.get("certificate")
    if not isinstance(certificate, dict):
        raise ValueError(
            f"a result of {result.get('method')!r} for {result.get('objective')!r} without a"
            " certificate: throughput_exact gives one for throughput and goodput"
        )
    need(result.get("digest") == instance.digest(), "digest: of another instance")
    if "names_digest" in result:
        same = result["names_digest"] == instance.names_digest()
        need(same, "names_digest: of other names, or of another `extrapolated`")
        same = result.get("extrapolated") is bool(instance.names.extrapolated)
        need(same, "extrapolated: it is", bool(instance.names.extrapolated))
    need(result.get("objective") == str(instance.objective), "objective: not the instance's")
    need(instance.objective in OBJECTIVES, "certificate: not of this objective")
    refuted = _positive("certificate: refuted_requests_per_s",
                        certificate.get("refuted_requests_per_s"))  # fmt: skip
    steps, ranges = _steps(instance, certificate), _ranges(instance, certificate)
    status = result.get("status")
    if status == "infeasible":
        for field in ("cuts", "served", "fluid_gap", "fluid_bound"):
            need(result.get(field) is None, f"{field}: there must be none")
        why = "certificate: refuted_requests_per_s: must be at most"
        need(refuted <= NO_RATE, why, NO_RATE, "where no split is claimed to carry any rate")
        return ServingClaims("infeasible", [], 0.0, [], None, refuted, steps, ranges)
    need(status in ("optimal", "feasible"), "status: must be optimal, feasible or infeasible")
    return _read_answer(instance, result, str(status), refuted, steps, ranges)


def _read_answer(
    instance: ServingInstance,
    result: dict[str, Any],
    status: str,
    refuted: float,
    steps: list[HoldClaim],
    ranges: list[RangeClaim],
) -> ServingClaims:
    cuts, served = result.get("cuts"), result.get("served")
    need(isinstance(cuts, list), "cuts: must be a list")
    need(len(cuts or []) == instance.n_tiers + 1, f"cuts: must have {instance.n_tiers + 1}")
    whole = all(type(cut) is int and 0 <= cut <= instance.n_blocks for cut in cuts or [])
    need(whole, f"cuts: must hold whole numbers of 0 to {instance.n_blocks}")
    need(isinstance(served, dict), "served: must be a table")
    assert isinstance(cuts, list) and isinstance(served, dict)
    rate = _positive("served: fluid_requests_per_s", served.get("fluid_requests_per_s"))
    times = [_number(f"served: {field}", served.get(field)) for field in LATENCIES]
    price = _number("served: price_per_request", served.get("price_per_request"))
    bound = _positive("fluid_bound", result.get("fluid_bound"))
    gap = _number("fluid_gap", result.get("fluid_gap"))
    true_gap = max(0.0, 1 - rate / bound)
    need(abs(gap - true_gap) <= SAME, "fluid_gap: it is", true_gap)
    need(bound >= refuted * (1 - SAME), "fluid_bound: below the refuted rate")
    need(rate <= refuted, "served: fluid_requests_per_s: a larger rate is refuted")
    return ServingClaims(status, cuts, rate, times, price, refuted, steps, ranges)


def _steps(instance: ServingInstance, certificate: dict[str, Any]) -> list[HoldClaim]:
    given = certificate.get("hold_steps")
    need(isinstance(given, list), "hold_steps: must be a list")
    is_stage = instance.rules.batching is Batching.STAGE
    need(bool(given) == is_stage, "hold_steps: needed under the batching mode stage alone")
    steps = []
    for at, step in enumerate(given or []):
        where = f"hold_steps: step {at}:"
        need(isinstance(step, dict), where, "must be a table")
        held_s = _number(f"{where} held_s", step.get("held_s"))
        steps.append(HoldClaim(held_s, _potentials(instance, where, step)))
    return steps


def _potentials(
    instance: ServingInstance, where: str, step: dict[str, Any]
) -> list[list[float | None]]:
    rows = step.get("potentials_s")
    where += " potentials_s"
    need(isinstance(rows, list) and all(isinstance(row, list) for row in rows), where,
         "must be a list of lists")  # fmt: skip
    assert isinstance(rows, list)
    if not rows:
        return []
    shape = instance.n_tiers + 1, instance.n_blocks + 1
    sound = len(rows) == shape[0] and all(len(row) == shape[1] for row in rows)
    need(sound, where, f"must have shape {shape}")
    return [[None if p is None else _number(where, p) for p in row] for row in rows]


def _ranges(instance: ServingInstance, certificate: dict[str, Any]) -> list[RangeClaim]:
    given = certificate.get("level_ranges")
    need(isinstance(given, list), "level_ranges: must be a list")
    is_stage = instance.rules.batching is Batching.STAGE
    need(not (given and is_stage), "level_ranges: there must be none under stage")
    ranges = []
    for at, each in enumerate(given or []):
        where = f"level_ranges: range {at}:"
        need(isinstance(each, dict), where, "must be a table")
        n_stages, n_pipelines, first = (
            each.get(key) for key in ("n_stages", "n_pipelines", "first_tier")
        )
        for key, value, least in (("n_stages", n_stages, 1), ("n_pipelines", n_pipelines, 1),
                                  ("first_tier", first, 0)):  # fmt: skip
            sound = type(value) is int and least <= value <= 2**31
            need(sound or (key == "first_tier" and value is None), where, key, "is wrong")
        low, high = (_number(f"{where} {key}", each.get(key)) for key in ("low", "high"))
        need(low < high, where, "low must be below high")
        ranges.append(RangeClaim(n_stages, n_pipelines, first, low, high))
    return ranges


def _number(where: str, value: Any) -> float:
    need(type(value) in (int, float), where, "must be a number")
    need(0 <= value <= LARGEST, where, "must be at least 0 and finite")
    return float(value)


def _positive(where: str, value: Any) -> float:
    number = _number(where, value)
    need(number > 0, where, "must be positive")
    return number

"""`SavedPlacement`: the file of a `PlacementPlan`, read back with its machines."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypsolve import catalog
from hypsolve.planning.earlier_plan import with_arguments
from hypsolve.planning.place_machines import MachinesSource
from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.place_schema import PlacementFile
from hypsolve.planning.placement_given import describe_differences, differences
from hypsolve.planning.placement_plan import FORMAT, VERSION, PlacementPlan, placement_of
from hypsolve.planning.placement_records import (
    PlaceAnswer,
    PlacedPipeline,
    PlacedThroughput,
    SimulatedPlacement,
    UnusedMachine,
)
from hypsolve.planning.query_arguments import ModelSource
from hypsolve.planning.request_mix import LENGTHS, mix_from
from hypsolve.planning.typed_tables import check_table
from hypsolve.problem.files import MAX_BYTES, checked_path, parse_json, read_bytes
from hypsolve.problem.placement import PlacedStage, Placement
from hypsolve.problem.placement_evaluation import check_placement
from hypsolve.problem.placement_result import PlacementResult
from hypsolve.problem.runtime import runtime_from_dict
from hypsolve.problem.solution import Status
from hypsolve.simulation.metrics import Summary

OWNER = "placement"
OF_MODEL = " of the model "  # in the words of a difference
KEPT = (
    "prompt_tokens", "output_tokens", "rate_per_s", "users", "think_time_s", "ttft_slo_s",
    "tpot_slo_s", "objective", "max_stages", "time_limit_s", "seed",
)  # fmt: skip
"""Fields of the file that are attributes of `PlaceQuery`."""
PlacementSource = str | os.PathLike[str] | PlacementPlan | Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SavedPlacement:
    """A placement as its file states it, without the machines.

    Attributes
    ----------
    owner : str
        Path of the file, or ``placement``; messages begin with it.
    document : mapping
        As `PlacementPlan.to_dict` returns it; its fields and their types are checked.
    placement : Placement or None
        Its pipelines, with shares of the router as loads. None if nothing fitted.
    """

    owner: str
    document: Mapping[str, Any]
    placement: Placement | None

    @classmethod
    def of(cls, source: PlacementSource) -> SavedPlacement:
        """Read a placement from its file, from a plan, or from the table of a plan.

        Raises
        ------
        ValueError, TypeError
            If it is no placement of this version; the message names the field, the rule and
            the value.
        OSError
            If the file cannot be read.
        """
        if isinstance(source, PlacementPlan):
            return cls(owner=OWNER, document=source.to_dict(), placement=source.placement)
        if isinstance(source, Mapping):
            return _of(OWNER, dict(source))
        path = checked_path(OWNER, source)
        return _of(str(path), parse_json(path, read_bytes(path, MAX_BYTES)))

    @property
    def machine_names(self) -> frozenset[str]:
        """Names of the machines that the plan could choose from."""
        names = {
            stage["machine"]
            for pipeline in self.document["pipelines"]
            for stage in pipeline["stages"]
        }
        return frozenset(names.union(*(each["machines"] for each in self.document["unused"])))

    def query(
        self, machines: MachinesSource, model: ModelSource | None = None, **arguments: Any
    ) -> PlaceQuery:
        """Return the query of the plan for some machines; keyword arguments replace its own.

        Parameters
        ----------
        machines : path, MachinesFile, Fleet, Network or NetworkFile
            As in `hypsolve.place`.
        model : str, path or Model, optional
            Default: the model of the catalogue that the plan names.
        """
        document = self.document
        kept = {name: document[name] for name in KEPT if document[name] is not None}
        kept["runtime"] = runtime_from_dict(self.owner, document["runtime"])
        if (mix := mix_from(self.owner, document)) is not None:
            kept["requests"] = mix
            for name in LENGTHS:  # the means of the requests
                del kept[name]
        weights = arguments.pop("weights", document["weights"])
        if model is None:
            model = self._model_name(document["weights"])
        if not isinstance(model, str | os.PathLike):
            weights = None
        asked = with_arguments(kept, arguments)
        if isinstance(asked["runtime"], str):
            asked["runtime"] = catalog.runtime(asked["runtime"])
        query = PlaceQuery.of(model, machines, weights=weights, **asked)
        name = document["model"]
        if query.model.name != name and weights == document["weights"]:
            raise ValueError(
                f"{self.owner}: model must be that of the plan, {name!r},"
                f" got {query.model.name!r}"
            )
        return query

    def _model_name(self, weights: str | None) -> str:
        """Return the name in the catalogue of the model of the plan."""
        name: str = self.document["model"]
        found = name.removesuffix(f"-{weights}") if weights else name
        if found not in catalog.models():
            formats = [each for each in catalog.weights_choices() if found.endswith(f"-{each}")]
            found = found.removesuffix(f"-{max(formats, key=len)}") if formats else found
        if found not in catalog.models():
            raise ValueError(
                f"{self.owner}: model {name!r} is not in the catalogue: give its files as model"
            )
        return found

    def changes(self, query: PlaceQuery) -> str:
        """Say what differs between the machines of a query and those of the plan.

        Empty if nothing does. The query must be that of the plan, see `query`.
        """
        problem = query.problem()
        named = replace(problem.fleet, name=self.document["machines"])  # a file may be renamed
        if problem.replace(fleet=named).digest() == self.document["digest"]:
            return ""
        names = {each.name for each in query.fleet.machines} | query.left_out.keys()
        gone = sorted(self.machine_names - names)
        new = sorted(names - self.machine_names)
        words = [f"without {', '.join(gone)}"] if gone else []
        words += [f"with {', '.join(new)} besides"] if new else []
        found = differences(self.document.get("given", []), problem)
        fields = describe_differences(found)
        if found and not words and all(OF_MODEL in each for each in found):
            return f"the model is not that of the plan: {fields}"
        what = "; ".join(filter(None, (" and ".join(words), fields)))
        what = what or "of the same names, but with other values (or the model differs)"
        return f"the machines are not those of the plan: {what}"

    def plan(
        self, machines: MachinesSource, model: ModelSource | None = None, **arguments: Any
    ) -> PlacementPlan:
        """Return the plan for its machines, as `hypsolve.place` returned it.

        What was simulated and proved is taken from the file. `changes` says whether the
        machines are still those of the plan.

        Raises
        ------
        ValueError
            If a pipeline breaks a rule on these machines, as a machine that is gone does.
        """
        query, document = self.query(machines, model, **arguments), self.document
        problem = query.problem()
        if self.placement is not None:
            lifted = problem.replace(objective="throughput", requests_per_s=None)
            for violation in check_placement(lifted, self.placement):
                raise ValueError(f"{self.owner}: the placement does not fit: {violation}")
        throughput = document["throughput"]
        return PlacementPlan(
            query=query,
            result=PlacementResult(
                method=document["method"],
                status=Status(document["status"]),
                problem=problem,
                placement=self.placement,
                served=None,
                fluid_bound=None if throughput is None else throughput["fluid_bound"],
                alternatives=(),
                solve_time_s=document["solve_time_s"],
            ),
            placement=self.placement,
            pipelines=tuple(_pipeline(each) for each in document["pipelines"]),
            throughput=None if throughput is None else _throughput(throughput),
            answer=_answer(document),
            unused=tuple(
                UnusedMachine(
                    machines=tuple(each["machines"]),
                    why=each["why"],
                    reason=each["reason"],
                    gain_per_s=_real(each["gain_per_s"]),
                )
                for each in document["unused"]
            ),
            reasons=tuple(document["reasons"]),
            stopped=document["stopped"],
            interrupted=document["interrupted"],
        )


def load_placement(
    path: PlacementSource, machines: MachinesSource, *, model: ModelSource | None = None
) -> PlacementPlan:
    """Read a placement that `hypsolve place --save` or `PlacementPlan.save` wrote.

    Parameters
    ----------
    path : str or path
    machines : path, MachinesFile, Fleet, Network or NetworkFile
        Those that the placement was made for; the file names them, but does not describe them.
    model : str, path or Model, optional
        Default: the model of the catalogue that the file names.

    Returns
    -------
    PlacementPlan
        For `PlacementPlan.simulate` and `hypsolve.export_placement`.

    Raises
    ------
    ValueError, TypeError
        If the file holds no placement of this version, or these are other machines; the
        message names the file, the field, the rule and the value.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> import hypsolve as hs
    >>> box = hs.Node(name="box", gpu=hs.gpu("rtx-4090"))
    >>> lab = hs.Fleet(
    ...     name="lab",
    ...     sites=(hs.Site(name="room", link=hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)),),
    ...     machines=(hs.Machine(node=box, site="room"),),
    ... )
    >>> plan = hs.place("llama-3-8b", lab, output_tokens=64, time_limit_s=10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plan.save(f"{folder}/plan.json")
    ...     again = hs.load_placement(f"{folder}/plan.json", lab)
    >>> again.to_dict() == plan.to_dict()
    True
    """
    saved = SavedPlacement.of(path)
    found = saved.plan(machines, model)
    if words := saved.changes(found.query):
        raise ValueError(f"{saved.owner}: {words}")
    return found


def _of(owner: str, document: Any) -> SavedPlacement:
    kind = document.get("format") if isinstance(document, dict) else document
    if kind != FORMAT:
        hint = f"; a plan is for --plan, in {Path(owner).name}" * (kind == "hypsolve-plan")
        raise ValueError(f"{owner}: format must be {FORMAT!r}, got {kind!r:.60}{hint}")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(f"{owner}: version must be {VERSION}, got {version!r:.60}")
    check_table(owner, document, PlacementFile)
    try:
        placement = placement_of(document) if document["pipelines"] else None
    except (ValueError, TypeError) as error:
        raise type(error)(f"{owner}: {error}") from None
    return SavedPlacement(owner=owner, document=document, placement=placement)


def _real(value: float | None) -> float:
    """Return a number of a file, in which None stands for nan."""
    return math.nan if value is None else float(value)


def _bound(value: float | None) -> float:
    """Return a bound of a file, in which None stands for inf."""
    return math.inf if value is None else float(value)


def _summary(table: Mapping[str, Any], n: int) -> Summary:
    return Summary(n=n, **{name: _real(value) for name, value in table.items()})


def _stages(table: Mapping[str, Any]) -> tuple[PlacedStage, ...]:
    return tuple(
        PlacedStage(each["machine"], each["gpus"], *each["blocks"]) for each in table["stages"]
    )


def _pipeline(table: Mapping[str, Any]) -> PlacedPipeline:
    reals = ("requests_per_s", "fluid_requests_per_s", "fluid_ttft_s", "fluid_tpot_s",
             "load_per_s")  # fmt: skip
    read: dict[str, Any] = {name: _real(table[name]) for name in reals}
    for name in ("ttft_s", "tpot_s"):
        read[name] = None if table[name] is None else _summary(table[name], 1)
    return PlacedPipeline(
        stages=_stages(table),
        share=table["share"],
        limit=table["limit"],
        max_sequences=table["max_sequences"],
        bound_requests_per_s=_bound(table["bound_requests_per_s"]),
        **read,
    )


def _throughput(table: Mapping[str, Any]) -> PlacedThroughput:
    bounds = ("bound_requests_per_s", "pipelines_bound_requests_per_s")
    reals = ("simulated_requests_per_s", "fluid_requests_per_s", "fluid_bound", "fluid_gap",
             "gap")  # fmt: skip
    return PlacedThroughput(
        objective=table["objective"],
        quantity=table["quantity"],
        n_requests=table["n_requests"],
        is_lower_bound=table["is_lower_bound"],
        placements=tuple(
            SimulatedPlacement(
                origin=each["origin"],
                placement=Placement.from_dict({"pipelines": each["pipelines"]}),
                fluid_requests_per_s=_real(each["fluid_requests_per_s"]),
                simulated_requests_per_s=_real(each["simulated_requests_per_s"]),
            )
            for each in table["placements"]
        ),
        **{name: _bound(table[name]) for name in bounds},
        **{name: _real(table[name]) for name in reals},
    )


def _answer(document: Mapping[str, Any]) -> PlaceAnswer | None:
    table = document["answer"]
    if table is None:
        return None
    times = ("ttft_s", "tpot_s", "latency_s")
    nothing = Summary(n=0, mean=math.nan, p50=math.nan, p95=math.nan, p99=math.nan)
    pipelines = [_pipeline(each) for each in document["pipelines"]]
    numbers = {
        **table,
        **{name: _summary(table[name], table["n_requests"]) for name in times},
        **{
            name: _real(table[name])
            for name in ("slo_attainment", "served_per_s", "max_requests_per_s")
        },
    }
    return PlaceAnswer(
        of_pipelines=tuple((p.ttft_s or nothing, p.tpot_s or nothing) for p in pipelines),
        **numbers,
    )

"""`load_layer_flow`: a saved result on a `LayerFlowProblem`, read back with its problem."""

from __future__ import annotations

import math
import os
from typing import Annotated, Any, Literal, TypedDict

from hypsolve.planning.typed_tables import check_table
from hypsolve.problem.files import MAX_BYTES, checked_path, parse_json, read_bytes
from hypsolve.problem.layer_evaluation import check_layout
from hypsolve.problem.layer_flow import LayerFlowProblem
from hypsolve.problem.layer_layout import HostedRange, LayerLayout
from hypsolve.problem.layer_result import FORMAT, VERSION, LayerFlowOutcome, LayerFlowResult
from hypsolve.problem.solution import Status

CLOSE = 1e-9  # relative difference of equal flows


class LayoutTable(TypedDict):
    """Layers on machines, and the flow of tokens between them."""

    ranges: Annotated[list[list[Any]], "Machine, first layer, and the one after the last."]
    flows: Annotated[list[list[Any]], "From, to, and tokens per second; null: the coordinator."]


class LayerFlowFile(TypedDict):
    """A result on a problem of flow through layers."""

    format: Annotated[Literal["hypsolve-layer-flow"], "Kind of the file."]
    version: Annotated[Literal[1], "Version of the format."]
    problem: Annotated[str, "Name of the problem."]
    digest: Annotated[str, "SHA-256 of the problem, without its name."]
    method: Annotated[str, "Name in `hypsolve methods`, or of your own method."]
    status: Annotated[Status, "What is proved."]
    tokens_per_s: Annotated[float, "Flow of the layout; 0 without one."]
    bound_tokens_per_s: Annotated[
        float | None, "Tokens per second that no layout exceeds; null: none is proved."
    ]
    gap: Annotated[float, "1 - tokens_per_s / bound_tokens_per_s; 1: nothing is proved."]
    layout: Annotated[LayoutTable | None, "null: no layout."]
    certificate: Annotated[dict[str, Any] | None, "Proof of the bound; null: none."]
    solve_time_s: Annotated[float, "Wall time of the method in seconds."]
    message: Annotated[str, "Explanation in words."]
    statistics: Annotated[dict[str, Any], "Counts and times of the method."]


def load_layer_flow(path: str | os.PathLike[str], problem: LayerFlowProblem) -> LayerFlowResult:
    """Read a result that `LayerFlowResult.save` wrote, and check its layout again.

    The bound is taken from the file; `hypsolve.verify.layer_flow.verify_layer_flow` checks its
    certificate.

    Parameters
    ----------
    path : str or path
    problem : LayerFlowProblem
        The problem that was solved; the file has its digest.

    Raises
    ------
    ValueError, TypeError
        If the file holds no such result, the problem is another one, or the layout breaks a
        rule; the message names the file, the field, the rule and the value.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> import hypsolve as hs
    >>> box = hs.LayerFlowProblem(
    ...     name="box", n_layers=2, kinds={"a": "big"}, tokens_per_s={"big": (9.0, 4.0)},
    ...     links={(None, "a"): 1e6, ("a", None): 1e6}, activation_bytes=8192, token_bytes=2,
    ... )
    >>> result = hs.solve(box, "stage_dp")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result.save(f"{folder}/flow.json")
    ...     again = hs.load_layer_flow(f"{folder}/flow.json", box)
    >>> again.tokens_per_s, again.to_dict() == result.to_dict()
    (4.0, True)
    """
    if not isinstance(problem, LayerFlowProblem):
        raise TypeError(
            f"load_layer_flow: problem must be a LayerFlowProblem, got {problem!r:.60}"
        )
    file = checked_path("load_layer_flow", path)
    table = parse_json(file, read_bytes(file, MAX_BYTES))
    owner = str(file)
    kind = table.get("format") if isinstance(table, dict) else table
    if kind != FORMAT:
        raise ValueError(f"{owner}: format must be {FORMAT!r}, got {kind!r:.60}")
    version = table.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(f"{owner}: version must be {VERSION}, got {version!r:.60}")
    check_table(owner, table, LayerFlowFile)
    if table["digest"] != problem.digest():
        raise ValueError(
            f"{owner}: digest must be that of the problem, {problem.digest()[:12]}...,"
            f" got {table['digest']!r:.15}"
        )
    bound = table["bound_tokens_per_s"]
    try:
        outcome = LayerFlowOutcome(
            status=Status(table["status"]),
            layout=None if table["layout"] is None else _layout(table["layout"]),
            bound_tokens_per_s=math.inf if bound is None else bound,
            certificate=table["certificate"],
        )
    except (ValueError, TypeError) as error:
        raise type(error)(f"{owner}: {error}") from None
    if outcome.layout is not None:
        for violation in check_layout(problem, outcome.layout):
            raise ValueError(f"{owner}: the layout breaks a rule: {violation}")
    result = LayerFlowResult(
        method=table["method"],
        status=outcome.status,
        problem=problem,
        layout=outcome.layout,
        bound_tokens_per_s=outcome.bound_tokens_per_s,
        certificate=outcome.certificate,
        solve_time_s=table["solve_time_s"],
        message=table["message"],
        statistics=table["statistics"],
    )
    for name in ("tokens_per_s", "gap"):
        stated, own = table[name], getattr(result, name)
        if not math.isclose(stated, own, rel_tol=CLOSE, abs_tol=CLOSE):
            raise ValueError(f"{owner}: {name} must be {own!r}, as computed, got {stated!r}")
    return result


def _layout(table: LayoutTable) -> LayerLayout:
    for row in table["ranges"]:
        if len(row) != 3:
            raise ValueError(f"ranges must hold (machine, start, stop), got {row!r:.60}")
    return LayerLayout(
        tuple(HostedRange(*row) for row in table["ranges"]),
        tuple((start, end, rate) for start, end, rate in _flows(table)),
    )


def _flows(table: LayoutTable) -> list[list[Any]]:
    for row in table["flows"]:
        if len(row) != 3:
            raise ValueError(f"flows must hold (from, to, tokens per second), got {row!r:.60}")
    return table["flows"]

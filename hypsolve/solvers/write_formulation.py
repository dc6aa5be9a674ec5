"""Write exact formulations to files, for other solvers."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from hypsolve.problem import validation as valid
from hypsolve.problem.instance import Instance
from hypsolve.solvers.backends.loading import load_backend
from hypsolve.solvers.joint import cpsat as joint_cpsat
from hypsolve.solvers.joint import milp as joint_milp
from hypsolve.solvers.joint.tables import JointTables
from hypsolve.solvers.partition import cpsat, mathopt_mip, pulp_milp


class Units(NamedTuple):
    """Units of the objective in a file: ``objective_s = scale_s * value + offset_s``."""

    scale_s: float
    offset_s: float


def write_formulation(instance: Instance, method: str, path: str | PathLike[str]) -> Units:
    """Write to a file the formulation that an exact method solves.

    MILPs are written as ``.lp`` or ``.mps`` with 12 significant digits, constraint programs in
    the text format of CP-SAT as ``.pbtxt`` or ``.txt``. The first line of the file is a comment
    with the units of the objective.

    Parameters
    ----------
    instance : Instance
    method : str
        ``partition_cbc``, ``partition_highs``, ``partition_scip`` or ``joint_milp`` (MILPs);
        ``partition_cpsat`` or ``joint_cpsat`` (constraint programs).
    path : path-like
        The suffix determines the format. An existing file is replaced.

    Returns
    -------
    Units
        Converts the objective in the file to seconds.

    Raises
    ------
    ValueError
        If the method is unknown, its formulation cannot be written with this suffix, or it
        cannot minimise the objective of the instance.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import hypsolve as hs
    >>> instance = hs.Instance.from_tables([[[1.0] * 4]], [1] * 4, [[(0, 9)], [(0, 9)]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "partition.mps")
    ...     units = hs.write_formulation(instance, "partition_highs", path)
    ...     first_line = path.read_text().splitlines()[0]
    >>> print(first_line)
    * partition_highs: objective in seconds = 0.001953125 * value + 0.0
    >>> units.scale_s, units.offset_s
    (0.001953125, 0.0)
    """
    build, write, suffixes, comment = _FORMULATIONS[
        valid.known("formulation", method, _FORMULATIONS)
    ]
    path = Path(path)
    if path.suffix not in suffixes:
        raise ValueError(
            f"method {method!r} is written to {' or '.join(suffixes)}, got {path.suffix!r}; by"
            " suffix: "
            + "; ".join(f"{s}: {', '.join(_written_as(s))}" for s in (*_MILP, *_PROGRAM))
        )
    model, units = build(instance)
    write(model, path)
    meaning = f"objective in seconds = {units.scale_s!r} * value + {units.offset_s!r}"
    path.write_text(f"{comment[path.suffix]} {method}: {meaning}\n{path.read_text()}")
    return units


def _written_as(suffix: str) -> list[str]:
    """Return the methods whose formulation can be written with a suffix."""
    return [method for method, row in _FORMULATIONS.items() if suffix in row[2]]


def _write_pulp(problem: Any, path: Path) -> None:
    if path.suffix == ".lp":
        problem.writeLP(str(path))
    else:
        problem.writeMPS(str(path))


def _write_cpsat(model: Any, path: Path) -> None:
    path.touch()  # raises OSError for a bad folder; CP-SAT would only return False
    if not model.export_to_file(str(path)):
        raise OSError(f"CP-SAT could not write {path}")


def _pulp_partition(method: str) -> Callable[[Instance], tuple[Any, Units]]:
    def build(instance: Instance) -> tuple[Any, Units]:
        model = pulp_milp.build(instance, method)
        return model.problem, Units(model.unit_s, 0.0)

    return build


def _scip_partition(instance: Instance) -> tuple[Any, Units]:
    model = mathopt_mip.build(instance)
    return _as_pulp(model.model), Units(model.unit_s, 0.0)


def _as_pulp(model: Any) -> Any:
    """Convert a MathOpt model to PuLP, because the writer of OR-Tools keeps only 6 digits."""
    pulp = load_backend(mathopt_mip.METHOD, "pulp", "pulp>=3.3,<4")
    problem = pulp.LpProblem(model.name)
    variables = {
        v: problem.add_variable(
            v.name,
            v.lower_bound,
            min(v.upper_bound, 1.0) if v.integer else None,
            pulp.LpBinary if v.integer else pulp.LpContinuous,
        )
        for v in model.variables()
    }
    terms = [(variables[t.variable], t.coefficient) for t in model.objective.linear_terms()]
    problem += pulp.LpAffineExpression(terms)
    for row in model.linear_constraints():
        entries = [(variables[v], row.get_coefficient(v)) for v in model.row_nonzeros(row)]
        equal = row.lower_bound == row.upper_bound
        sense = pulp.LpConstraintEQ if equal else pulp.LpConstraintLE
        problem.addConstraint(
            pulp.LpConstraint(pulp.LpAffineExpression(entries), sense, rhs=row.upper_bound),
            row.name,
        )
    return problem


def _cpsat_partition(instance: Instance) -> tuple[Any, Units]:
    model = cpsat.build(instance)
    return model.model, Units(model.tick_s, 0.0)


def _joint_units(tables: JointTables, instance: Instance) -> Units:
    offset_s = tables.objective_s(0.0, instance.objective, instance.release_s)
    return Units(
        tables.objective_s(1.0, instance.objective, instance.release_s) - offset_s, offset_s
    )


def _pulp_joint(instance: Instance) -> tuple[Any, Units]:
    model = joint_milp.build(instance)
    return model.problem, _joint_units(model.tables, instance)


def _cpsat_joint(instance: Instance) -> tuple[Any, Units]:
    model = joint_cpsat.build(instance)
    return model.model, _joint_units(model.tables, instance)


_MILP = {".lp": "\\", ".mps": "*"}  # suffix: start of a comment
_PROGRAM = {".pbtxt": "#", ".txt": "#"}
_FORMULATIONS: dict[str, tuple[Any, Any, tuple[str, ...], dict[str, str]]] = {
    "partition_cbc": (_pulp_partition("partition_cbc"), _write_pulp, tuple(_MILP), _MILP),
    "partition_highs": (_pulp_partition("partition_highs"), _write_pulp, tuple(_MILP), _MILP),
    "partition_scip": (_scip_partition, _write_pulp, tuple(_MILP), _MILP),
    "partition_cpsat": (_cpsat_partition, _write_cpsat, tuple(_PROGRAM), _PROGRAM),
    "joint_milp": (_pulp_joint, _write_pulp, tuple(_MILP), _MILP),
    "joint_cpsat": (_cpsat_joint, _write_cpsat, tuple(_PROGRAM), _PROGRAM),
}

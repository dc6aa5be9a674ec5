"""The certificate of `joint_exact`, from the leaves of its search tree."""

from collections.abc import Iterable, Iterator

import numpy as np

from hypsolve.problem.solution import BoxProof, Certificate, Partition
from hypsolve.solvers.joint.partition_boxes import PartitionBox
from hypsolve.solvers.joint.search_node import SearchNode
from hypsolve.solvers.joint.tables import JointTables

CERTAIN = 1 - 3e-10  # factor on the bound: floats may have rounded it up by less


def joint_certificate(
    tables: JointTables,
    partition: Partition,
    value_s: float,
    bound_s: float,
    leaves: Iterable[SearchNode],
    infeasible: Iterable[PartitionBox],
) -> Certificate:
    """Certify that no partition and schedule have an objective below the bound.

    Parameters
    ----------
    tables : JointTables
    partition : Partition
        Of the incumbent.
    value_s, bound_s : float
        Objective of the incumbent, and the lower bound, in seconds.
    leaves : iterable of SearchNode
        Together with `infeasible`, their boxes make up all partitions.
    infeasible : iterable of PartitionBox
        Boxes without a feasible partition.
    """
    first_node = np.unique(tables.group, return_index=True)[1].tolist()
    empty = (
        BoxProof(
            low=box.low,
            high=box.high,
            how="lagrangian_bound",
            tick_s=1.0,
            n_ticks=1,
            multipliers=(),
        )
        for box in infeasible
    )
    return Certificate(
        kind="joint",
        value_s=value_s,
        bound_s=CERTAIN * bound_s,
        cuts=partition.cuts,
        boxes=(*(_box_proof(node, first_node) for node in leaves), *empty),
    )


def _box_proof(node: SearchNode, first_node: list[int]) -> BoxProof:
    """State why a box has no better solution."""
    multipliers, groups = node.proof, node.proof_groups
    if node.is_bound_searched:
        multipliers, groups = node.fine, node.relaxation.groups
    rows: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    if multipliers is not None and groups is not None:
        from hypsolve.kernels.subgradient import UNITS

        unit = multipliers.ticks.step / UNITS
        whole_units = np.rint(multipliers.values / unit).astype(np.int64)
        nodes = [first_node[g] for g in groups.tolist()]
        rows = tuple(_non_zero_rows(nodes, whole_units))
    return BoxProof(
        low=node.box.low,
        high=node.box.high,
        how="search" if node.is_bound_searched else "lagrangian_bound",
        tick_s=multipliers.ticks.step if multipliers else 1.0,
        n_ticks=multipliers.values.shape[1] if multipliers else 1,
        multipliers=rows,
    )


def _non_zero_rows(
    nodes: list[int], values: np.ndarray
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Yield (node, first tick, multipliers) from the first to the last that is not 0."""
    for node, row in zip(nodes, values, strict=True):
        ticks = np.flatnonzero(row)
        if len(ticks):
            yield node, int(ticks[0]), tuple(row[ticks[0] : ticks[-1] + 1].tolist())

"""Family of experiments on placements: machines without an order."""

from experiments.placing.definitions import EXPERIMENTS, plan
from experiments.placing.runs import COLUMNS, IDENTITY

__all__ = ["COLUMNS", "EXPERIMENTS", "IDENTITY", "plan"]

"""Family of experiments on requests per second of servers that batch."""

from experiments.serving.definitions import EXPERIMENTS, plan
from experiments.serving.runs import COLUMNS, IDENTITY

__all__ = ["COLUMNS", "EXPERIMENTS", "IDENTITY", "plan"]

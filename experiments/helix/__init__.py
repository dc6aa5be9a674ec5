"""Family of experiments on Helix's problem: layers on machines for the largest flow."""

from experiments.helix.definitions import EXPERIMENTS, plan
from experiments.helix.runs import COLUMNS, IDENTITY

__all__ = ["COLUMNS", "EXPERIMENTS", "IDENTITY", "plan"]

"""Family of experiments on Helix's problem: layers on machines for the largest flow."""

from experiments.layouts.definitions import EXPERIMENTS, plan
from experiments.layouts.runs import COLUMNS, IDENTITY

__all__ = ["COLUMNS", "EXPERIMENTS", "IDENTITY", "plan"]

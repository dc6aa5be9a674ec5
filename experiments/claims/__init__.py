"""Family of experiments that examine the claims of the Hyperion paper at token level."""

from experiments.claims.conclude import conclude
from experiments.claims.definitions import EXPERIMENTS, plan
from experiments.claims.runs import COLUMNS, IDENTITY

__all__ = ["COLUMNS", "EXPERIMENTS", "IDENTITY", "conclude", "plan"]

"""The claims of the Hyperion paper as experiments at token level: a family of experiments."""

from experiments.claims.conclude import conclude
from experiments.claims.definitions import QUESTIONS, plan
from experiments.claims.runs import COLUMNS, IDENTITY

__all__ = ["COLUMNS", "IDENTITY", "QUESTIONS", "conclude", "plan"]

"""hypsolve: which tier hosts which blocks of an LLM, and which node serves which request."""

from hypsolve.catalog import gpu, gpus, model, models
from hypsolve.certificate import verify_certificate
from hypsolve.costs import to_instance
from hypsolve.deployment import (
    Block,
    CostModel,
    Deployment,
    GpuProfile,
    Link,
    Model,
    Network,
    Node,
    Request,
    Requests,
    Tier,
)
from hypsolve.dispatch import POLICIES, schedule
from hypsolve.dispatcher import Dispatcher
from hypsolve.evaluation import check, evaluate
from hypsolve.io import load, save
from hypsolve.problem import Instance, LinkCost, Objective, StageRule
from hypsolve.readers import read_chains, read_hybrid_flow_shop
from hypsolve.result import Result
from hypsolve.solution import Certificate, Outcome, Partition, Schedule, Status, Violation
from hypsolve.solve import METHODS, Method, solve
from hypsolve.solvers.formulation import write_formulation
from hypsolve.solvers.hypsplit import ParetoPoint, pareto_frontier

__all__ = [
    "METHODS",
    "POLICIES",
    "Block",
    "Certificate",
    "CostModel",
    "Deployment",
    "Dispatcher",
    "GpuProfile",
    "Instance",
    "Link",
    "LinkCost",
    "Method",
    "Model",
    "Network",
    "Node",
    "Objective",
    "Outcome",
    "ParetoPoint",
    "Partition",
    "Request",
    "Requests",
    "Result",
    "Schedule",
    "StageRule",
    "Status",
    "Tier",
    "Violation",
    "check",
    "evaluate",
    "gpu",
    "gpus",
    "load",
    "model",
    "models",
    "pareto_frontier",
    "read_chains",
    "read_hybrid_flow_shop",
    "save",
    "schedule",
    "solve",
    "to_instance",
    "verify_certificate",
    "write_formulation",
]

"""hypsolve: which tier hosts which blocks of an LLM, and which node serves which request."""

from typing import TYPE_CHECKING

from hypsolve.batch_dispatcher import BatchDispatcher
from hypsolve.catalog import gpu, gpus, model, models
from hypsolve.certificate import verify_certificate
from hypsolve.cluster_files import read_helix, read_pipeedge
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
from hypsolve.dispatch import POLICIES, TierState, schedule
from hypsolve.dispatcher import Dispatcher
from hypsolve.evaluation import check, evaluate
from hypsolve.events import Event, EventKind, draw_events, read_events
from hypsolve.exporters import RUNTIMES, export
from hypsolve.huggingface import read_model
from hypsolve.io import load, save
from hypsolve.many import Plans, solve_many
from hypsolve.nearest import nearest_plan
from hypsolve.network_file import NetworkFile, read_network, read_network_file
from hypsolve.perfetto import write_perfetto
from hypsolve.planner import Plan, plan
from hypsolve.problem import Instance, LinkCost, Objective, StageRule
from hypsolve.readers import read_chains, read_hybrid_flow_shop
from hypsolve.replan import Replan, replan
from hypsolve.report import write_report
from hypsolve.request_files import read_requests
from hypsolve.result import Result
from hypsolve.schema import schema
from hypsolve.simulation import simulate
from hypsolve.solution import Certificate, Outcome, Partition, Schedule, Status, Violation
from hypsolve.solve import METHODS, Method, solve
from hypsolve.solvers.formulation import write_formulation
from hypsolve.solvers.hypsplit import ParetoPoint, pareto_frontier
from hypsolve.trace import Series, Trace, Visits
from hypsolve.trace_metrics import Metrics, Summary, metrics
from hypsolve.workloads import WORKLOADS, workload

__all__ = [
    "METHODS",
    "POLICIES",
    "RUNTIMES",
    "WORKLOADS",
    "BatchDispatcher",
    "Block",
    "Certificate",
    "CostModel",
    "Deployment",
    "Dispatcher",
    "Event",
    "EventKind",
    "GpuProfile",
    "Instance",
    "Link",
    "LinkCost",
    "Method",
    "Metrics",
    "Model",
    "Network",
    "NetworkFile",
    "Node",
    "Objective",
    "Outcome",
    "ParetoPoint",
    "Partition",
    "Plan",
    "Plans",
    "Replan",
    "Request",
    "Requests",
    "Result",
    "Schedule",
    "Series",
    "StageRule",
    "Status",
    "Summary",
    "Tier",
    "TierState",
    "Trace",
    "Violation",
    "Visits",
    "check",
    "draw_events",
    "evaluate",
    "export",
    "gpu",
    "gpus",
    "load",
    "metrics",
    "model",
    "models",
    "nearest_plan",
    "pareto_frontier",
    "plan",
    "read_chains",
    "read_events",
    "read_helix",
    "read_hybrid_flow_shop",
    "read_model",
    "read_network",
    "read_network_file",
    "read_pipeedge",
    "read_requests",
    "replan",
    "save",
    "schedule",
    "schema",
    "simulate",
    "solve",
    "solve_many",
    "to_instance",
    "verify_certificate",
    "workload",
    "write_formulation",
    "write_perfetto",
    "write_report",
]

__version__: str

if not TYPE_CHECKING:  # a checker would take every name for one that exists

    def __getattr__(name):
        """Look the version up when it is asked for: that takes as long as the rest."""
        if name == "__version__":
            from importlib.metadata import version

            return version("hypsolve")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Optimisation of LLM serving on unequal GPUs: partition, schedule, simulate, plan."""

from typing import TYPE_CHECKING

import hypsolve.interrupt  # noqa: F401  # before what takes seconds to load

# isort: split
from hypsolve.bounds.throughput import throughput_bound
from hypsolve.catalog import (
    WeightFormat,
    gpu,
    gpus,
    model,
    models,
    runtime,
    runtimes,
    weight_format,
    weight_formats,
)
from hypsolve.catalog.interconnects import interconnect, interconnects
from hypsolve.dispatch.batch_dispatcher import BatchDispatcher
from hypsolve.dispatch.dispatcher import Dispatcher, DispatcherParams
from hypsolve.dispatch.policies import POLICIES, TierState
from hypsolve.dispatch.schedule import schedule
from hypsolve.formats.benchmarks import read_chains, read_hybrid_flow_shop
from hypsolve.formats.helix_pipeedge import read_helix, read_pipeedge
from hypsolve.formats.huggingface import read_model
from hypsolve.formats.instance_json import load, save
from hypsolve.formats.machines import read_machines
from hypsolve.formats.machines_file import MachinesFile
from hypsolve.formats.network_toml import NetworkFile, read_network, read_network_file
from hypsolve.formats.request_traces import read_requests
from hypsolve.planning.exporters import RUNTIMES, export
from hypsolve.planning.exporters.placements import export_placement
from hypsolve.planning.html_report import write_report
from hypsolve.planning.json_schema import schema
from hypsolve.planning.layer_flow_file import load_layer_flow
from hypsolve.planning.place import place, rent
from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.placement_file import load_placement
from hypsolve.planning.placement_plan import PlacementPlan
from hypsolve.planning.placement_replan import MovedPipeline, PlacementReplan, replan_placement
from hypsolve.planning.plan import Plan
from hypsolve.planning.query import PlanQuery
from hypsolve.planning.rent_curve import OfferPrice, RentCurve, RentPoint, rent_curve
from hypsolve.planning.replan import Replan, replan
from hypsolve.planning.runtime_restrictions import nearest_plan
from hypsolve.planning.server_plan import plan
from hypsolve.problem.costs import to_instance
from hypsolve.problem.deployment import (
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
from hypsolve.problem.evaluation import check, evaluate
from hypsolve.problem.fleet import Fleet, Machine, Pin, Site
from hypsolve.problem.instance import Instance, LinkCost, Objective, StageRule
from hypsolve.problem.interconnect import AllReduce, Interconnect
from hypsolve.problem.layer_flow import LayerFlowProblem
from hypsolve.problem.layer_layout import HostedRange, LayerLayout
from hypsolve.problem.layer_result import LayerFlowOutcome, LayerFlowResult
from hypsolve.problem.operator_rates import OperatorRates
from hypsolve.problem.placement import (
    DegreeRule,
    Pipeline,
    PlacedStage,
    Placement,
    PlacementObjective,
    PlacementProblem,
)
from hypsolve.problem.placement_evaluation import (
    ServedPlacement,
    check_placement,
    evaluate_placement,
)
from hypsolve.problem.placement_result import PlacementOutcome, PlacementResult
from hypsolve.problem.result import Result
from hypsolve.problem.runtime import Runtime
from hypsolve.problem.serving import ServingInstance, ServingObjective
from hypsolve.problem.serving_costs import to_serving_instance
from hypsolve.problem.serving_evaluation import ServedRate, evaluate_serving
from hypsolve.problem.serving_result import ServingOutcome, ServingResult
from hypsolve.problem.solution import (
    Certificate,
    Outcome,
    Partition,
    Schedule,
    Status,
    Violation,
)
from hypsolve.simulation.events import Event, EventKind, draw_events, read_events
from hypsolve.simulation.layout_rate import LayoutRate, layout_rate
from hypsolve.simulation.layout_trace import LayoutTrace
from hypsolve.simulation.metrics import Metrics, Summary, metrics
from hypsolve.simulation.perfetto import write_perfetto
from hypsolve.simulation.pipeline_metrics import PipelineMetrics, pipeline_metrics
from hypsolve.simulation.simulate import simulate
from hypsolve.simulation.simulate_layout import simulate_layout
from hypsolve.simulation.simulate_placement import PLACEMENT_POLICIES, simulate_placement
from hypsolve.simulation.trace import Series, Trace, Visits
from hypsolve.simulation.workloads import WORKLOADS, workload
from hypsolve.solve import METHODS, Method, solve
from hypsolve.solve_layer_flow import LAYER_FLOW_METHODS, LayerFlowMethod
from hypsolve.solve_placement import PLACEMENT_METHODS, PlacementMethod
from hypsolve.solve_serving import THROUGHPUT_METHODS, ThroughputMethod
from hypsolve.solvers.joint.hyperion_plus_params import AscentParams, HyperionPlusParams
from hypsolve.solvers.joint.joint_exact_params import JointExactParams
from hypsolve.solvers.partition.hypsplit import ParetoPoint, pareto_frontier
from hypsolve.solvers.partition.solve_many import Plans, solve_many
from hypsolve.solvers.throughput.throughput_many import FluidPlans, throughput_many
from hypsolve.solvers.write_formulation import write_formulation
from hypsolve.verify.bottleneck import verify_certificate

__all__ = [
    "LAYER_FLOW_METHODS",
    "METHODS",
    "PLACEMENT_METHODS",
    "PLACEMENT_POLICIES",
    "POLICIES",
    "RUNTIMES",
    "THROUGHPUT_METHODS",
    "WORKLOADS",
    "AllReduce",
    "AscentParams",
    "BatchDispatcher",
    "Block",
    "Certificate",
    "CostModel",
    "DegreeRule",
    "Deployment",
    "Dispatcher",
    "DispatcherParams",
    "Event",
    "EventKind",
    "Fleet",
    "FluidPlans",
    "GpuProfile",
    "HostedRange",
    "HyperionPlusParams",
    "Instance",
    "Interconnect",
    "JointExactParams",
    "LayerFlowMethod",
    "LayerFlowOutcome",
    "LayerFlowProblem",
    "LayerFlowResult",
    "LayerLayout",
    "LayoutRate",
    "LayoutTrace",
    "Link",
    "LinkCost",
    "Machine",
    "MachinesFile",
    "Method",
    "Metrics",
    "Model",
    "MovedPipeline",
    "Network",
    "NetworkFile",
    "Node",
    "Objective",
    "OfferPrice",
    "OperatorRates",
    "Outcome",
    "ParetoPoint",
    "Partition",
    "Pin",
    "Pipeline",
    "PipelineMetrics",
    "PlaceQuery",
    "PlacedStage",
    "Placement",
    "PlacementMethod",
    "PlacementObjective",
    "PlacementOutcome",
    "PlacementPlan",
    "PlacementProblem",
    "PlacementReplan",
    "PlacementResult",
    "Plan",
    "PlanQuery",
    "Plans",
    "RentCurve",
    "RentPoint",
    "Replan",
    "Request",
    "Requests",
    "Result",
    "Runtime",
    "Schedule",
    "Series",
    "ServedPlacement",
    "ServedRate",
    "ServingInstance",
    "ServingObjective",
    "ServingOutcome",
    "ServingResult",
    "Site",
    "StageRule",
    "Status",
    "Summary",
    "ThroughputMethod",
    "Tier",
    "TierState",
    "Trace",
    "Violation",
    "Visits",
    "WeightFormat",
    "check",
    "check_placement",
    "draw_events",
    "evaluate",
    "evaluate_placement",
    "evaluate_serving",
    "export",
    "export_placement",
    "gpu",
    "gpus",
    "interconnect",
    "interconnects",
    "layout_rate",
    "load",
    "load_layer_flow",
    "load_placement",
    "metrics",
    "model",
    "models",
    "nearest_plan",
    "pareto_frontier",
    "pipeline_metrics",
    "place",
    "plan",
    "read_chains",
    "read_events",
    "read_helix",
    "read_hybrid_flow_shop",
    "read_machines",
    "read_model",
    "read_network",
    "read_network_file",
    "read_pipeedge",
    "read_requests",
    "rent",
    "rent_curve",
    "replan",
    "replan_placement",
    "runtime",
    "runtimes",
    "save",
    "schedule",
    "schema",
    "simulate",
    "simulate_layout",
    "simulate_placement",
    "solve",
    "solve_many",
    "throughput_bound",
    "throughput_many",
    "to_instance",
    "to_serving_instance",
    "verify_certificate",
    "weight_format",
    "weight_formats",
    "workload",
    "write_formulation",
    "write_perfetto",
    "write_report",
]

__version__: str

if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name):
        """Look up the version on first use: it takes as long as all other imports."""
        if name == "__version__":
            from importlib.metadata import version

            return version("hypsolve")
        from hypsolve.problem.validation import did_you_mean

        hint = did_you_mean(name, __all__).rstrip()
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}{hint and '; ' + hint}"
        )

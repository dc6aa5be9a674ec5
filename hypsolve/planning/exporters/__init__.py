"""`export`: write a plan as commands or as a file of one of the `RUNTIMES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypsolve import catalog
from hypsolve.planning.degree_text import idle_lines
from hypsolve.planning.exporters import benchmark, libraries, llama_cpp, sglang, vllm
from hypsolve.planning.exporters.layout import BenchmarkLoad, Export, Layout
from hypsolve.planning.exporters.left_out import left_out, summary
from hypsolve.planning.exporters.modules import MODULES
from hypsolve.planning.exporters.untold import no_slack, too_long, too_many_slots, untold
from hypsolve.planning.plan import Plan
from hypsolve.planning.platforms import (
    ONE_PLATFORM,
    is_mixed,
    platform_of,
    platforms_of,
    runs_on,
    weights_of,
)
from hypsolve.problem import validation as valid

__all__ = [
    "BY_LAYER",
    "MODULES",
    "NAMES_MODULES",
    "ONE_PIPELINE",
    "PLAIN",
    "RUNTIMES",
    "cautions",
    "export",
    "not_expressible",
    "refusals",
]

Writer = Callable[[Export], str]
RUNTIMES: Mapping[str, Writer] = {
    "vllm": vllm.write,
    "sglang": sglang.write,
    "llama.cpp": llama_cpp.write,
    "accelerate": libraries.accelerate,
    "torch": libraries.torch,
    "deepspeed": libraries.deepspeed,
    "megatron": libraries.megatron,
    "petals": libraries.petals,
    "json": libraries.plain_json,
    "yaml": libraries.plain_yaml,
}
PLAIN = ("json", "yaml")
"""Formats for no particular runtime."""
SERVERS = ("vllm", "sglang", "llama.cpp")
"""Runtimes that are told every simulated limit."""
TENSOR_PARALLEL = ("vllm", "sglang", "megatron", *PLAIN)
"""Runtimes that are told how many GPUs compute as one."""
BY_LAYER = tuple(name for name in RUNTIMES if name not in (*PLAIN, "deepspeed"))
"""Runtimes in which every stage needs a layer."""
ONE_PIPELINE = tuple(name for name in RUNTIMES if name not in (*PLAIN, "petals"))
"""Runtimes of whole pipelines: one node of each tier, or several such pipelines as replicas."""
NAMES_MODULES = ("accelerate", "torch")
"""Runtimes that take the names of the modules of the model."""
_REFUSALS: Mapping[str, Callable[[Layout], list[str]]] = {
    "vllm": vllm.refusals,
    "sglang": sglang.refusals,
    "llama.cpp": llama_cpp.refusals,
}


@valid.suggest_keywords("export")
def export(
    plan: Plan,
    runtime: str,
    *,
    model_type: str = "llama",
    instead_of: Plan | None = None,
    executor: str | None = None,
) -> str:
    """Return a plan as text for a runtime: commands that can be started as printed.

    A tier of several nodes makes replicas: pipeline i has the i-th node of each stage. Servers
    get one command per replica and a load balancer before them, every simulated limit as a
    flag, and the benchmark of the simulated load. Nodes that no pipeline has are named with
    their cost in requests/s.

    Parameters
    ----------
    plan : Plan
    runtime : str
        A name in `RUNTIMES`.
    model_type : str
        A name in `hypsolve.planning.exporters.MODULES`; only ``accelerate`` and ``torch`` need
        it. For ``accelerate``, a device is the number of a stage, so all stages must be in one
        machine. If head and embedding share one table, the head stays on the first device,
        which the plan does not account for.
    instead_of : Plan, optional
        The plan that `plan` replaces, if it is one of `hypsolve.nearest_plan`. Nodes that only
        this plan uses are named, too.
    executor : str, optional
        How vLLM starts a pipeline over several machines: ``ray`` or ``mp``. By default it is
        ``ray`` where Ray starts the stages on the planned machines, and otherwise ``mp``; the
        text says why.

    Returns
    -------
    str
        Replace MODEL by the model's name or folder before you start a command.

    Raises
    ------
    ValueError
        If there is no plan, or the runtime cannot express it; see `hypsolve.nearest_plan`.

    Examples
    --------
    >>> import hypsolve as hs
    >>> link = hs.Link(bytes_per_s=1.25e9, latency_s=1e-3)
    >>> desk, rack = (hs.Node(name=gpu, gpu=hs.gpu(gpu)) for gpu in ("rtx-4090", "a10"))
    >>> tiers = (
    ...     hs.Tier(name="desk", nodes=(desk,), link=link),
    ...     hs.Tier(name="rack", nodes=(rack,)),
    ... )
    >>> network = hs.Network(name="home", tiers=tiers)
    >>> asked = {"objective": "bottleneck", "with_upgrades": False}
    >>> plan = hs.plan("llama-3-8b", network, **asked)
    >>> lines = hs.export(plan, "megatron").splitlines()
    >>> lines[0]
    '# layers of each stage: desk 23, rack 9'
    >>> lines[-1]
    '--pipeline-model-parallel-layout "Et*23|t*9L"'
    """
    valid.of_type("export", "plan", plan, Plan)
    if no_format := not_written(runtime):
        raise ValueError(f"export: {no_format}")
    valid.known("runtime", runtime, RUNTIMES)
    valid.known("model_type", model_type, MODULES)
    if instead_of is not None:
        valid.of_type("export", "instead_of", instead_of, Plan)
    if plan.result.partition is None:
        raise ValueError(f"export: no plan to write, {plan.result.status}")
    if executor is not None:
        valid.known("executor", executor, vllm.EXECUTORS)
        if runtime != "vllm":
            raise ValueError(f"export: executor must be None for {runtime}, got {executor!r}")
    layout, load = Layout.of(plan), BenchmarkLoad.of(plan)
    why, what = refusals(layout, runtime), runtime
    if not why and executor is not None:
        why, what = vllm.executor_refusals(layout, executor), f"executor {executor!r} of vllm"
    if why:
        raise ValueError(f"export: {what} cannot express this plan: {'; '.join(why)}")
    text = RUNTIMES[runtime](
        Export(
            layout=layout,
            load=load,
            model=plan.model.name,
            modules=MODULES[model_type],
            tied=plan.model.tied_bytes > 0,
            executor=executor,
        )
    )
    if runtime in ONE_PIPELINE and runtime != "accelerate":
        idle = [f"# {line}" for line in idle_lines(plan)]
        long = [f"# {line}" for line in too_long(plan.model, load, runtime)]
        text = "\n".join([*long, *left_out(plan, layout, instead_of), *idle, text])
    return text.rstrip("\n") + "\n"


def not_written(runtime: str) -> str:
    """Return why a runtime of the catalogue is no format of `export`; empty if it is one.

    Examples
    --------
    >>> not_written("tensorrt-llm")[:55]
    'no commands of tensorrt-llm are written; take json or y'
    """
    if runtime in RUNTIMES or runtime not in catalog.runtimes():
        return ""
    return (
        f"no commands of {runtime} are written; take {' or '.join(PLAIN)}, which state blocks,"
        " nodes, degrees and the simulated limits, for its own configuration"
    )


def not_expressible(plan: Plan | Layout, runtime: str) -> str:
    """Return why a runtime cannot express a plan, or a layout, as it is; empty if it can.

    Besides the reasons for which `export` refuses a plan, this is the case if nodes would be
    left out, since their stages have different numbers of nodes.
    """
    layout = Layout.of(plan) if isinstance(plan, Plan) else plan
    why = refusals(layout, runtime)
    if runtime in ONE_PIPELINE and layout.left_out:
        counts = ", ".join(
            f"tier {tier!r} has {len(nodes)}"
            for tier, nodes in zip(layout.tiers, layout.nodes, strict=True)
        )
        why.append(
            f"it runs whole pipelines, and {counts}: {summary(layout.left_out)} would be left"
            " out"
        )
    return "; ".join(why)


def refusals(layout: Layout, runtime: str) -> list[str]:
    """Return why a runtime cannot run a layout at all."""
    why = []
    last = layout.cuts[-1] - 1
    for tier, first, end in zip(layout.tiers, layout.cuts, layout.cuts[1:], strict=False):
        if runtime in BY_LAYER and not any(0 < b < last for b in range(first, end)):
            why.append(
                f"the stage of tier {tier!r} has only the embedding or the head, and every"
                " stage needs a layer"
            )
    cards = [card for replica in layout.replicas for card in replica.cards]
    platforms = ", ".join(platforms_of(runtime, layout.runtime))
    why += [
        f"it runs on {platforms}, and {card.node} has {card.gpu} ({platform_of(card.gpu)})"
        for card in cards
        if not runs_on(runtime, layout.runtime, card.gpu)
    ]
    if runtime in ONE_PLATFORM and not why and is_mixed(card.gpu for card in cards):
        names = (f"{card.node} ({platform_of(card.gpu)})" for card in cards)
        why.append(f"it runs on GPUs of one kind of platform, and has {', '.join(names)}")
    groups = [card.node for card in cards if card.n_gpus > 1]
    if groups and runtime not in TENSOR_PARALLEL:
        why.append(
            f"it computes no layer on several GPUs, as {', '.join(dict.fromkeys(groups))} would"
        )
    if runtime == "megatron" and layout.mixed_degrees:
        why.append(f"all stages must have one degree, and they have {layout.mixed_degrees}")
    more = _REFUSALS.get(runtime)
    return why + (more(layout) if more else [])


def cautions(plan: Plan, runtime: str) -> list[str]:
    """Return what a user must know that the exported text does not say.

    Parameters
    ----------
    plan : Plan
    runtime : str
        A name in `RUNTIMES`.
    """
    valid.known("runtime", runtime, RUNTIMES)
    n_stages = sum(bool(stage.blocks) for stage in plan.stages)
    simulated = plan.deployment.runtime
    lines = []
    if runtime not in PLAIN and plan.model.extrapolated:
        lines.append(f"planned as {plan.model.name}: load weights of this format")
    form = catalog.weight_formats().get(weights_of(plan.model))
    if runtime in SERVERS and form is not None and form.extrapolated:
        gguf = form.file == "gguf"
        if gguf != (runtime == "llama.cpp"):
            other = "safetensors, such as awq" if gguf else "GGUF files, such as q4_k_m"
            lines.append(f"{form.name} is no format of {runtime}, which is for {other}")
    if runtime in SERVERS and simulated.server != runtime:
        lines.append(
            f"simulated by the rules of runtime {simulated.name!r}, not of {runtime}: its"
            " limits are passed on, but batches are formed otherwise"
        )
    if runtime in SERVERS:
        lines += untold(simulated, runtime)
    lines += too_long(plan.model, BenchmarkLoad.of(plan), runtime)
    if runtime in SERVERS and plan.result.partition is not None:
        load = BenchmarkLoad.of(plan)
        if runtime == "llama.cpp":
            lines += too_many_slots(Layout.of(plan), load)
        context = llama_cpp.slot_tokens(load) if runtime == "llama.cpp" else load.tokens
        lines.append(no_slack(load, context, runtime))
    if runtime == "accelerate" and n_stages > 1:
        lines.append("a device_map is for one machine: device k must be the GPU of stage k")
    if runtime == "accelerate" and n_stages > 1 and plan.model.tied_bytes:
        lines.append(
            "the head shares the embedding's table and stays on device 0: not in the plan"
        )
    if runtime == "accelerate" and plan.fits:
        load = BenchmarkLoad.of(plan)
        lines.append(f"benchmark of the simulated load, {load}: {benchmark.genai_perf(load)}")
    if runtime == "petals":
        lines.append("Petals serves Llama, Mixtral, Falcon and BLOOM models")
    return lines

"""Exports and what is read of models, against the runtimes: tiny random models on the CPU.

With a group of its own: ``pip install -e ".[test,runtimes]"``. What is not there is skipped.
"""

import itertools
import json
import logging
import re
from functools import cache
from importlib import import_module

import numpy as np
import pytest

import hypsolve as hs
from hypsolve.planning.exporters import MODULES
from hypsolve.solvers.partition.heuristics import min_spread
from tests.helpers.plans import plan_alone

COUNTS = (1, 3, 2)  # layers of each stage, that limits of the tiers force
STAGES = range(len(COUNTS))
N_LAYERS = sum(COUNTS)
N_TOKENS = 12
WINDOW = 5  # tokens

# numbers that differ, so that none can stand for another
_USUAL = {
    "hidden_size": 32, "intermediate_size": 56, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": N_LAYERS, "vocab_size": 96,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_ALL_HEADS = {key: n for key, n in _USUAL.items() if key != "num_key_value_heads"}
CONFIGS = {
    "llama": _USUAL,
    "mistral": {**_USUAL, "sliding_window": WINDOW},
    "qwen2": {
        **_USUAL, "tie_word_embeddings": True, "use_sliding_window": True,
        "sliding_window": WINDOW, "max_window_layers": 3,
    },
    "qwen3": {**_USUAL, "head_dim": 16},
    "phi3": {**_USUAL, "sliding_window": WINDOW},
    "gemma2": {**_USUAL, "head_dim": 16, "sliding_window": WINDOW},
    "mixtral": {**_USUAL, "num_local_experts": 3, "num_experts_per_tok": 2},
    "gpt2": {
        "n_embd": 32, "n_head": 4, "n_layer": N_LAYERS, "vocab_size": 96, "n_positions": 64,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "gpt_neox": _ALL_HEADS,
    "opt": {**_ALL_HEADS, "ffn_dim": 56, "word_embed_proj_dim": 32},
}  # fmt: skip
FAMILIES = pytest.mark.parametrize("family", CONFIGS)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture
def transformers(torch):
    found = pytest.importorskip("transformers", reason="transformers is not installed")
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()
    return found


@pytest.fixture
def accelerate(transformers):
    found = pytest.importorskip("accelerate", reason="accelerate is not installed")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    return found


def tiny(family, **options):
    """A random model as its runtime has it; eager: what is multiplied can be counted."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **CONFIGS[family])
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, **options)
    return model.eval()


def tokens():
    import torch

    return torch.arange(2 * N_TOKENS).reshape(2, N_TOKENS) % 90 + 3


def logits(model):
    import torch

    with torch.no_grad():
        return model(input_ids=tokens(), use_cache=False).logits


def saved(family, folder, **options):
    """The folder of a model in bf16, and the model."""
    import torch

    model = tiny(family).to(torch.bfloat16)
    model.save_pretrained(folder, **options)
    return model


@cache
def planned(model):
    """A plan over three tiers, each with as many blocks as it may have at most."""
    wire = hs.Link(bytes_per_s=1e9, latency_s=1e-4)
    tiers = tuple(
        hs.Tier(
            name=f"tier{k}",
            nodes=(hs.Node(name=f"node{k}", gpu=hs.gpu("l4")),),
            link=wire if k < STAGES[-1] else None,
        )
        for k in STAGES
    )
    first, *inner, last = COUNTS
    limits = (first + 1, *inner, last + 1)  # embedding and head
    site = hs.NetworkFile(network=hs.Network(name="net", tiers=tiers), max_blocks=limits)
    found = plan_alone(model, site, prompt_tokens=16, output_tokens=8)
    assert found.result.partition.cuts == (0, *itertools.accumulate(limits))
    return found


def exported(family, folder, runtime):
    """What a user gets who has the configuration of a model."""
    saved(family, folder)
    found = planned(hs.read_model(folder / "config.json", name=family))
    return hs.export(found, runtime, model_type=family)


def layer_numbers(family, names):
    """Of the layers to which tensors or modules of these names belong."""
    pattern = re.compile(re.escape(MODULES[family].layers) + r"\.(\d+)(?:\.|$)")
    return sorted({int(m[1]) for m in map(pattern.match, names) if m})


def layers_of_stages():
    ends = list(itertools.accumulate(COUNTS))
    return [list(range(end - n, end)) for end, n in zip(ends, COUNTS, strict=True)]


# accelerate


def tensors(model):
    """Parameters and buffers by all of their names, tied ones by each."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def entries_for(device_map, name):
    return [module for module in device_map if f"{name}.".startswith(f"{module}.")]


@FAMILIES
def test_accelerate_covers_each_tensor_once(family, tmp_path, accelerate):
    device_map = json.loads(exported(family, tmp_path, "accelerate"))
    model = tiny(family)
    for name, _ in tensors(model):
        assert len(entries_for(device_map, name)) == 1, name
    accelerate.utils.modeling.check_device_map(model, device_map)
    modules = dict(model.named_modules())
    assert [module for module in device_map if module not in modules] == []


def places(device_map, names_of_stages):
    return {module: names_of_stages[stage] for module, stage in device_map.items()}


@pytest.mark.parametrize("on_disk", STAGES)
@FAMILIES
def test_accelerate_keeps_one_stage_on_disk(family, on_disk, tmp_path, accelerate):
    """What is on disk is on no device between two uses: so it is seen which layers are."""
    device_map = json.loads(exported(family, tmp_path / "model", "accelerate"))
    model = tiny(family)
    wanted = logits(model)
    where = ["disk" if stage == on_disk else "cpu" for stage in STAGES]
    accelerate.dispatch_model(
        model, places(device_map, where), main_device="cpu", offload_dir=tmp_path / "disk"
    )
    assert (logits(model) == wanted).all()
    away = [name for name, tensor in tensors(model) if tensor.device.type == "meta"]
    assert layer_numbers(family, away) == layers_of_stages()[on_disk]


@FAMILIES
def test_transformers_loads_by_the_map(family, tmp_path, transformers, accelerate):
    device_map = json.loads(exported(family, tmp_path / "model", "accelerate"))
    load = transformers.AutoModelForCausalLM.from_pretrained
    wanted = logits(load(tmp_path / "model"))
    model = load(
        tmp_path / "model",
        device_map=places(device_map, ["cpu", "disk", "cpu"]),
        offload_folder=tmp_path / "disk",
    )
    assert (logits(model) == wanted).all()
    away = [name for name, tensor in tensors(model) if tensor.device.type == "meta"]
    assert layer_numbers(family, away) == layers_of_stages()[1]


@pytest.fixture
def fakes(torch, monkeypatch):
    """Tensors without values, on devices that need not be there.

    Each operation checks that all of its tensors are on one device.
    """
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    made = FakeTensor.__new__

    def new(kind, value, *args, requires_grad=None, **options):
        if type(value) is FakeTensor and not args and not options:  # a parameter is made anew
            return torch.nn.Parameter(value, requires_grad=requires_grad)
        if requires_grad is not None:
            options["requires_grad"] = requires_grad
        return made(kind, value, *args, **options)

    monkeypatch.setattr(FakeTensor, "__new__", new)
    # by their addresses accelerate tells which weights are tied
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda fake: fake.untyped_storage()._cdata)
    with FakeTensorMode() as mode:
        yield mode


@FAMILIES
def test_accelerate_moves_states_from_device_to_device(
    family, tmp_path, torch, accelerate, request
):
    device_map = json.loads(exported(family, tmp_path, "accelerate"))
    devices = [f"lazy:{stage}" for stage in STAGES]  # a kind that every build of torch has
    request.getfixturevalue("fakes")
    model = tiny(family, dtype=torch.bfloat16)  # which alone fakes take for experts
    accelerate.dispatch_model(model, places(device_map, devices))
    of_layers = [
        layer_numbers(family, [n for n, t in tensors(model) if str(t.device) == device])
        for device in devices
    ]
    assert of_layers == layers_of_stages()
    for name, tensor in tensors(model):
        (entry,) = entries_for(device_map, name)
        assert str(tensor.device) == devices[device_map[entry]], name
    assert logits(model).device.type == "cpu"  # as the tokens


# torch


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`:FutureWarning")
@FAMILIES
def test_torch_splits_a_traced_model(family, tmp_path, transformers):
    import torch
    from torch.distributed.pipelining import pipeline

    spec = {}
    exec(exported(family, tmp_path, "torch"), spec)
    model = tiny(family)
    model.config.use_cache = False  # its class cannot be traced
    wanted = logits(model)
    with torch.no_grad():
        pipe = pipeline(model, (), {"input_ids": tokens()}, split_spec=spec["split_spec"])
        (got,) = pipe(input_ids=tokens())  # one stage after another
    assert (got == wanted).all()
    assert pipe.num_stages == len(COUNTS)
    held = [[n for n, _ in tensors(pipe.get_stage_module(stage))] for stage in STAGES]
    assert [layer_numbers(family, names) for names in held] == layers_of_stages()
    norm = MODULES[family].norm
    assert [any(n.startswith(f"{norm}.") for n in names) for names in held] == [0, 0, 1]


# Megatron, DeepSpeed

SCRIPTED = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is dep:DeprecationWarning")


def llama_config(folder):
    config = {"model_type": "llama", **_USUAL}
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


@SCRIPTED
def test_megatron_reads_the_layout(torch, tmp_path):
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    from megatron.core.transformer.enums import LayerType
    from megatron.core.transformer.pipeline_parallel_layer_layout import (
        PipelineParallelLayerLayout,
    )

    text = hs.export(planned(hs.read_model(llama_config(tmp_path))), "megatron")
    size = int(re.search(r"--pipeline-model-parallel-size (\d+)", text)[1])
    layout = re.search(r'--pipeline-model-parallel-layout "(.+)"', text)[1]
    read = PipelineParallelLayerLayout(layout, size)
    read.validate_layer_layout(num_layers=N_LAYERS, mtp_num_layers=None)
    layers = [read.get_layer_id_list(pp_rank=stage) for stage in STAGES]
    assert layers == layers_of_stages()
    for kind, stage in ((LayerType.embedding, 0), (LayerType.loss, STAGES[-1])):
        held = [read.get_num_layers_to_build(kind, pp_rank=rank) for rank in STAGES]
        assert held == [int(rank == stage) for rank in STAGES]


def test_our_rule_of_deepspeeds_balance_is_its_own(torch):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    from deepspeed.runtime.utils import partition_balanced

    rng = np.random.default_rng(0)
    for n_blocks in range(1, 20):
        weights = rng.integers(0, 9, n_blocks)
        for n_parts in range(1, 6):
            cuts = min_spread(weights.astype(float), n_parts)
            assert cuts == list(partition_balanced(weights.tolist(), n_parts))


@SCRIPTED
@pytest.mark.parametrize("rank", STAGES)
def test_deepspeed_builds_the_layers_of_a_stage(rank, torch, tmp_path, monkeypatch):
    """On one of three ranks; the others, and what is sent to them, are not there."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    import deepspeed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    found = planned(hs.read_model(llama_config(tmp_path)))
    snippet = {}
    exec(hs.export(found, "deepspeed"), snippet)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(import_module("deepspeed.comm.comm"), "cdb", None)
    # what ranks of one machine would share memory by is compiled for half a minute
    monkeypatch.setattr(import_module("deepspeed.comm.torch"), "build_shm_op", lambda: None)
    torch.distributed.init_process_group(
        "fake", rank=rank, world_size=len(COUNTS), store=FakeStore()
    )
    try:
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
        blocks = [torch.nn.Linear(1, 1) for _ in range(N_LAYERS + 2)]
        built = snippet["Planned"](blocks, num_stages=len(COUNTS))
    finally:
        torch.distributed.destroy_process_group()
    cuts = found.result.partition.cuts
    assert built.forward_funcs == blocks[cuts[rank] : cuts[rank + 1]]


# what is read of a model


def modules_of_blocks(family, model):
    names = MODULES[family]
    return [
        [model.get_submodule(name) for name in names.embedding],
        *([layer] for layer in model.get_submodule(names.layers)),
        [model.get_submodule(names.norm), model.get_output_embeddings()],
    ]


def bytes_of(modules, min_dimensions=1):
    return sum(
        parameter.numel() * parameter.element_size()
        for module in modules
        for parameter in module.parameters()
        if parameter.dim() >= min_dimensions
    )


def test_all_families_are_tried():
    assert set(CONFIGS) == set(MODULES)


@FAMILIES
def test_configurations_give_the_bytes_of_all_matrices(family, tmp_path, transformers):
    """Norms and biases are left out."""
    model = saved(family, tmp_path)
    read = hs.read_model(tmp_path / "config.json")
    modules = modules_of_blocks(family, model)
    assert [b.weight_bytes for b in read.blocks] == [bytes_of(m, 2) for m in modules]
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert read.tied_bytes == (bytes_of([model.get_input_embeddings()]) if tied else 0)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "40KB"}], ids=["one", "shards"])
@FAMILIES
def test_headers_give_the_bytes_of_all_parameters(family, options, tmp_path, transformers):
    model = saved(family, tmp_path, **options)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == bool(options)
    read = hs.read_model(tmp_path)
    modules = modules_of_blocks(family, model)
    assert [b.weight_bytes for b in read.blocks] == [bytes_of(m) for m in modules]
    assert read.blocks[0].gathered_bytes_per_token == 2 * model.config.hidden_size
    assert read.weight_bytes - read.tied_bytes == bytes_of([model])  # tied ones once


@FAMILIES
def test_what_a_layer_keeps_and_sees_of_a_sequence(family, tmp_path, transformers):
    import torch

    model = saved(family, tmp_path)
    layers = hs.read_model(tmp_path / "config.json").blocks[1:-1]
    with torch.no_grad():
        few = model(input_ids=tokens()[:1, : WINDOW - 2], use_cache=True).past_key_values
        more = model(input_ids=tokens()[:1], use_cache=True).past_key_values
    for layer, of_few, of_more in zip(layers, few.layers, more.layers, strict=True):
        kept = (of_few.keys, of_few.values)
        n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        assert layer.kv_bytes_per_token * (WINDOW - 2) == n_bytes
        # with a window it keeps all but the token that falls out at the next step
        seen = N_TOKENS if layer.window_tokens is None else layer.window_tokens - 1
        assert of_more.keys.shape[-2] == seen


@FAMILIES
def test_operations_of_layers_and_head(family, tmp_path, transformers):
    """Eager attention multiplies all pairs, seen or not."""
    from torch.utils.flop_counter import FlopCounterMode

    model = saved(family, tmp_path)
    model.config._experts_implementation = "eager"  # matrix by matrix
    *blocks, head = hs.read_model(tmp_path / "config.json").blocks[1:]
    with FlopCounterMode(display=False) as counter:
        logits(model)
    flops = {name: sum(n.values()) for name, n in counter.get_flop_counts().items()}
    prefix = type(model).__name__
    n_sequences, n_tokens = tokens().shape
    for number, block in enumerate(blocks):
        of_one = n_tokens * block.flops_per_token + n_tokens**2 * block.attention_flops_per_pair
        counted = flops[f"{prefix}.{MODULES[family].layers}.{number}"]
        assert counted == n_sequences * of_one
    head_module = model.get_output_embeddings()
    (name,) = (name for name, module in model.named_modules() if module is head_module)
    assert flops[f"{prefix}.{name}"] == tokens().numel() * head.flops_per_token

"""GPUs and models of the catalogue, and the scripts that fit and calibrate them."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from experiments import calibration, fit_profiles
from hypsolve import catalog
from hypsolve.problem import costs
from hypsolve.problem.deployment import Block, CostModel, GpuProfile, Node

DATA = fit_profiles.data_dir()
needs_data = pytest.mark.skipif(
    DATA is None, reason="measured data not here: set HYPSOLVE_SHARED or put it at ../shared"
)

# name -> parameters of one layer, and of all (norms and biases left out), as published
PARAMETERS = {
    "phi-3-medium": (340787200, 13959823360),
    "phi-3-mini": (113246208, 3820879872),
    "llama-3-8b": (218103808, 8029995008),
    "llama-3-70b": (855638016, 70552387584),
    "llama-2-7b": (202375168, 6738149376),
    "llama-2-13b": (317194240, 13015449600),
    "llama-2-70b": (855638016, 68975329280),
    "llama-3.2-1b": (60817408, 1235746816),
    "llama-3.2-3b": (100663296, 3212574720),
    "qwen2.5-7b": (233046016, 7615283200),
    "qwen2.5-32b": (487587840, 32762757120),
    "qwen2.5-72b": (877658112, 72704065536),
    "qwen3-8b": (192937984, 8190427136),
    "qwen3-32b": (487587840, 32761446400),
    "qwen3-30b-a3b": (623116288, 30531911680),
    "mistral-7b": (218103808, 7241465856),
    "mixtral-8x7b": (1451261952, 46702526464),
    "gemma-2-9b": (198180864, 9241100288),
    "gemma-2-27b": (566231040, 27226275840),
}
TINY = {
    "n_layers": 3,
    "hidden": 8,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 2,
    "ffn": 16,
    "vocab": 10,
}


# --- models -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_shapes_reproduce_the_published_parameter_counts(name, parameters):
    model = catalog.model(name)
    assert model.blocks[1].weight_bytes == 2 * parameters[0]
    assert model.weight_bytes - model.tied_bytes == 2 * parameters[1]


@needs_data
def test_shapes_are_those_of_the_data():
    shapes = pd.read_csv(DATA / "gpu_profiles" / "models.csv").set_index("model")
    for name in catalog.models():
        model, shape = catalog.model(name), shapes.loc[name]
        layer, head = model.blocks[1], model.blocks[-1]
        assert model.n_blocks == shape.layers + 2
        assert layer.weight_bytes == 2 * shape.block_params
        assert layer.kv_bytes_per_token == shape.kv_bytes_per_token_per_block
        assert layer.output_bytes_per_token == 2 * shape.hidden
        assert layer.attention_flops_per_pair == 4 * shape.heads * shape.head_dim
        assert head.weight_bytes == 2 * shape.vocab * shape.hidden
        assert bool(model.tied_bytes) == bool(shape.tied_embeddings)
        assert model.weight_bytes - model.tied_bytes == 2 * shape.params_total
        # a token's FLOPs are twice the parameters it meets
        tables = shape.vocab * shape.hidden * (2 - shape.tied_embeddings)
        assert layer.flops_per_token == 2 * (shape.params_active - tables) / shape.layers


@pytest.mark.parametrize("name", catalog.models())
def test_every_model_is_a_chain_of_embedding_layers_and_head(name):
    model = catalog.model(name)
    kinds = [block.kind for block in model.blocks]
    assert (kinds[0], kinds[-1]) == ("embedding", "head")
    assert set(kinds[1:-1]) <= {"layer", "layer-window"}
    assert model.blocks[-1].last_token_only
    assert not model.extrapolated
    assert model.name == name


def test_at_least_twelve_models_with_the_papers_two():
    assert len(catalog.models()) >= 12
    assert {"phi-3-medium", "llama-3-8b"} <= set(catalog.models())


def test_windows_sit_on_the_layers_that_have_them():
    def windows(name):
        return [block.window_tokens for block in catalog.model(name).blocks[1:-1]]

    assert windows("gemma-2-9b") == [4096, None] * 21
    assert windows("mistral-7b") == [4096] * 32
    assert windows("phi-3-medium") == [2047] * 40
    assert windows("llama-3-8b") == [None] * 32


@pytest.mark.parametrize(("weights", "share"), [("int8", 1 / 2), ("q8_0", 34 / 64)])
@pytest.mark.parametrize("name", ["phi-3-medium", "mixtral-8x7b", "llama-3.2-1b"])
def test_quantised_weights_shrink_and_are_marked(name, weights, share):
    full, small = catalog.model(name), catalog.model(name, weights)
    assert small.extrapolated
    assert small.name == f"{name}-{weights}"
    of_ends = share if weights == "q8_0" else 1  # embedding and head
    assert small.tied_bytes == pytest.approx(full.tied_bytes * of_ends, rel=1e-9)
    for a, b in zip(full.blocks, small.blocks, strict=True):
        of_block = share if a.kind.startswith("layer") else of_ends
        assert b.weight_bytes == pytest.approx(a.weight_bytes * of_block, rel=1e-9)
        assert b.kv_bytes_per_token == a.kv_bytes_per_token
        assert b.activation_bytes_per_token == a.activation_bytes_per_token
        assert b.output_bytes_per_token == a.output_bytes_per_token
        assert b.flops_per_token == a.flops_per_token
        read, read_full = (costs.weight_read_bytes(block, 3) for block in (b, a))
        assert read == pytest.approx(read_full * of_block, rel=1e-6)


def test_transformer_takes_a_users_own_shape():
    model = catalog.transformer("mine", **TINY, gated_ffn=False, tied_embeddings=True)
    embedding, layer, head = model.blocks[0], model.blocks[1], model.blocks[-1]
    attention = 8 * 8 + 8 * 4 * 2 + 8 * 8  # q, k and v, o
    assert layer.weight_bytes == layer.always_read_bytes == 2 * (attention + 2 * 8 * 16)
    assert layer.flops_per_token == 2 * (attention + 2 * 8 * 16)
    assert layer.kv_bytes_per_token == 2 * 2 * 2 * 2
    assert embedding.gathered_bytes_per_token == 8 * 2
    assert head.flops_per_token == 2 * 10 * 8
    assert model.tied_bytes == head.weight_bytes == 160


def test_every_term_of_every_block_by_hand():
    embedding, layer, _, _, head = catalog.transformer("mine", **TINY).blocks
    attention = 8 * 8 + 2 * 8 * 4 + 8 * 8  # q; k and v of 2 heads of 2; o
    weights = attention + 3 * 8 * 16
    assert embedding == Block(
        kind="embedding",
        weight_bytes=2 * 10 * 8,
        gathered_bytes_per_token=2 * 8,  # the row,
        activation_bytes_per_token=2 * 8,  # written out
        output_bytes_per_token=2 * 8,
        collectives=1,
        collective_bytes_per_token=2 * 8,
    )
    assert layer == Block(
        kind="layer",
        weight_bytes=2 * weights,
        always_read_bytes=2 * weights,
        kv_bytes_per_token=2 * 2 * 4,  # k and v
        activation_bytes_per_token=2 * 8 + 2 * 8,  # in and out
        output_bytes_per_token=2 * 8,
        flops_per_token=2.0 * weights,
        attention_flops_per_pair=2.0 * (4 * 2) + 2.0 * (4 * 2),  # scores, and their sum of v
        collectives=2,
        collective_bytes_per_token=2 * 8,
    )
    assert head == Block(
        kind="head",
        weight_bytes=2 * 10 * 8,
        always_read_bytes=2 * 10 * 8,
        activation_bytes_per_token=2 * 8 + 2 * 10,  # in, and the logits
        output_bytes_per_token=4,
        flops_per_token=2.0 * 10 * 8,
        last_token_only=True,
        collectives=1,
        collective_bytes_per_token=10,  # half of the logits: they are gathered, not added
    )


@pytest.mark.parametrize(
    ("place", "prefill", "decode"),  # FLOPs and bytes of 5 tokens; of one more, the sixth
    [
        (0, (0, 5 * 16 + 5 * 16), (0, 16 + 16)),
        (1, (5 * 1152 + 15 * 32, 1152 + 5 * 16 + 5 * 32), (1152 + 6 * 32, 1152 + 6 * 16 + 32)),
        (-1, (160, 160 + 36), (160, 160 + 36)),  # one position, whatever the prompt
    ],
    ids=["embedding", "layer", "head"],
)
def test_every_roofline_term_of_a_step_by_hand(place, prefill, decode):
    block = catalog.transformer("mine", **TINY).blocks[place]
    assert costs.step_work(block, 5, 0) == prefill
    assert costs.step_work(block, 1, 5) == decode
    for gpu in (  # compute sets the time, then memory
        GpuProfile(name="a", t0_s=0.5, flops_per_s=1.0, bytes_per_s=1e9, memory_bytes=1),
        GpuProfile(name="b", t0_s=0.5, flops_per_s=1e9, bytes_per_s=1.0, memory_bytes=1),
    ):
        steps_s = [
            0.5 + max(flops / gpu.flops_per_s, moved / gpu.bytes_per_s)
            for flops, moved in (prefill, decode)
        ]
        assert costs.service_s(block, gpu, 5, 2) == pytest.approx(sum(steps_s))


def test_transformer_counts_only_the_experts_a_token_visits():
    experts = {"n_experts": 4, "experts_per_token": 2}
    model = catalog.transformer("moe", **TINY, **experts, window_tokens=5, window_every=2)
    layer = model.blocks[1]
    attention, router, expert = 192, 8 * 4, 3 * 8 * 16
    assert layer.weight_bytes == 2 * (attention + router + 4 * expert)
    assert layer.always_read_bytes == 2 * (attention + router)
    assert layer.expert_bytes == 2 * expert
    assert layer.flops_per_token == 2 * (attention + router + 2 * expert)
    assert [b.window_tokens for b in model.blocks[1:-1]] == [5, None, 5]


def test_odd_shapes_round_up():
    shape = TINY | {"hidden": 9, "vocab": 7}
    for block in catalog.transformer("odd", **shape, weights="q4_0").blocks:
        assert block.weight_bytes >= block.always_read_bytes
    n_weights = 7 * 9
    table = catalog.transformer("odd", **shape, weights="q4_0").blocks[0].weight_bytes
    assert table == math.ceil(n_weights * 18 / 32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_layers": 0}, ValueError, "model 'mine': n_layers must be at least 1, got 0"),
        (
            {"hidden": 10**400},
            ValueError,
            "hidden must be at most .*, got a number of about 401 d",
        ),
        (
            {"n_layers": 2**40},
            ValueError,
            "n_layers must be at most 1048576, got 1099511627776",
        ),
        ({"hidden": 8.0}, TypeError, "model 'mine': hidden must be a whole number, got 8.0"),
        ({"n_kv_heads": 3}, ValueError, "n_heads must be a multiple of n_kv_heads = 3, got 4"),
        ({"gated_ffn": 1}, TypeError, "model 'mine': gated_ffn must be True or False, got 1"),
        ({"n_experts": 4}, ValueError, "experts_per_token must be at least 1, got 0"),
        ({"window_every": 0}, ValueError, "window_every must be at least 1, got 0"),
        ({"window_tokens": 0}, ValueError, "window_tokens must be at least 1, got 0"),
        ({"fused_qkv": 1}, TypeError, "model 'mine': fused_qkv must be True or False, got 1"),
        ({"weights": "fp4"}, ValueError, "unknown weights 'fp4'; .*choose one of fp16, bf16"),
    ],
)
def test_wrong_shapes_are_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        catalog.transformer("mine", **TINY | changes)


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match=r"unknown model 'gpt-5'; choose one of .*llama-3-8b"):
        catalog.model("gpt-5")
    with pytest.raises(ValueError, match=r"unknown gpu 'a100'; did you mean a100-40gb\?"):
        catalog.gpu("a100")
    with pytest.raises(ValueError, match="unknown weights 'int3'"):
        catalog.model("llama-3-8b", "int3")
    with pytest.raises(ValueError, match="unknown gpu None"):
        catalog.gpu(None)


# --- GPUs -------------------------------------------------------------------------------------


def test_at_least_25_gpus_in_three_tiers_with_every_one_named():
    gpus = catalog.gpus()
    assert len(gpus) >= 25
    assert {gpu.tier for gpu in gpus.values()} == {"edge", "fog", "cloud"}
    named = "jetson-orin-nano jetson-orin-nx jetson-agx-orin rtx-3060 rtx-4070 apple-m4"
    named += " rtx-3090 rtx-4090 t4 l4 a10 a40 rtx-a6000"
    named += " l40s a100-40gb a100-80gb h100 h200 b200"
    assert set(named.split()) <= set(gpus)


def test_users_cards_are_there():
    """Users of Macs and of GeForce, Radeon and Arc cards found no row before."""
    named = (
        "apple-m1 apple-m1-pro apple-m1-max apple-m1-ultra apple-m2 apple-m2-pro apple-m2-max"
    )
    named += " apple-m2-ultra apple-m3 apple-m3-pro apple-m3-max apple-m3-ultra apple-m4"
    named += " apple-m4-pro apple-m4-max gtx-1080-ti p40 rtx-2080-ti rtx-3060-ti rtx-3070"
    named += " rtx-3070-ti rtx-3080-ti rtx-3090-ti rtx-4060 rtx-4060-ti-16gb rtx-4070-super"
    named += (
        " rtx-4070-ti rtx-4070-ti-super rtx-4080-super rtx-5060-ti-16gb rtx-5070 rtx-5070-ti"
    )
    named += " rtx-5080 rtx-5090 rx-7900-xt rx-7900-xtx arc-a770"
    assert set(named.split()) <= set(catalog.gpus())
    order = ["rtx-4060", "rtx-4070-super", "rtx-4080-super", "rtx-4090", "rtx-5090"]
    for field in ("flops_per_s", "bytes_per_s"):
        rates = [getattr(catalog.gpu(name), field) for name in order]
        assert rates == sorted(rates)


def test_sources_of_apple_rows_list_the_sizes_of_memory():
    """One chip is sold with several sizes; a node may state its own."""
    more = pd.read_csv(fit_profiles.DATASHEETS).set_index("slug")
    for name in more.index[more.index.str.startswith("apple")]:
        gpu = catalog.gpu(name)
        sizes = re.search(r"unified memory ([\d/]+) GB", gpu.source)
        assert sizes, name
        assert max(map(int, sizes[1].split("/"))) == gpu.memory_bytes / 2**30
    half = Node(name="mac", gpu=catalog.gpu("apple-m2-max"), memory_bytes=32 * 2**30)
    assert half.usable_bytes == 32 * 2**30


def test_own_shares_follow_from_what_was_measured():
    """Radeon and Arc have no family in the data, so their shares come from published runs."""
    more = pd.read_csv(fit_profiles.DATASHEETS).set_index("slug")
    rx, arc = more.loc["rx-7900-xtx"], more.loc["arc-a770"]
    llama = catalog.model("llama-3-8b", "q4_k_m")
    linear_flops = sum(block.flops_per_token for block in llama.blocks[1:-1])
    prompt = 3227 * linear_flops / (rx.fp16_dense_tflops * 1e12)
    read = 105.8 * sum(b.always_read_bytes for b in llama.blocks) / (rx.mem_bw_gbs * 1e9)
    assert (rx.flops_share, rx.bytes_share) == pytest.approx((prompt, read), abs=0.01)
    int4 = catalog.model("llama-2-7b", "int4")
    read = sum(b.always_read_bytes for b in int4.blocks) / 14.5e-3 / (arc.mem_bw_gbs * 1e9)
    shares = (58.7 / arc.fp16_dense_tflops, read)
    assert (arc.flops_share, arc.bytes_share) == pytest.approx(shares, abs=0.02)
    assert more.source.notna().all() and more.share_source.notna().sum() == 3


def test_gpus_returns_a_copy():
    catalog.gpus().clear()
    assert catalog.gpus()


@pytest.mark.parametrize("name", catalog.gpus())
def test_every_gpu_has_a_plausible_profile_and_its_source(name):
    gpu = catalog.gpu(name)
    assert 0 <= gpu.t0_s < 1e-3
    assert 1e12 < gpu.flops_per_s < 2.25e15  # the B200's datasheet
    assert 10 < gpu.flops_per_s / gpu.bytes_per_s < 1000
    assert gpu.memory_bytes >= 8 * 2**30
    assert gpu.power_w > 0
    if gpu.basis == "fitted":
        error = re.search(r"\d+ block times.*mean error (\d+\.\d) %", gpu.source)
        assert error and float(error[1]) < 15
    else:
        assert gpu.basis == "datasheet"
        assert re.search(r"0\.\d\d of [\d.]+ TFLOP/s: .*0\.\d\d of [\d.]+ GB/s: ", gpu.source)
    assert "datasheet: " in gpu.source


def test_fit_recovers_the_profile_behind_the_times():
    rng = np.random.default_rng(0)
    flops, moved = 10 ** rng.uniform(8, 13, 300), 10 ** rng.uniform(7, 10, 300)
    seconds = 4.2e-5 + np.maximum(flops / 1.5e14, moved / 9e11)
    truth = (4.2e-5, 1.5e14, 9e11)
    assert fit_profiles.fit(flops, moved, seconds) == pytest.approx(truth)
    seconds *= rng.lognormal(0, 0.03, 300)
    assert fit_profiles.fit(flops, moved, seconds) == pytest.approx(truth, rel=0.05)


def test_fit_keeps_a_known_bandwidth():
    rng = np.random.default_rng(1)
    flops, moved = 10 ** rng.uniform(9, 13, 200), np.full(200, 4e8)
    seconds = 1e-4 + np.maximum(flops / 6e13, moved / 7.5e11)
    found = fit_profiles.fit(flops, moved, seconds, bytes_per_s=7.5e11)
    assert found == pytest.approx((1e-4, 6e13, 7.5e11), rel=0.01)


def _share_rows():
    # gpu, fp16, flops share, bytes share
    rows = [
        ("RTX 4080", True, 0.9, 0.9),
        ("RTX 4080", True, 0.7, 0.8),
        ("RTX 4080", False, 0.1, 0.1),
        ("RTX 3060 12GB", False, 0.2, 0.5),
        ("Jetson Orin NX 16GB", False, 0.4, 0.7),
        ("Jetson AGX Orin 64GB", True, np.nan, 0.8),
    ]
    table = pd.DataFrame(rows, columns=["gpu", "fp16", "flops_share", "bytes_share"])
    return table.assign(engine="e", family=table.gpu.map(fit_profiles._family))


@pytest.mark.parametrize(
    ("gpu", "column", "share", "words"),
    [
        ("RTX 4080", "flops_share", 0.8, "2 FP16 rows of RTX 4080"),
        ("RTX 3060 12GB", "bytes_share", 0.85, "2 FP16 rows of GeForce"),
        ("Jetson Orin NX 16GB", "bytes_share", 0.8, "1 FP16 rows of Jetson Orin"),
        ("Jetson Orin NX 16GB", "flops_share", 0.4, "1 4-bit rows of Jetson Orin NX 16GB"),
        ("Jetson Orin Nano 8GB", "flops_share", 0.4, "1 4-bit rows of Jetson Orin "),
    ],
)
def test_shares_prefer_fp16_then_the_gpu_itself(gpu, column, share, words):
    found, source = fit_profiles.median_share(_share_rows(), gpu, column)
    assert found == pytest.approx(share)
    assert words in source


@needs_data
def test_the_table_is_what_the_script_makes(monkeypatch, tmp_path, capsys):
    assert fit_profiles.main(["--check"]) == 0
    changed = tmp_path / "gpus.toml"
    text = fit_profiles.TABLE.read_text(encoding="utf-8")
    changed.write_text(text.replace("e+12", "e+13", 1), encoding="utf-8")
    monkeypatch.setattr(fit_profiles, "TABLE", changed)
    monkeypatch.setattr(fit_profiles, "profiles", lambda data: catalog.gpus())
    assert fit_profiles.main(["--check", "--data", str(DATA)]) == 1
    assert "differs" in capsys.readouterr().out


def test_without_data_the_script_says_so_and_exits_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HYPSOLVE_SHARED", str(tmp_path))
    assert fit_profiles.main(["--check"]) == 2
    assert fit_profiles.main(["--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@needs_data
def test_fit_and_prediction_count_the_same_work():
    times = fit_profiles.load_times(DATA)
    decode = times[(times.gpu == "A100-80GB") & (times.phase == "decode")
                   & (times.model == "llama-3-8b")].iloc[0]  # fmt: skip
    layer = catalog.model("llama-3-8b").blocks[1]
    work = costs.step_work(layer, 1, decode.context_len - 1, decode.tokens)
    assert (decode.flops, decode.bytes) == work
    # the parts of a block that were not profiled are not counted
    no_attention = times[times.components == "no_attention_core"]
    bare = no_attention[no_attention.model == "llama-2-7b"].iloc[0]
    layer = catalog.model("llama-2-7b").blocks[1]
    assert bare.flops == layer.flops_per_token * bare.tokens
    assert bare.bytes == layer.weight_bytes + layer.activation_bytes_per_token * bare.tokens


# --- calibration ------------------------------------------------------------------------------


def _points(n):
    measured = np.linspace(1e-3, 9e-3, n)
    return pd.DataFrame({
        "gpu": "g", "source": "s", "fitted": True, "model": "m", "phase": "decode",
        "cost_model": "roofline", "predicted_s": measured * 1.1, "unseen_s": np.nan,
        "measured_s": measured,
    })  # fmt: skip


def test_summary_of_a_constant_overestimate():
    row = calibration.summary(_points(25)).iloc[0]
    assert row.n == 25
    assert row.mape == pytest.approx(0.1)
    assert row.median_ratio == pytest.approx(1.1)
    assert math.isnan(row.mape_unseen)


def test_unseen_models_are_predicted_without_their_own_rows():
    work = 10 ** np.random.default_rng(2).uniform(8, 12, (2, 60))
    rows = pd.DataFrame(
        {"flops": work[0], "bytes": work[1] / 100, "model": "a", "fitted": True}
    )
    rows.loc[30:, "model"] = "b"
    slow = np.where(rows.model == "a", 1.0, 3.0)  # b runs three times slower than a
    rows["seconds"] = slow * (3e-5 + np.maximum(rows.flops / 1e14, rows.bytes / 1e12))
    unseen_s = calibration._predict_unseen(rows)
    ratio = unseen_s / rows.seconds
    assert ratio[rows.model == "a"].to_numpy() == pytest.approx(3.0, rel=0.01)
    assert ratio[rows.model == "b"].to_numpy() == pytest.approx(1 / 3, rel=0.01)
    assert calibration._predict_unseen(rows.assign(model="a")).isna().all()


@pytest.mark.parametrize(("n", "groups"), [(100, 10), (37, 10), (9, 1)])
def test_bins_hold_every_row_once_and_none_alone(n, groups):
    bins = calibration.binned(_points(n))
    assert len(bins) == groups
    assert bins.n.sum() == n
    assert bins.n.max() - bins.n.min() <= 1
    assert (bins.predicted_s / bins.measured_s).to_numpy() == pytest.approx(1.1)
    assert bins.measured_s.is_monotonic_increasing


@needs_data
def test_calibration_shows_why_the_default_is_the_roofline(tmp_path, capsys):
    assert calibration.run(tmp_path, DATA) == 0
    table = pd.read_csv(tmp_path / "calibration.csv").set_index("cost_model")
    fitted = table[table.fitted]
    assert fitted.loc[CostModel.ROOFLINE].mape.max() < 0.25
    assert fitted.loc[CostModel.ROOFLINE].mape.median() < 0.07
    # model.md: the paper's f / C is 13 to 43 times too fast in decode on these sources
    measured = fitted[(fitted.phase == "decode") & (fitted.source == "NVIDIA aiconfigurator")]
    times_too_fast = 1 / measured.loc[CostModel.FLOPS].median_ratio
    assert times_too_fast.between(13, 50).all()
    # models the fit has not seen: hardly worse
    unseen = measured.loc[CostModel.ROOFLINE]
    assert (unseen.mape_unseen < unseen.mape + 0.02).all()
    points = pd.read_csv(tmp_path / "calibration_points.csv")
    assert len(points) < 1500
    assert points.n.sum() == table.n.sum()
    assert "block times" in capsys.readouterr().out


def test_calibration_without_data_says_so_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HYPSOLVE_SHARED", str(tmp_path))
    assert calibration.run(tmp_path / "out") == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert not (tmp_path / "out").exists()

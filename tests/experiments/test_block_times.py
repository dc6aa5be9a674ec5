"""Forms of a GPU profile on block times: what they count, and known numbers found again."""

import numpy as np
import pandas as pd
import pytest

from experiments import block_times
from experiments.block_times import FORMS, errors_of, fit_form, work_of

HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 4096, 32, 8, 128  # of a layer of Llama-3-8B
WEIGHTS = 2 * 218_112_000  # bytes in 16 bits: attention and MLP, without norms


def rows_of(model: str, seed: int = 0) -> pd.DataFrame:
    """Prefill and decode of one block, at several batches and contexts; times are added."""
    random = np.random.default_rng(seed)
    steps = [("prefill", tokens, tokens, 1, 0) for tokens in (32, 128, 512, 1024, 2048, 4096)]
    steps += [
        ("decode", batch, batch, batch, context)
        for batch in (1, 8, 32, 128)
        for context in (256, 1024, 4096)
    ]
    frame = pd.DataFrame(steps, columns=["phase", "tokens", "n", "batch_size", "context_len"])
    frame["model"], frame["components"] = model, "full"
    frame["tokens"] += random.integers(0, 3, len(frame)) * (frame["phase"] == "prefill")
    frame["flops"], frame["bytes"] = block_times.block_work(frame)
    return frame.reset_index(drop=True)


def test_the_parts_of_work_are_those_of_a_layer():
    """Counted by hand for Llama-3-8B: pairs of tokens, KV cache, weights."""
    rows = rows_of("llama-3-8b")
    work = work_of(rows)
    decode = (rows["phase"] == "decode").to_numpy()
    tokens, context = rows["tokens"].to_numpy(float), rows["context_len"].to_numpy(float)
    pairs = np.where(decode, tokens * context, tokens * (tokens + 1) / 2)
    assert work.pair_flops == pytest.approx(4 * HEADS * HEAD_DIM * pairs, rel=1e-9)
    read = np.where(decode, tokens * context, tokens)
    assert work.kv_bytes == pytest.approx(2 * KV_HEADS * HEAD_DIM * 2 * read, rel=1e-9)
    assert (work.prompt_pair_flops[decode] == 0).all()
    assert (work.decode_kv_bytes[~decode] == 0).all()
    assert work.moved_bytes[decode][0] - work.kv_bytes[decode][0] == pytest.approx(
        WEIGHTS, rel=0.01
    )


@pytest.mark.parametrize("form", FORMS)
def test_known_numbers_are_found(form):
    """Times that the form itself gives, with numbers between its starts."""
    work = work_of(rows_of("llama-3-8b"))
    true = np.array([5e-5, 1 / 1.5e14, 1 / 8e11, 1 / 6e13, 1 / 5e11])[: FORMS[form][1]]
    seconds = FORMS[form][0](work, true)
    made = FORMS[form][0](work, fit_form(form, work, seconds))
    assert made == pytest.approx(seconds, rel=0.02)


def test_a_model_held_out_is_not_seen():
    """A model whose times are doubled is off by half, however well the fit does on it."""
    first, second = rows_of("llama-3-8b"), rows_of("phi-3-medium", seed=1)
    rows = pd.concat([first, second], ignore_index=True)
    work = work_of(rows)
    rows["seconds"] = FORMS["max"][0](work, np.array([5e-5, 1 / 1.5e14, 1 / 8e11]))
    fine = errors_of("L40S", rows).set_index(["form", "phase"])
    assert fine.loc["max", "error_unseen"].max() < 0.02
    assert fine.loc["max", "models"].eq(2).all() and fine.loc["max", "n"].sum() == len(rows)
    rows.loc[rows["model"] == "phi-3-medium", "seconds"] *= 2
    off = errors_of("L40S", rows).set_index(["form", "phase"])
    assert off.loc["max", "error_unseen"].min() > 0.4
    alone = errors_of("RTX 3090", first.assign(seconds=1e-3))
    assert alone["error_unseen"].isna().all()


def test_without_measurements_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HYPSOLVE_SHARED", str(tmp_path / "none"))
    assert block_times.run(tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == [block_times.MISSING]
    assert not (tmp_path / "block_time_errors.csv").exists()

"""The memory model of the profile `vllm` against lines that servers printed at their start.

Every line states "GPU KV cache size: N tokens" (or the GiB) of vLLM's engine V1, the card, the
model and the arguments. The two fitted numbers, `fixed_gib` and `logits_copies`, are fitted
here again with every card held out in turn; the errors are those of `hypsolve/README.md`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from scipy.optimize import least_squares

import hypsolve as hs
from hypsolve import catalog
from hypsolve.problem.units import GIB

README = Path(__file__).parents[2] / "hypsolve" / "README.md"
QWEN3_14B = dict(
    n_layers=40, hidden=5120, n_heads=40, n_kv_heads=8, head_dim=128, ffn=17408, vocab=151936
)
QWEN3_06B = dict(
    n_layers=28, hidden=1024, n_heads=16, n_kv_heads=8, head_dim=128, ffn=3072, vocab=151936,
    tied_embeddings=True,
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """What a server was given, and the tokens of KV cache that it printed."""

    card: str  # of the catalogue, or GiB that the log itself names
    model: str | dict
    share: float
    max_num_seqs: int
    max_num_batched_tokens: int
    printed: int

    @property
    def loaded(self):
        if isinstance(self.model, dict):
            return catalog.transformer("shape", **self.model)
        return hs.model(self.model)

    @property
    def gpu(self):
        if self.card in hs.gpus():
            return hs.gpu(self.card)
        memory = float(self.card.split()[-2]) * GIB
        return hs.GpuProfile(
            name=self.card, t0_s=0.0, flops_per_s=1e14, bytes_per_s=1e12, memory_bytes=memory
        )

    def forecast(self, **memory):
        model = self.loaded
        runtime = hs.runtime(
            "vllm",
            memory_fraction=self.share,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            **memory,
        )
        free = runtime.usable_bytes(hs.Node(name="node", gpu=self.gpu), model)
        per_token = sum(block.kv_bytes_per_token for block in model.blocks)
        return (free - model.stage_weight_bytes(model.blocks)) / per_token

    def error(self, **memory):
        return self.forecast(**memory) / self.printed - 1


NVL, L20 = "H100 NVL 93.58 GiB", "L20 47.37 GiB"
LINES = [
    Line("l4", QWEN3_06B, 0.9, 256, 2048, 159_840),  # 0.10.2
    Line("rtx-3090", "llama-3-8b", 0.85, 256, 2048, 30_960),  # 0.12 or later
    Line("rtx-4090", "llama-3-8b", 0.9, 256, 2048, 40_528),  # 0.11
    Line("a100-40gb", "qwen3-8b", 0.9, 256, 2048, 136_080),  # 0.9.2
    Line("a100-40gb", "llama-3-8b", 0.9, 256, 8192, 157_936),  # 0.15.1
    Line("a100-80gb", "llama-3-8b", 0.92, 256, 2048, 460_496),  # 0.31.0
    Line("rtx-a6000", "llama-3-8b", 0.9, 256, 2048, 216_624),
    Line("l40s", "qwen3-8b", 0.8, 256, 8192, 141_328),  # 0.10.2
    Line("l40s", "qwen3-8b", 0.9, 256, 8192, 175_728),  # 0.10.2
    Line(L20, "qwen3-8b", 0.9, 256, 2048, 188_864),
    Line("h100", "qwen3-8b", 0.9, 1024, 8192, 389_888),  # 0.19.1
    # capacities that the project Helium measured with vLLM (helium/constants.py)
    Line(NVL, "llama-3-8b", 0.9, 1024, 4096, 543_440),
    Line(NVL, "qwen3-8b", 0.9, 1024, 4096, 478_560),
    Line(NVL, QWEN3_14B, 0.9, 1024, 4096, 350_304),
    Line(NVL, "qwen3-32b", 0.9, 1024, 4096, 81_648),
    Line("rtx-6000-ada", "llama-3-8b", 0.9, 1024, 4096, 208_128),
    Line("rtx-6000-ada", "qwen3-8b", 0.9, 1024, 4096, 191_568),
    Line("rtx-6000-ada", QWEN3_14B, 0.9, 1024, 4096, 92_000),
]
# These kept 0.6 to 1.2 GiB besides weights and KV cache, where Llama on the same card kept 2.4.
WORSE = {
    ("l40s", 175_728): 0.06,
    ("rtx-6000-ada", 191_568): 0.06,
    ("rtx-6000-ada", 92_000): 0.11,
}


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.card}-{line.printed}")
def test_kv_cache_sizes_that_servers_printed(line):
    """A plan promises the sequences that this memory holds."""
    assert abs(line.error()) < WORSE.get((line.card, line.printed), 0.05)


def fitted(lines):
    """The two numbers of the profile, fitted to relative errors, large ones damped."""

    def errors(numbers):
        fixed, copies = map(float, numbers)
        return [line.error(fixed_gib=fixed, logits_copies=copies) for line in lines]

    found = least_squares(errors, [0.7, 3.0], bounds=([0, 0], [5, 20]), loss="soft_l1",
                          f_scale=0.02)  # fmt: skip
    return {"fixed_gib": float(found.x[0]), "logits_copies": float(found.x[1])}


def test_the_profile_is_the_fit_to_all_lines():
    """Nobody may change the numbers, or add a line, without the other."""
    profile, numbers = hs.runtime("vllm"), fitted(LINES)
    assert profile.fixed_gib == pytest.approx(numbers["fixed_gib"], abs=0.03)
    assert profile.logits_copies == pytest.approx(numbers["logits_copies"], abs=0.15)


def test_the_published_errors_are_those_of_cards_held_out():
    """The error on a card that the fit has not seen is the one that a user meets."""
    cards = dict.fromkeys(line.card for line in LINES)
    found = {}
    for card in cards:
        numbers = fitted([line for line in LINES if line.card != card])
        errors = [100 * line.error(**numbers) for line in LINES if line.card == card]
        found[card] = max(errors, key=abs)
    rows = re.findall(r"^\| `([^`]+)` \| \d+ \| ([+-]?[\d.]+) % \|$", README.read_text(), re.M)
    published = {card: float(error) for card, error in rows}
    assert published == pytest.approx(found, abs=0.15)
    assert sum(abs(error) < 5 for error in found.values()) >= 0.7 * len(found)


def test_versions_that_sort_all_logits_need_a_number_of_their_own():
    """vLLM 0.11 on an H100 sorts the logits of 1,024 requests: 9.7 copies, not 2.6."""
    lines = [
        Line("h100", "llama-3-8b", 0.9, 1024, 8192, int(51.38 * GIB / 131_072)),
        Line("h100", "qwen3-32b", 0.9, 1024, 8192, int(4.45 * GIB / 262_144)),
    ]
    assert [line.error() > 0.04 for line in lines] == [True, True]
    assert [line.error(fixed_gib=0.2, logits_copies=9.7) for line in lines] == pytest.approx(
        [0, 0], abs=0.02
    )


def test_lines_of_the_former_engine_do_not_describe_this_one():
    """V0 kept 0.3 GiB besides weights and KV cache, less than half of any line of V1."""
    former = Line("card of 22.07 GiB", "llama-3-8b", 0.9, 256, 2048, 2356 * 16)

    def kept_gib(line):
        per_token = sum(block.kv_bytes_per_token for block in line.loaded.blocks)
        free = line.forecast(fixed_gib=0.0, logits_copies=0.0, activation_widths=0.0)
        return (free - line.printed) * per_token / GIB

    assert kept_gib(former) == pytest.approx(0.3, abs=0.02)
    assert kept_gib(former) < 0.56 * min(map(kept_gib, LINES))

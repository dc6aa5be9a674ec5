"""`ServingRun`: a measured run of a real server under a closed loop, and tables of runs.

A table is a CSV with the columns `COLUMNS`; others are kept as they are. Empty cells of
`precision` and `weights` mean that they are not stated, as for plain 16-bit checkpoints.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hypsolve import catalog
from hypsolve.calibration.csv_tables import TableRow, positive, positive_whole, read_table
from hypsolve.problem import files

COLUMNS = (
    "gpu", "runtime", "model", "precision", "weights", "tensor_parallel", "prompt_tokens",
    "output_tokens", "concurrency", "ttft_ms", "tpot_ms",
)  # fmt: skip
_WHOLE = ("tensor_parallel", "prompt_tokens", "output_tokens", "concurrency")
_REAL = ("ttft_ms", "tpot_ms")
MAX_BYTES = 2**28
GPUS = {
    "a100": "a100-80gb", "a100-pcie": "a100-80gb-pcie", "gb200": "b200", "b300": "b200",
    "gb300": "b200", "rtx-pro-6000-server": "rtx-pro-6000",
}  # fmt: skip
"""Names of GPUs in tables of runs, and the GPU of the catalogue that each is or stands for."""
STAND_INS = frozenset({"gb200", "b300", "gb300"})
"""Names in `GPUS` of GPUs that are another one than that of the catalogue."""
SAME_SHAPE = {"llama-3.3-70b": "llama-3.1-70b"}
RUNTIMES = {"trtllm": "tensorrt-llm", "trt-llm": "tensorrt-llm", "llamacpp": "llama.cpp"}
PRECISIONS = {
    "fp8": "fp8", "fp8_block": "fp8", "nvfp4": "nvfp4", "fp4": "nvfp4", "mxfp4": "nvfp4",
    "bf16": "bf16", "fp16": "bf16", "bfloat16": "bf16", "float16": "bf16", "int8": "int8",
    "w8a8": "int8", "w4a16": "gptq-int4", "awq": "awq", "int4": "gptq-int4",
    "gptq": "gptq-int4", "": "bf16",
}  # fmt: skip
_FORM_FACTOR = re.compile(r"[-_](sxm\d?|nvl)$")
_VARIANT = re.compile(
    r"-(instruct|it|chat|hf|fp8|nvfp4|fp4|bf16|awq|gptq|int4|int8|dynamic|w8a8|w4a16"
    r"|quantized\.\w+|v\d+\.\d+|\d\d\d\d)(?=-|$)"
)


class UnknownName(ValueError):
    """A GPU, runtime, model or format of weights that the catalogue does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRun:
    """A measured run: a server, equal requests, and users who send without pause.

    Attributes
    ----------
    gpu, runtime, model, weights : str
        Names as the table has them. Empty `weights`: 16-bit, unless the precision or the name
        of the model says otherwise.
    precision : str
    tensor_parallel : int
        GPUs that compute as one.
    prompt_tokens, output_tokens : int
        Tokens of every request.
    concurrency : int
        Users of the closed loop.
    ttft_s, tpot_s : float
        Measured time to first token, and time per output token after it, in seconds.
    row : mapping of str to str
        All columns of the table, as text.

    Examples
    --------
    >>> run = ServingRun(gpu="h100_sxm", runtime="trtllm", model="meta-llama/Llama-3.1-8B",
    ...     tensor_parallel=1, prompt_tokens=1024, output_tokens=128, concurrency=8,
    ...     ttft_s=0.19, tpot_s=0.008)
    >>> run.catalog_gpu, run.catalog_runtime, run.catalog_model, run.catalog_weights
    ('h100', 'tensorrt-llm', 'llama-3.1-8b', 'bf16')
    >>> round(run.tokens_per_s, 1)  # 8 users, each 128 tokens in 0.19 s + 127 * 8 ms
    849.1
    """

    gpu: str
    runtime: str
    model: str
    precision: str = ""
    weights: str = ""
    tensor_parallel: int
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    ttft_s: float
    tpot_s: float
    row: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def group(self) -> tuple[str, str, str]:
        """The GPU, the runtime and the model: what is held out as a whole."""
        return self.gpu, self.runtime, self.model

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second, as they follow from the closed loop."""
        return closed_loop_tokens_per_s(self, self.ttft_s, self.tpot_s)

    @property
    def catalog_gpu(self) -> str:
        """Name of the GPU in the catalogue, or of the one that stands for it."""
        name = self.gpu.lower().strip().replace("_", "-")
        for known in (name, _FORM_FACTOR.sub("", name)):
            if GPUS.get(known, known) in catalog.gpus():
                return GPUS.get(known, known)
        raise UnknownName(f"GPU {self.gpu!r} is not in the catalogue")

    @property
    def peak_gpu(self) -> str:
        """Name of the GPU whose peaks count: its own, also if another stands for it."""
        name = _FORM_FACTOR.sub("", self.gpu.lower().strip().replace("_", "-"))
        return name if name in STAND_INS else self.catalog_gpu

    @property
    def catalog_runtime(self) -> str:
        """Name of the runtime in the catalogue."""
        name = self.runtime.lower().strip()
        name = RUNTIMES.get(name, name)
        if name not in catalog.runtimes():
            raise UnknownName(f"runtime {self.runtime!r} is not in the catalogue")
        return name

    @property
    def catalog_model(self) -> str:
        """Name of the model in the catalogue, variants of its checkpoint left out."""
        own = catalog.name_of(self.model)
        short = self.model.rpartition("/")[2].lower().removeprefix("meta-")
        plain = _VARIANT.sub("", short)
        for name in (own, short, plain, SAME_SHAPE.get(plain, plain)):
            if name in catalog.models():
                return name
        raise UnknownName(f"model {self.model!r} is not in the catalogue")

    @property
    def catalog_weights(self) -> str:
        """Format of the weights in the catalogue."""
        stated = (self.weights or self.precision).lower().strip()
        if not stated:
            hints = [key for key in ("nvfp4", "fp8", "awq") if key in self.model.lower()]
            stated = hints[0] if hints else ""
        if stated in PRECISIONS:
            return PRECISIONS[stated]
        raise UnknownName(f"weights {stated!r} are not in the catalogue")


def closed_loop_tokens_per_s(run: ServingRun, ttft_s: float, tpot_s: float) -> float:
    """Return the output tokens per second of users who send again when an answer has ended."""
    seconds = ttft_s + (run.output_tokens - 1) * tpot_s
    return run.concurrency * run.output_tokens / seconds


def read_runs(path: str | Path) -> list[ServingRun]:
    """Read a table of measured runs.

    Parameters
    ----------
    path : str or Path
        CSV with the columns `COLUMNS`, in any order and among others.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If a column is missing, or a cell is invalid; the message names file, line, column, rule
        and value.
    """
    path = Path(path)
    text = files.read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    _, rows = read_table(path, text, COLUMNS)
    return [_run(row) for row in rows]


def is_table_of_runs(path: str | Path) -> bool:
    """Return whether the first line of a CSV has the columns of a table of runs."""
    with Path(path).open(encoding="utf-8-sig") as file:
        names = next(csv.reader(file), [])
    return set(COLUMNS) <= set(names)


def of_groups(
    runs: Iterable[ServingRun],
) -> dict[tuple[str, str, str], list[ServingRun]]:
    """Return the runs by their group, in the order of the table."""
    groups: dict[tuple[str, str, str], list[ServingRun]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups


def _run(row: TableRow) -> ServingRun:
    owner, cells = row.owner, row.cells
    numbers = {name: positive_whole(owner, name, cells[name]) for name in _WHOLE}
    seconds = {name: positive(owner, name, cells[name]) / 1e3 for name in _REAL}
    texts = {name: cells[name] for name in COLUMNS if name not in (*_WHOLE, *_REAL)}
    return ServingRun(
        ttft_s=seconds["ttft_ms"],
        tpot_s=seconds["tpot_ms"],
        row=cells,
        **texts,  # type: ignore[arg-type]
        **numbers,  # type: ignore[arg-type]
    )

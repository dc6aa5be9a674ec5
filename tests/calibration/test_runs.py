"""Tables of measured runs: what is read, what the catalogue calls it, what is refused."""

import pytest

from hypsolve.calibration.runs import (
    COLUMNS,
    UnknownName,
    is_table_of_runs,
    of_groups,
    read_runs,
)

ROW = {
    "gpu": "h100_sxm", "runtime": "trtllm", "model": "meta-llama/Llama-3.1-8B-Instruct",
    "precision": "", "weights": "", "tensor_parallel": "2", "prompt_tokens": "1024",
    "output_tokens": "128", "concurrency": "8", "ttft_ms": "100", "tpot_ms": "10",
}  # fmt: skip


def written(tmp_path, *rows, columns=COLUMNS):
    path = tmp_path / "runs.csv"
    lines = [",".join(columns), *(",".join({**ROW, **row}.get(c, "x") for c in columns)
                                  for row in rows)]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_run_has_its_numbers_in_seconds_and_its_own_columns(tmp_path):
    """Tables may have further columns, in any order; the experiment keeps them."""
    columns = ("source_id", *reversed(COLUMNS))
    (run,) = read_runs(written(tmp_path, {}, columns=columns))
    assert (run.ttft_s, run.tpot_s, run.tensor_parallel) == (0.1, 0.01, 2)
    assert run.row == {**ROW, "source_id": "x"}
    assert run.tokens_per_s == pytest.approx(8 * 128 / (0.1 + 127 * 0.01))


@pytest.mark.parametrize(
    ("row", "field", "expected"),
    [
        ({"gpu": "h200_sxm"}, "catalog_gpu", "h200"),
        ({"gpu": "a100_sxm"}, "catalog_gpu", "a100-80gb"),
        ({"gpu": "gb200"}, "catalog_gpu", "b200"),
        ({"gpu": "l40s"}, "catalog_gpu", "l40s"),
        ({"gpu": "gb200"}, "peak_gpu", "gb200"),
        ({"gpu": "b300_sxm"}, "peak_gpu", "b300"),
        ({"gpu": "h100_sxm"}, "peak_gpu", "h100"),
        ({"gpu": "a100_pcie"}, "catalog_gpu", "a100-80gb-pcie"),
        ({"model": "meta-llama/Llama-3.3-70B-Instruct"}, "catalog_model", "llama-3.1-70b"),
        ({"model": "mistralai/Mixtral-8x7B-Instruct-v0.1"}, "catalog_model", "mixtral-8x7b"),
        ({"weights": "w4a16"}, "catalog_weights", "gptq-int4"),
        ({"runtime": "vllm"}, "catalog_runtime", "vllm"),
        ({"runtime": "trtllm"}, "catalog_runtime", "tensorrt-llm"),
        ({"model": "meta-llama/Llama-3.1-70B"}, "catalog_model", "llama-3.1-70b"),
        ({"model": "nvidia/Llama-3.1-8B-Instruct-FP8"}, "catalog_model", "llama-3.1-8b"),
        ({"model": "nvidia/Qwen3-32B-NVFP4"}, "catalog_model", "qwen3-32b"),
        ({"model": "Qwen/Qwen2.5-7B-Instruct"}, "catalog_model", "qwen2.5-7b"),
        ({}, "catalog_weights", "bf16"),
        ({"precision": "fp8"}, "catalog_weights", "fp8"),
        ({"precision": "fp4", "weights": "nvfp4"}, "catalog_weights", "nvfp4"),
        ({"model": "nvidia/Qwen3-32B-NVFP4"}, "catalog_weights", "nvfp4"),
    ],
)
def test_names_of_tables_are_found_in_the_catalogue(tmp_path, row, field, expected):
    """A table of another source writes the same things in other words."""
    (run,) = read_runs(written(tmp_path, row))
    assert getattr(run, field) == expected


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"gpu": "tpu_v6"}, "catalog_gpu"),
        ({"runtime": "mlc"}, "catalog_runtime"),
        ({"model": "a/b-7b"}, "catalog_model"),
        ({"weights": "3 bits"}, "catalog_weights"),
    ],
)
def test_an_unknown_name_is_named(tmp_path, row, field):
    """The experiment writes the message as the reason of a missing forecast."""
    (run,) = read_runs(written(tmp_path, row))
    with pytest.raises(UnknownName, match=next(iter(row.values()))):
        getattr(run, field)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ttft_ms": "-1"}, "line 2: ttft_ms must be a positive number, got '-1'"),
        ({"tpot_ms": "nan"}, "tpot_ms must be a positive number"),
        ({"concurrency": "1.5"}, "concurrency must be a whole number"),
        ({"tensor_parallel": ""}, "tensor_parallel must be a positive number, got ''"),
        ({"prompt_tokens": "1e300"}, "prompt_tokens must be a whole number up to"),
    ],
)
def test_bad_cells_name_line_column_rule_and_value(tmp_path, row, message):
    """A user's own table must say where it is wrong."""
    with pytest.raises(ValueError, match=message):
        read_runs(written(tmp_path, row))


def test_lines_are_counted_as_an_editor_does(tmp_path):
    """Blank lines are none of a table's rows, but lines of the file."""
    path = written(tmp_path, {}, {"ttft_ms": "0"})
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, "", *rest]))
    with pytest.raises(ValueError, match="line 4: ttft_ms must be a positive number, got '0'"):
        read_runs(path)


def test_a_table_without_a_column_is_none(tmp_path):
    """The folder of measured runs also holds the all-reduces, which are no runs."""
    path = written(tmp_path, {}, columns=COLUMNS[1:])
    assert not is_table_of_runs(path)
    with pytest.raises(ValueError, match="column 'gpu' is missing"):
        read_runs(path)


def test_a_group_has_all_degrees(tmp_path):
    """A held-out group must not leave its other degrees of tensor parallelism in the fit."""
    rows = [{"tensor_parallel": "1"}, {"tensor_parallel": "8"}, {"gpu": "h200_sxm"}]
    groups = of_groups(read_runs(written(tmp_path, *rows)))
    assert [len(runs) for runs in groups.values()] == [2, 1]

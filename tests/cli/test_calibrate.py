"""The command `calibrate`: what it prints, the file that it writes, bad input in one line."""

import json

import pytest

from hypsolve.formats.gpu_profile import read_gpu_profile
from tests.cli.test_measure import run

HEADER = "model,prompt_tokens,output_tokens,concurrency,ttft_ms,tpot_ms\n"
RUNS = HEADER + "".join(
    f"meta-llama/Meta-Llama-3-8B,{prompt},{output},{users},{ttft},{tpot}\n"
    for prompt, output, users, ttft, tpot in (
        (512, 64, 1, 300, 90), (512, 64, 8, 900, 120), (1024, 32, 4, 1200, 130),
        (256, 128, 16, 800, 110), (1024, 64, 8, 2000, 150),
    )
)  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(RUNS)
    return path


def test_five_runs_in_a_file(capsys, tmp_path, runs):
    """The forecast of before, the new one, its held-out error, and how little five runs are."""
    out = tmp_path / "mine.toml"
    code, printed, errors = run(
        capsys, "calibrate", runs, "--gpu", "l4", "--runtime", "vllm", "-o", out
    )
    assert (code, errors) == (0, "")
    for words in (
        "runs.csv: 5 runs of table, llama-3-8b on vllm",
        "hypsolve's forecast by L4 was off by TPOT ",
        "fitted, on runs held out",
        "512 + 64 tokens, 8 users      900 ",
        "5 runs are few: the held-out error is a rough one",
        "t0_us", "tflops", "gb_per_s",
        'nodes = [{gpu = "mine.toml"}]',
    ):  # fmt: skip
        assert words in printed
    profile = read_gpu_profile(out)
    assert profile.name == "L4-vllm"
    assert "5 runs of table (runs.csv), llama-3-8b on vllm; mean error before: TPOT" in (
        profile.source
    )
    code, _, errors = run(
        capsys, "calibrate", runs, "--gpu", "l4", "--runtime", "vllm", "-o", out
    )
    assert code == 2
    assert errors == f"hypsolve: {out} exists already; give another name, or --force\n"
    # a profile is a start as good as a GPU of the catalogue
    code, printed, errors = run(
        capsys, "calibrate", runs, "--gpu", out, "--runtime", "vllm", "-o", out, "--force"
    )
    assert (code, errors) == (0, "")
    assert "forecast by L4-vllm was off by" in printed


def test_json_has_what_the_text_has(capsys, tmp_path, runs):
    """Times of every run, in seconds; errors follow from them."""
    code, printed, errors = run(
        capsys, "calibrate", runs, "--gpu", "l4", "--runtime", "vllm", "-o",
        tmp_path / "o.toml", "--json",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    found = json.loads(printed)
    assert [each["tpot_measured_s"] for each in found["runs"]] == [0.09, 0.12, 0.13, 0.11, 0.15]
    for about, key in (("before", "before"), ("of_the_fit", "after"), ("held_out", "held_out")):
        off = [abs(r[f"tpot_{key}_s"] / r["tpot_measured_s"] - 1) for r in found["runs"]]
        assert found["errors"][about]["tpot"] == pytest.approx(sum(off) / 5)
    assert set(found["intervals"]) == {"t0_s", "flops_per_s", "bytes_per_s", "request_s"}


def test_one_run_says_how_little_it_is(capsys, tmp_path):
    """One decode test: no held-out error, and two numbers that it does not tell apart."""
    bench = tmp_path / "llama.json"
    entry = {
        "n_prompt": 0, "n_gen": 128, "avg_ns": 128 * 90e6, "model_filename": "x.gguf",
    }  # fmt: skip
    bench.write_text(json.dumps([entry]))
    out = tmp_path / "p.toml"
    code, printed, errors = run(
        capsys, "calibrate", bench, "--gpu", "l4", "--runtime", "llama.cpp", "-o", out,
        "--model", "llama-3-8b",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert "1 run: too few to hold some out, so the error on others is unknown" in printed
    assert "the runs say little about" in printed
    assert "tflops" in printed.split("the runs say little about")[1].splitlines()[0]
    assert "all runs have one length of prompts and outputs" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "h101"], "unknown gpu 'h101'; did you mean h100?"),
        (["--gpu", "l4", "--where", "model"], "--where must be COLUMN=VALUE, got 'model'"),
        (["--gpu", "l4", "--tensor-parallel", "2"], "interconnect must be given where several"),
        (["--gpu", "l4", "--max-num-seqs", "0"], "max_num_seqs must be at least 1, got 0"),
        (["--gpu", "none.toml"], "none.toml: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, runs, options, words):
    out = tmp_path / "out.toml"
    code, printed, errors = run(
        capsys, "calibrate", runs, "--runtime", "vllm", "-o", out, *options
    )
    assert (code, printed) == (2, "")
    assert words in errors and errors.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("", "names no model; give --model and --weights"),
        ("acme/big", "'acme/big' is not in the catalogue"),
    ],
)
def test_a_model_that_is_not_known_must_be_given(capsys, tmp_path, runs, model, words):
    runs.write_text(RUNS.replace("meta-llama/Meta-Llama-3-8B", model))
    arguments = (
        "calibrate",
        runs,
        "--gpu",
        "l4",
        "--runtime",
        "vllm",
        "-o",
        tmp_path / "o.toml",
    )
    code, _, errors = run(capsys, *arguments)
    assert code == 2 and words in errors
    assert run(capsys, *arguments, "--model", "llama-3-8b")[0] == 0


def test_seconds_per_request_have_a_row_and_an_explanation(capsys, tmp_path):
    """A server that adds 400 ms to each first token: one user cannot wait for a queue."""
    path = tmp_path / "runs.csv"
    path.write_text(HEADER + "".join(
        f"meta-llama/Meta-Llama-3-8B,{prompt},64,1,{400 + 0.3 * prompt},80\n"
        for prompt in (64, 256, 1024, 2048)
    ))  # fmt: skip
    out = tmp_path / "mine.toml"
    code, printed, _ = run(
        capsys, "calibrate", path, "--gpu", "l4", "--runtime", "vllm", "-o", out
    )
    assert code == 0
    row = next(line.split() for line in printed.splitlines() if line.startswith("request_ms "))
    assert float(row[3]) < float(row[2]) < float(row[4])
    assert float(row[2]) == pytest.approx(400, rel=0.2)
    assert "request_ms passes in each request outside of iterations" in printed
    assert f"request_ms = {row[2]}" in out.read_text()


LLAMA_BENCH = [
    {
        "model_filename": "/m/Meta-Llama-3-8B-Q4_K_M.gguf",
        "model_type": "llama 8B Q4_K - Medium", "model_size": 4_912_898_304, "n_ubatch": 512,
        "n_prompt": n_prompt, "n_gen": n_gen, "avg_ns": avg_ns,
    }
    for n_prompt, n_gen, avg_ns in ((512, 0, 120_000_000), (0, 128, 1_000_000_000))
]  # fmt: skip


def calibrated(capsys, tmp_path, entries, *options):
    bench, out = tmp_path / "lb.json", tmp_path / "p.toml"
    bench.write_text(json.dumps(entries))
    command = ("calibrate", bench, "--gpu", "rtx-3090", "--runtime", "llama.cpp", "-o", out)
    return (*run(capsys, *command, *options), out)


@pytest.mark.parametrize("options", [(), ("--model", "llama-3-8b")])
def test_weights_are_those_that_the_file_names(capsys, tmp_path, options):
    """Four-bit weights were read as fp16: 2119 GB/s for a card of 936."""
    code, printed, errors, out = calibrated(capsys, tmp_path, LLAMA_BENCH, *options)
    assert (code, errors) == (0, "") and "llama-3-8b-q4_k_m on llama.cpp" in printed
    assert 600e9 < read_gpu_profile(out).bytes_per_s <= 936e9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--weights", "fp16"), "model_size is 4.91 GB, but llama-3-8b has 16.1 GB; give"),
        (("--model", "llama-3-70b"), "but llama-3-70b-q4_k_m has 42.5 GB; give --model and"),
    ],
)
def test_a_model_of_another_size_is_refused(capsys, tmp_path, options, words):
    code, printed, errors, out = calibrated(capsys, tmp_path, LLAMA_BENCH, *options)
    assert (code, printed) == (2, "") and words in errors and not out.exists()


def test_weights_of_no_table_must_be_given(capsys, tmp_path):
    entries = [{**entry, "model_type": "llama 8B Q4_K - Small"} for entry in LLAMA_BENCH]
    code, _, errors, _ = calibrated(capsys, tmp_path, entries)
    assert code == 2
    assert "weights 'Q4_K - Small' are not in the catalogue; give the nearest as" in errors
    code, printed, errors, _ = calibrated(capsys, tmp_path, entries, "--weights", "q4_k_m")
    assert (code, errors) == (0, "") and "llama-3-8b-q4_k_m on" in printed


def test_a_fit_at_the_data_sheet_says_so(capsys, tmp_path):
    """A decode test of half the time that the memory of the card needs."""
    entries = [{**LLAMA_BENCH[1], "avg_ns": 300_000_000}]
    code, printed, errors, out = calibrated(capsys, tmp_path, entries)
    assert (code, errors) == (0, "") and "peak of the data sheet" in printed
    assert "warning: the runs ask for more gb_per_s than the data sheet of the GPU" in printed
    off = printed.splitlines()[1].rpartition("TPOT ")[2]
    assert off == f"{float(off.split()[0]):.0f} %" and "e+" not in printed  # 1.9e+02 %
    assert read_gpu_profile(out).bytes_per_s <= 936e9


def test_a_benchmark_of_another_server_is_refused(capsys, tmp_path):
    """A time per token of 1 microsecond was "off by 6951334 %", and a profile was written."""
    path, out = tmp_path / "runs.csv", tmp_path / "mine.toml"
    path.write_text(HEADER + "llama-3-8b,512,64,1,300,0.001\n")
    code, _, errors = run(
        capsys, "calibrate", path, "--gpu", "l4", "--runtime", "vllm", "-o", out
    )
    assert code == 2 and not out.exists() and errors.count("\n") == 1
    assert errors.startswith(
        "hypsolve: calibrate: runs.csv: TPOT must be at most 10 times the measured one"
    )
    assert "GPU, model, weights or runtime are not those of the benchmark" in errors


def test_weights_that_a_runtime_does_not_load_are_refused(capsys, tmp_path, runs):
    """`plan` refused the pair, `calibrate` fitted it."""
    out = tmp_path / "mine.toml"
    command = ("calibrate", runs, "--gpu", "l4", "--weights", "q4_k_m", "-o", out)
    code, _, errors = run(capsys, *command, "--runtime", "vllm")
    assert code == 2 and not out.exists()
    assert errors.startswith(
        "hypsolve: calibrate: weights must be a format that runtime 'vllm' loads ("
    )
    assert errors.endswith("got 'q4_k_m'\n")


def test_a_fit_that_makes_an_error_larger_says_so(capsys, tmp_path):
    """Times per token weigh more: those to first token were further off without a word."""
    path = tmp_path / "runs.csv"
    command = ("calibrate", path, "--gpu", "l4", "--runtime", "vllm", "--force",
               "-o", tmp_path / "mine.toml")  # fmt: skip
    said = []
    for times in ("1,60,80", "8,300,20"):  # the L4 takes 60 ms to read the weights
        path.write_text(f"{HEADER}llama-3-8b,512,64,{times}\n")
        code, printed, _ = run(capsys, *command, "--json")
        assert code == 0
        found = json.loads(printed)["errors"]
        worse = {
            words
            for key, words in (("tpot", "times per token"), ("ttft", "times to first token"))
            if found["of_the_fit"][key] > found["before"][key] + 0.05
        }
        _, printed, _ = run(capsys, *command)
        warned = {
            words
            for words in ("times per token", "times to first token")
            if f"warning: {words} are further off than before the fit" in printed
        }
        assert warned == worse
        said.append(bool(warned))
    assert said == [False, True]


def test_runs_that_cannot_be_simulated_are_named(capsys, tmp_path):
    """The error was one of the simulator, about arrivals that no file has."""
    path, out = tmp_path / "runs.csv", tmp_path / "mine.toml"
    path.write_text(HEADER + "llama-3-8b,1000000000,64,1,300,90\n")
    command = ("calibrate", path, "--gpu", "l4", "--runtime", "vllm", "-o", out)
    code, _, errors = run(capsys, *command)
    assert code == 2 and errors.count("\n") == 1
    assert errors.startswith("hypsolve: calibrate: runs.csv: ")
    assert " cannot be simulated on L4-vllm: " in errors
    path.write_text(RUNS)
    code, _, errors = run(capsys, *command, "--model", "llama-3-70b")
    assert code == 2 and not out.exists() and errors.count("\n") == 1
    assert errors.startswith("hypsolve: calibrate: model must fit on 1 GPU of ")
    assert "got llama-3-70b, whose weights have 1.411e+11" in errors


def test_runs_that_wait_for_memory_are_marked(capsys, tmp_path):
    """Requests of 64 users need ten times the KV cache; its error went without a word.

    The server has 20.3 GB, 16.1 of which are weights; 327,680 tokens take 131,072 bytes each.
    """
    path = tmp_path / "queue.csv"
    rows = "".join(
        f"llama-3-8b,{load},{times}\n"
        for load, times in (
            ("512,64,1", "300,90"), ("1024,32,4", "1200,130"), ("4096,1024,64", "90000,150"),
            ("4096,64,2", "1900,130"),
        )
    )  # fmt: skip
    path.write_text(HEADER + rows)
    out = tmp_path / "mine.toml"
    asked = ("calibrate", path, "--gpu", "l4", "--runtime", "vllm", "-o", out, "--force")
    code, printed, _ = run(capsys, *asked)
    assert code == 0
    assert "* users wait for KV cache in 1 run (4096 + 1024 tokens, 64 users): its" in printed
    assert "4096 + 1024 tokens, 64 users*" in printed and printed.count("users*") == 1
    assert "runs_that_wait_for_memory = 1" in out.read_text()
    _, printed, _ = run(capsys, *asked, "--json")
    marks = [each["waits_for_memory"] for each in json.loads(printed)["runs"]]
    assert marks == [False, False, True, False]
    path.write_text(HEADER + rows.replace(",64,90000", ",64,1900"))  # all answered at once
    _, printed, _ = run(capsys, *asked)
    assert "wait for KV cache" not in printed

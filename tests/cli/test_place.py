"""`hypsolve place` and `hypsolve rent`: what they print, exit codes, bad input in one line."""

import json

import jsonschema
import pytest

from hypsolve.planning import place_search
from hypsolve.planning.json_schema import schema
from hypsolve.planning.placement_plan import placement_of
from tests.cli.test_cli import run

LAB = """
currency = "EUR"
link = {gbps = 10, latency_ms = 0.1}
[[machines]]
name = "desk"
gpu = "rtx-4090"
count = 2
[[offers]]
name = "rack"
gpu = "a100-80gb"
max_count = 2
price_per_hour = 2.0
"""
ASKED = ("--model", "llama-3-8b", "--prompt", 128, "--output", 16, "--time-limit", 20)


@pytest.fixture
def lab(tmp_path):
    path = tmp_path / "lab.toml"
    path.write_text(LAB)
    return path


def test_place_prints_pipelines_bound_and_reasons(capsys, lab):
    code, out, err = run(capsys, "place", *ASKED, "--machines", lab)
    assert (code, err) == (0, "")
    for words in (
        "llama-3-8b on lab, 128 + 16 tokens: 4 pipelines on 4 of 4 machines, 4 EUR per hour",
        "desk-0, desk-1", "rack-0, rack-1", "RTX 4090", "all layers",
        "the largest load that it keeps up with: ", "requests, every queue full)",
        "proved: no placement (pipelines of at most 6 stages) and no schedule serves more than",
        "proved: no placement carries more there", "simulated limits: runtime vllm",
        "TTFT p50", "EUR per million output tokens",
    ):  # fmt: skip
        assert words in out, words


def test_json_has_the_schema_and_a_placement(capsys, lab, tmp_path):
    saved = tmp_path / "plan.json"
    code, out, err = run(
        capsys, "place", *ASKED, "--machines", lab, "--rate", 5, "--json", "--save", saved
    )
    assert code == 0 and err == f"{saved}: written\n"
    table = json.loads(out)
    assert table == json.loads(saved.read_text())
    jsonschema.validate(table, schema("placement"))
    assert table["answer"]["is_met"] is True and table["rate_per_s"] == 5
    assert len(placement_of(table).pipelines) == len(table["pipelines"])


@pytest.mark.full_length
def test_a_load_that_is_not_served_is_a_no(capsys, lab):
    code, out, _ = run(capsys, "place", *ASKED, "--machines", lab, "--rate", 5000)
    assert code == 1
    assert out.startswith("no: this placement does not keep up with 5000 requests/s")


def test_targets_and_users(capsys, lab):
    slos = ("--slo-ttft", 0.5, "--slo-tpot", 0.05)
    code, out, _ = run(capsys, "place", *ASKED, "--machines", lab, "--users", 4, *slos)
    assert code == 0
    assert out.startswith("yes: 4 users are served within TTFT <= 500 ms and TPOT <= 50 ms")
    assert "the largest load within the targets: " in out and " users, or " in out
    slos = ("--slo-tpot", 1e-5)
    code, out, _ = run(capsys, "place", *ASKED, "--machines", lab, "--users", 4, *slos)
    assert code == 1 and out.startswith("no: this placement does not serve 4 users within")
    assert "no load within the targets was found" in out


def test_the_least_mean_latency(capsys, lab):
    """At a low rate, the GPUs of the largest memory bandwidth serve all requests."""
    code, out, _ = run(
        capsys, "place", *ASKED, "--machines", lab, "--rate", 1, "--objective", "latency"
    )
    assert code == 0 and "its mean latency is " in out
    assert "desk-0, desk-1: no lower mean latency was found with it" in out
    assert "proved: no placement has less than " in out and "rack-0" in out
    code, _, err = run(capsys, "place", *ASKED, "--machines", lab, "--objective", "latency")
    assert code == 2 and "objective latency needs rate_per_s or users, got neither" in err


def test_nothing_fits(capsys, tmp_path):
    path = tmp_path / "desk.toml"
    path.write_text('machines = [{gpu = "rtx-4090"}]\n')
    code, out, _ = run(capsys, "place", "--model", "llama-3-70b", "--machines", path)
    assert code == 1 and out.startswith("no placement of llama-3-70b on desk")
    assert "GB beside the runtime" in out


def test_export(capsys, lab):
    code, out, _ = run(capsys, "place", *ASKED, "--machines", lab, "--export", "sglang")
    assert code == 0 and out.count("python -m sglang.launch_server") == 4
    assert "# pipeline 1, " in out and "nginx -c" in out


def test_rent_is_cheap(capsys, lab):
    """Two free cards serve a little; a rack is rented for more."""
    code, out, _ = run(capsys, "rent", *ASKED, "--machines", lab, "--rate", 20)
    assert code == 0 and "these machines cost nothing" in out
    code, out, _ = run(capsys, "rent", *ASKED, "--machines", lab, "--rate", 200)
    assert code == 0 and "2 EUR per hour" in out
    assert "proved in the fluid model: no machines for less carry this rate" in out
    assert "rack-1: the load is served without it" in out


def test_rent_curve(capsys, lab, tmp_path):
    asked = (*ASKED, "--machines", lab, "--rate", 200, "--curve")
    code, out, _ = run(capsys, "rent", *asked)
    assert code == 0 and out.startswith("llama-3-8b on lab: the least price in the fluid model")
    assert "EUR per hour" in out and "rack at 2 EUR per hour: 1 used" in out
    code, out, _ = run(capsys, "rent", *asked, "--json")
    found = json.loads(out)
    prices = [point["price_per_hour"] for point in found["points"]]
    assert prices[0] == 0 and 2 in prices and found["offers"][0]["is_proved"]
    code, _, err = run(capsys, "rent", *asked, "--export", "vllm")
    assert code == 2 and "--curve excludes --export and --report" in err
    code, _, err = run(capsys, "rent", *asked[:-1], "--png", "curve.png")
    assert code == 2 and "--png is for --curve" in err
    saved, png = tmp_path / "curve.json", tmp_path / "curve.png"
    code, _, err = run(capsys, "rent", *asked, "--save", saved, "--png", png)
    assert code == 0 and err == f"{saved}: written\n{png}: written\n"
    points = json.loads(saved.read_text())["points"]
    assert [point["price_per_hour"] for point in points] == prices
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_rate_that_all_machines_do_not_carry(capsys, lab):
    code, out, _ = run(capsys, "rent", *ASKED, "--machines", lab, "--rate", 1e6)
    assert code == 1 and "no placement carries 1e+06 requests/s" in out


@pytest.mark.parametrize(
    ("command", "more", "words"),
    [
        ("place", ("--rate", 1, "--users", 2), "--users and --rate exclude each other"),
        ("place", ("--export", "vllm", "--json"), "--export and --json exclude each other"),
        ("place", ("--export", "vlm"), "vllm"),
        ("place", ("--objective", "path"), "'path' is not one of 'throughput', 'goodput'"),
        ("place", ("--objective", "goodput"), "goodput needs ttft_slo_s or tpot_slo_s"),
        ("place", ("--tensor-parallel", 2), "No such option '--tensor-parallel'"),
        ("place", ("--save", "plan.txt"), "must end in .json or .json.gz"),
        ("place", ("--rate", 0), "rate_per_s must be"),
        ("place", ("--max-stages", 0), "max_stages must be"),
        ("place", ("--method", "nearest"), "nearest"),
        ("rent", (), "rent needs --rate or --users"),
        ("rent", ("--users", 3), "cost needs ttft_slo_s or tpot_slo_s with users"),
    ],
)
def test_bad_input_is_one_line(capsys, lab, command, more, words):
    code, out, err = run(capsys, command, *ASKED, "--machines", lab, *more)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


def test_bad_files_are_one_line(capsys, tmp_path):
    code, _, err = run(capsys, "place", *ASKED, "--machines", tmp_path / "none.toml")
    assert code == 2 and "No such file" in err
    path = tmp_path / "bad.toml"
    path.write_text('[[machines]]\ngpu = "rtx-4091"\n')
    code, _, err = run(capsys, "place", *ASKED, "--machines", path)
    assert code == 2 and "rtx-4091" in err and err.count("\n") == 1
    code, _, err = run(capsys, "place", "--model", "llama-3-8b")
    assert code == 2 and "--machines" in err


def test_an_interrupt_prints_the_best_so_far(capsys, lab, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(place_search, "largest_loads", interrupted)
    code, out, _ = run(capsys, "place", *ASKED, "--machines", lab, "--rate", 5)
    assert code == 130
    assert out.startswith("stopped: the search for the largest loads was stopped\nyes: 5 ")


def test_an_interrupt_of_the_search_leaves_a_rule(capsys, lab, monkeypatch):
    real = place_search.solve

    def interrupted(problem, method, **options):
        if method == "placement_highs":
            raise KeyboardInterrupt
        return real(problem, method, **options)

    monkeypatch.setattr(place_search, "solve", interrupted)
    code, out, _ = run(capsys, "place", *ASKED, "--machines", lab)
    assert code == 130 and "this is a placement without search" in out
    assert "nothing is proved about others" in out

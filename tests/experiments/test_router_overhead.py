"""`experiments.router_overhead` sends what it says, both ways; no time is asserted."""

import csv

from experiments import router_overhead


def test_a_quick_round_is_recorded_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(router_overhead.os, "sched_setaffinity", lambda *_: None, raising=False)
    monkeypatch.setitem(router_overhead.SIZES, "quick", (2, 0.3))
    for _ in range(2):  # the second time, all is there
        assert router_overhead.main(["--quick", "--out", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert "stream: p99_ms is larger by" in said
    with (tmp_path / "router.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    assert {row["failed"] for row in rows} == {"0"}
    assert all(int(row["requests"]) > 20 for row in rows)
    assert all(
        0
        < float(row["first_byte_median_ms"])
        <= float(row["median_ms"])
        <= float(row["p99_ms"])
        for row in rows
    )
    assert (tmp_path / "router.json").exists()


def test_what_the_router_adds_is_a_difference_by_round():
    rows = [
        {"round": n, "kind": kind, "way": way, "p99_ms": value}
        for n, kind, way, value in (
            (0, "whole", "direct", 1.0), (0, "whole", "routed", 3.5),
            (1, "whole", "routed", 2.0), (1, "whole", "direct", 1.5),
            (0, "stream", "direct", 9.0), (0, "stream", "routed", 9.0),
        )
    ]  # fmt: skip
    assert router_overhead.added(rows, "whole", "p99_ms") == [2.5, 0.5]

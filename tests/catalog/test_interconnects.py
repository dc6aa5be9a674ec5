"""Interconnects of the catalogue against the measured all-reduces."""

import numpy as np
import pandas as pd
import pytest

import hypsolve as hs
from experiments import all_reduce
from hypsolve.catalog.interconnects import interconnect, interconnects, measured_gpus
from hypsolve.problem.interconnect import AllReduce, Interconnect

DATA = all_reduce.data_file()
needs_data = pytest.mark.skipif(
    DATA is None, reason="measured all-reduces not here: set HYPSOLVE_SHARED"
)


@needs_data
def test_table_is_what_the_script_makes_of_the_data():
    """A table that was edited by hand, or fitted to other data, would be cited wrongly."""
    rows = pd.read_csv(DATA)
    assert all_reduce.TABLE.read_text(encoding="utf-8") == all_reduce.render(rows)


@needs_data
def test_catalogue_meets_the_measured_all_reduces_of_h100():
    """The unit of the data (microseconds, bytes of 16-bit values) must survive the table."""
    rows = pd.read_csv(DATA).query("gpu == 'h100_sxm' and library == 'vllm' and n_gpus == 8")
    made = interconnect("nvlink4", "h100").all_reduce(8, "vllm")
    predicted_s = np.array([made.seconds(size) for size in rows.message_bytes])
    errors = abs(predicted_s / (rows.latency_us.to_numpy() * 1e-6) - 1)
    assert errors.mean() < 0.1


def test_fit_recovers_two_lines_and_the_switch():
    """The search for the switch is judged by points that lie on two known lines."""
    truth = AllReduce(
        library="nccl", degree=4, switch_bytes=2.0**18, small_s=5e-6, small_s_per_byte=4e-11,
        large_s=1e-5, large_s_per_byte=5e-12,
    )  # fmt: skip
    sizes = 2.0 ** np.arange(8, 30)
    found = all_reduce.fit(sizes, np.array([truth.seconds(x) for x in sizes]), "nccl", 4)
    for size in (256.0, 3e5, 2.0**18, 1e9):
        assert found.seconds(size) == pytest.approx(truth.seconds(size), rel=1e-6)


def test_gpus_that_were_not_measured_are_marked():
    """A reader must see that figures of a consumer box come from another card."""
    assert interconnect("pcie4", "l40s").basis == "measured"
    assumed = interconnect("pcie4", "rtx-4090")
    assert assumed.basis == "assumed"
    assert "not measured" in assumed.source
    assert assumed.all_reduces == interconnect("pcie4", "l40s").all_reduces
    assert all(interconnect(name, "rtx-3090").basis == "assumed" for name in interconnects())


def test_unknown_degrees_and_names_are_refused_by_name():
    """An unknown degree must not silently take the figures of another."""
    with pytest.raises(ValueError, match=r"'nvlink4'.*one of 2, 4, 8, got 3"):
        interconnect("nvlink4", "h100").all_reduce(3)
    with pytest.raises(ValueError, match="did you mean nvlink4"):
        interconnect("nvlink44")
    with pytest.raises(ValueError, match="degree must be at least 2"):
        AllReduce(library="nccl", degree=1, switch_bytes=0, small_s=0, small_s_per_byte=0,
                  large_s=0, large_s_per_byte=0)  # fmt: skip
    with pytest.raises(ValueError, match="all_reduces"):
        Interconnect(name="own", all_reduces=())


def test_script_says_when_the_data_are_missing(tmp_path, monkeypatch, capsys):
    """Without the data, the script must neither fail nor write an empty table."""
    monkeypatch.setenv("HYPSOLVE_SHARED", str(tmp_path))
    assert all_reduce.run(tmp_path / "out", tmp_path / "table.toml") == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "table.toml").exists()


def test_measured_gpus_are_in_the_catalogue_of_gpus():
    """A name that no GPU has would mark measured figures as assumed."""
    for name in hs.interconnects():
        for gpu in measured_gpus(name):
            assert hs.gpu(gpu).name
            assert hs.interconnect(name, gpu).basis == "measured"
    assert measured_gpus("nvlink4") == ("h100", "h200")
    with pytest.raises(ValueError, match="unknown interconnect 'nvlink9'"):
        measured_gpus("nvlink9")

"""The spurious ERROR lines of SCIP are filtered out of file descriptor 2, and nothing else."""

import os
import sys

import numpy as np
import pytest

from hypsolve import Instance, cli, solve
from hypsolve.solvers.backends.scip import _without_spurious, hide_spurious_scip_errors

SPURIOUS = (
    b"[scip_event.c:305] ERROR: SCIPcatchEvent does not support variable or row change events."
    b" Use SCIPcatchVarEvent or SCIPcatchRowEvent!\n"
    b"[gscip_event_handler.cc:124] ERROR: Error <-9> in function call\n"
)


def test_a_solve_by_scip_prints_no_error(capfd):
    instance = Instance.from_tables(np.ones((1, 1, 4)), np.ones(4), [[(0, 3)], [(0, 3)]])
    with hide_spurious_scip_errors():
        os.write(2, b"before\n")
        assert solve(instance, "partition_scip").status == "optimal"
        print("from Python", file=sys.stderr)
        os.write(2, b"ERROR: of another library\n")
    os.write(2, b"after\n")
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["before", "from Python", "ERROR: of another library", "after"]


def test_the_descriptor_is_restored_after_an_exception(capfd):
    with pytest.raises(KeyboardInterrupt), hide_spurious_scip_errors():
        os.write(2, SPURIOUS + b"unfinished [")
        raise KeyboardInterrupt
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "unfinished [after\n"


def test_compare_prints_no_error(tmp_path, capfd):
    network = str(tmp_path / "network.toml")
    question = ["--model", "llama-3-8b", "--network", network, "--method", "partition_scip"]
    for arguments in (["init", network], ["compare", *question]):
        with pytest.raises(SystemExit, match=r"^0$"):
            cli.main(arguments)
    assert "ERROR" not in capfd.readouterr().err


@pytest.mark.parametrize("size", [1, 2, 7, 50, 1000])
def test_lines_are_recognised_however_they_arrive_in_pieces(size):
    text = b"\rstep 1 of 2" + SPURIOUS + b"[scip_event.c:9] true\n[x]" + SPURIOUS + b"[sc"
    passed = held = b""
    for at in range(0, len(text), size):
        more, held = _without_spurious(held + text[at : at + size])
        passed += more
    assert passed + held == b"\rstep 1 of 2[scip_event.c:9] true\n[x][sc"


def test_text_that_cannot_become_a_spurious_line_is_passed_on_at_once():
    """A progress line has no line end; it must not wait for one."""
    assert _without_spurious(b"\r\x1b[Kstep 1") == (b"\r\x1b[Kstep 1", b"")
    assert _without_spurious(b"\r\x1b[Kstep 1[gscip") == (b"\r\x1b[Kstep 1", b"[gscip")

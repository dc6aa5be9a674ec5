"""Options that say what they take, and refuse what they would ignore."""

import pytest

from tests.cli.test_cli import run

ASKED = ("--model", "phi-3-mini", "--network", "net.toml")


def test_the_command_alone_prints_its_help(capsys):
    """It said "Missing command" and no more."""
    code, out, err = run(capsys)
    assert (code, err) == (2, "") and out.startswith("Usage: hypsolve [OPTIONS] [COMMAND]")
    for name in ("init", "plan", "compare", "pareto", "simulate", "replan"):
        assert f"\n  {name} " in out


@pytest.mark.parametrize("command", ["plan", "compare", "pareto", "simulate"])
def test_users_and_a_rate_exclude_each_other(capsys, command):
    """The rate was ignored without a word."""
    code, out, err = run(capsys, command, *ASKED, "--users", 5, "--rate", 2)
    assert (code, out) == (2, "")
    assert err == "hypsolve: --users and --rate exclude each other\n"


def test_help_lists_the_batching_modes(capsys):
    """It asked for a TEXT."""
    code, out, _ = run(capsys, "plan", "--help")
    assert code == 0 and "--batching [stage|pipeline|serial]" in out
    assert "--kv-admission [reserve|paged]" in out

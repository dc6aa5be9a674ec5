"""Every code block of every README runs in the order of the page, as it would in the clone.

Blocks marked ``cluster`` need a cluster. `.ci/run` runs the lines that install something or run
pytest, and ``tests/experiments`` tests the first command of README.md.
"""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import image

import hypsolve as hs
from experiments import losses, readme_picture
from hypsolve import cli
from hypsolve.planning.place_query import PlaceQuery
from hypsolve.planning.query import PlanQuery
from tests.helpers.short_simulations import SHORT, count_cpu_seconds, set_lengths

matplotlib.use("Agg")

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *(f"{folder}/README.md" for folder in (
    "hypsolve", "instances", "experiments", "results", "notebooks", "tests"
)))  # fmt: skip
BLOCK = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", re.M | re.S)
NOT_RUN = re.compile(
    r"python3 -m venv|pip install|jupyter execute|experiments\.sweep$"
    r"|halves\.py"  # tests/experiments/test_sweep.py runs that file, and reads what it writes
)


def blocks_of(page):
    """(language, mark, text) of every code block."""
    return BLOCK.findall((ROOT / page).read_text())


def run_command(line, page):
    """Run one line of a bash block in this process; return False if it is not for a test.

    As in a shell, the exit code of `command | head -4` is that of head.
    """
    command, _, pipe = line.partition("#")[0].partition(" | ")
    if pipe:
        assert re.fullmatch(r"head -\d+", pipe.strip()), f"{page}: cannot run {line!r}"
    words = shlex.split(command)
    if not words or NOT_RUN.search(line):
        return False
    if words[0] == ".venv/bin/hypsolve":
        with pytest.raises(SystemExit) as stop:
            cli.main(words[1:])
        status = 0 if pipe else stop.value.code
    elif words[:2] == [".venv/bin/python", "-m"]:
        name = words[2] if not words[2].endswith("verify") else f"{words[2]}.__main__"
        status = importlib.import_module(name).main(words[3:])
    elif words[0] == ".venv/bin/python":  # a file of this page
        paths = {"PYTHONPATH": str(ROOT)}
        status = subprocess.run([sys.executable, *words[1:]], env=os.environ | paths).returncode
    else:
        pytest.fail(f"{page}: cannot run {line!r}")
    assert not status, f"{page}: {line}: status {status}"
    return True


def shorten_outputs(monkeypatch):
    """Let every plan be for 16 output tokens: a plan simulates each token many times."""
    for query in (PlanQuery, PlaceQuery):

        def of(*arguments, read=query.of, **options):
            shorter = {} if options.get("requests") is not None else {"output_tokens": 16}
            return read(*arguments, **{**options, **shorter})

        monkeypatch.setattr(query, "of", of)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_as_printed(page, tmp_path, monkeypatch):
    """Plans of pages that show no output are shorter than printed."""
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    count_cpu_seconds(monkeypatch)
    if not any(mark in ("output", "printed") for _, mark, _ in blocks_of(page)):
        shorten_outputs(monkeypatch)
        set_lengths(monkeypatch, SHORT)
    names: dict[str, object] = {}
    printed = None
    for number, (language, mark, text) in enumerate(blocks_of(page)):
        if language == "bash":
            stdout = io.StringIO()
            for line in text.splitlines():
                with contextlib.redirect_stdout(stdout):
                    run_command(line, page)
            of_commands, last = stdout.getvalue(), text.splitlines()[-1]
        elif mark.endswith(".py"):
            Path(mark).write_text(text)
        elif language == "python" and mark != "cluster":
            stdout = io.StringIO()
            with contextlib.redirect_stdout(stdout):
                try:
                    exec(compile(text, f"{page}, block {number}", "exec"), names)
                except Exception as error:
                    pytest.fail(f"{page}: {type(error).__name__}: {error}\n{text}")
            printed = stdout.getvalue()
        elif language == "toml":
            Path("block.toml").write_text(text)
            read = hs.read_machines if mark == "machines" else hs.read_network_file
            read("block.toml")
        elif mark == "printed":
            n_lines = int(last.partition("| head -")[2])
            shown = of_commands.splitlines()[1 : n_lines + 1]  # `init` prints a line
            assert shown == text.splitlines(), f"{page}: block {number} is not printed"
        elif mark == "output":
            assert printed == text, f"{page}: block {number} is not the output"
    plt.close("all")


def test_the_pages_say_something():
    assert sum(language == "python" for page in PAGES for language, *_ in blocks_of(page)) >= 9
    assert [mark for language, mark, _ in blocks_of("README.md") if mark] == [
        "test", "output", "printed", "printed",
    ]  # fmt: skip
    first = next(text for language, _, text in blocks_of("README.md") if language == "bash")
    assert first.strip().endswith("-m experiments.sweep")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_commands_name_what_is_there(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]*)(?:#[^)]*)?\)", text):
        assert not target or ((ROOT / page).parent / target).exists(), f"{page}: {target}"
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", text):
        other = ((ROOT / page).parent / target if target else ROOT / page).read_text()
        heads = re.findall(r"^#+ (.*)$", other, re.M)
        anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
        assert anchor in anchors, f"{page}: {target}#{anchor}"
    for module in re.findall(r"python -m ((?:experiments|instances)\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), f"{page}: {module}"


@pytest.mark.parametrize("page", PAGES)
def test_prose_is_wrapped(page):
    prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    long = [line for line in prose.splitlines() if len(line) > 200 and line[:1] not in "|!"]
    assert not long, f"{page}: lines over 200 characters"


def test_readme_is_a_front_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_table_of_files_is_complete():
    """hypsolve/README.md names every file in the list of its package."""
    table = (ROOT / "hypsolve/README.md").read_text()
    table = table[table.index("**`hypsolve/`**") : table.index("## Glossary")]
    packages = re.split(r"^\*\*`([\w/]+/)`\*\*", table, flags=re.M)[1:]
    named = {
        f"{package.removeprefix('hypsolve/')}{name}"
        for package, contents in zip(packages[::2], packages[1::2], strict=True)
        for name in re.findall(r"^- `(\w+\.py)`", contents, re.M)
    }
    files = {
        str(path.relative_to(ROOT / "hypsolve"))
        for path in (ROOT / "hypsolve").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    told = {name for name in named if not name.endswith(("__init__.py", "__main__.py"))}
    assert told == files, f"missing {sorted(files - told)}, no file {sorted(told - files)}"


def test_where_hyperion_loses_is_what_the_rows_say(capsys):
    assert losses.main([]) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "results/README.md").read_text()
    assert losses.main(["--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 400


def test_picture_is_as_it_would_be_drawn_now(tmp_path):
    drawn, committed = tmp_path / "network.png", ROOT / "results/network.png"
    assert readme_picture.main(["--out", str(drawn)]) == 0
    version = f"Matplotlib version{matplotlib.__version__}".encode()
    if version not in committed.read_bytes():
        pytest.skip("the picture was drawn by another version of Matplotlib")
    now, then = (image.imread(path) for path in (drawn, committed))
    assert now.shape == then.shape
    assert np.sqrt(((now - then) ** 2).mean()) < 0.01


def test_provenance_ignores_notebooks_and_results():
    """An executed notebook, or a new row, does not mark the next sweep's sources as changed."""
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    from experiments.record import provenance

    before = provenance("test")["dirty"]
    path = ROOT / "notebooks" / ".executed-by-a-test.ipynb"
    try:
        path.write_text("{}")
        assert provenance("test")["dirty"] == before
    finally:
        path.unlink()

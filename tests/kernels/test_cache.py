"""The disk cache of kernels: fresh after any edit, apart from other caches, in any home."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from hypsolve.kernels import cache

KERNELS = Path(cache.__file__).parent
needs_jit = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the JIT is off")

CALLEE = """
from hypsolve.kernels.jit import inlined, kernel

@kernel
def called(x):
    return x + {called}

@inlined
def merged(x):
    return x + {merged}
"""
CALLER = """
from hypsolve.kernels.callee import called, merged
from hypsolve.kernels.jit import kernel

@kernel
def total(x):
    return called(x) + merged(x)

@kernel
def untouched(x):
    return x
"""
RUN = """
import json, logging, sys
logging.basicConfig(stream=sys.stderr, format="%(message)s")
from hypsolve.kernels.caller import total, untouched
answer = [total(1), untouched(5)]
stats = total.stats
print(json.dumps([answer, sum(stats.cache_hits.values()), stats.cache_path]))
"""


@pytest.fixture
def kernels(tmp_path):
    """A copy of the decorators, with two kernels in two files."""
    folder = tmp_path / "code" / "hypsolve" / "kernels"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    for name in ("__init__.py", "jit.py", "cache.py"):
        shutil.copy(KERNELS / name, folder)
    (folder / "callee.py").write_text(CALLEE.format(called=10, merged=100))
    (folder / "caller.py").write_text(CALLER)
    return folder


def run(kernels, code=RUN, **variables):
    """Run in a fresh process with its own home; return (answer, hits, folder) and the log."""
    home = kernels.parents[2]
    inherited = {k: v for k, v in os.environ.items() if k != "HYPSOLVE_CACHE_DIR"}
    environment = inherited | {
        "HOME": str(home / "home"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "TMPDIR": str(home / "tmp"),
        "PYTHONPATH": str(kernels.parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",  # edits within a second, of one size, are edits too
    }
    (home / "tmp").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, cwd=home,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@needs_jit
def test_an_edit_of_a_callee_in_another_file_recompiles_its_callers(kernels):
    (first, hits, folder), _ = run(kernels)
    assert (first, hits) == ([112, 5], 0)
    assert run(kernels)[0] == [first, 1, folder]  # loaded, not compiled
    (kernels / "callee.py").write_text(CALLEE.format(called=20, merged=100))
    (second, hits, other), _ = run(kernels)
    assert (second, hits) == ([122, 5], 0)
    assert other != folder
    (kernels / "callee.py").write_text(CALLEE.format(called=20, merged=300))
    assert run(kernels)[0][0] == [322, 5]
    (kernels / "callee.py").write_text(CALLEE.format(called=10, merged=100))
    assert run(kernels)[0] == [first, 1, folder]  # the old version is still there


@needs_jit
def test_the_cache_of_other_kernels_stays_untouched(kernels, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (tmp_path / "mine.py").write_text(
        "import numba\n@numba.njit(cache=True)\ndef twice(x):\n    return 2 * x\n"
    )
    code = "import os, numba, mine; mine.twice(2)\n" + RUN + (
        "\nassert os.environ['NUMBA_CACHE_DIR'] == numba.config.CACHE_DIR\n"
    )  # fmt: skip
    search = f"{kernels.parents[1]}{os.pathsep}{tmp_path}"
    (_, _, folder), _ = run(kernels, code, NUMBA_CACHE_DIR=str(theirs), PYTHONPATH=search)
    files = {path.name.partition("-")[0] for path in theirs.rglob("*.nb*")}
    assert files == {"mine.twice"}
    assert theirs not in Path(folder).parents


@needs_jit
def test_settings_that_change_machine_code_have_folders_of_their_own(kernels):
    plain = run(kernels)[0][2]
    checked = run(kernels, NUMBA_BOUNDSCHECK="1")[0][2]
    assert plain != checked


@needs_jit
def test_a_chosen_folder_is_used(kernels, tmp_path):
    chosen = tmp_path / "chosen"
    (_, _, folder), logged = run(kernels, HYPSOLVE_CACHE_DIR=str(chosen))
    assert Path(folder).parent == chosen
    assert logged == ""


@needs_jit
def test_without_a_home_the_temporary_directory_takes_over_with_one_line(kernels, tmp_path):
    (tmp_path / "file").touch()  # no folder can be made below it, not even by root
    (_, _, folder), logged = run(kernels, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert Path(folder).parent.parent == tmp_path / "tmp"
    assert stat.S_IMODE(Path(folder).parent.stat().st_mode) & 0o077 == 0
    assert len(logged.splitlines()) == 1
    assert "compiled kernels are kept in" in logged
    (_, hits, _), logged = run(kernels, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert (hits, logged) == (1, "")  # nothing was compiled: nothing to say


@needs_jit
def test_without_any_folder_kernels_are_compiled_with_one_line(kernels, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    user = os.getuid() if hasattr(os, "getuid") else "user"
    (tmp_path / "tmp" / f"hypsolve-kernels-{user}").touch()
    (answer, _, folder), logged = run(kernels, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert (answer, folder) == ([112, 5], None)
    assert len(logged.splitlines()) == 1
    assert "compiled kernels are not kept" in logged


@needs_jit
def test_a_folder_that_cannot_be_written_is_still_read(kernels, tmp_path):
    """A container image is such a case: its kernels were compiled when it was built."""
    folder = Path(run(kernels)[0][2])
    code = (
        "import hypsolve.kernels.cache as c, pathlib\n"
        "make = c._make_writable\n"
        "def refuse(folder):\n"
        "    if 'cache' in pathlib.Path(folder).parts:\n"
        "        raise OSError('read-only file system')\n"
        "    make(folder)\n"
        "c._make_writable = refuse\n"
    )
    (answer, hits, written), logged = run(kernels, code + RUN)
    assert (answer, hits, logged) == ([112, 5], 1, "")
    assert Path(written) != folder


@needs_jit
def test_damaged_files_are_compiled_anew(kernels):
    (answer, _, folder), _ = run(kernels)
    for path in Path(folder).glob("*.nbc"):
        path.write_bytes(path.read_bytes()[:-1])
    assert run(kernels)[0][:2] == [answer, 0]
    assert run(kernels)[0][:2] == [answer, 1]


@needs_jit
def test_nothing_is_kept_once_a_source_was_edited_under_a_running_process(kernels):
    code = (
        "import pathlib, hypsolve.kernels.cache as c\n"
        "path = c.KERNELS / 'callee.py'\n"
        "path.write_text(path.read_text().replace('x + 10\\n', 'x + 20000\\n'))\n"
    )
    (answer, _, folder), _ = run(kernels, code + RUN)
    assert answer == [20102, 5]
    assert not list(Path(folder).glob("*.nbc"))


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
def test_a_temporary_folder_that_others_may_write_is_refused(tmp_path, monkeypatch):
    """Reading a compiled kernel runs a pickle."""
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = cache._temporary_folder()
    assert cache._temporary_folder() == folder
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write"):
        cache._temporary_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(OSError):
        cache._temporary_folder()


def test_old_folders_are_removed_and_nothing_else(tmp_path):
    now_s = 1.7e9

    def folder(name, days, files=("a.nbc",)):
        path = tmp_path / name
        path.mkdir()
        for file in files:
            (path / file).touch()
        os.utime(path, (now_s - 86400 * days,) * 2)
        return path

    mine = folder(f"py311-{0:024x}", 99)
    recent = [folder(f"py311-{n:024x}", n / 10) for n in range(1, 10)]  # all within a day
    kept = folder(f"py311-{20:024x}", 2)  # the tenth
    crowded_out = folder(f"py311-{21:024x}", 3)
    stale = folder(f"py311-{22:024x}", 31, ("a.nbc", "b.nbc.0123.tmp", "hypsolve.lock"))
    foreign = folder("py311-of-somebody", 99)
    with_other_files = folder(f"py311-{23:024x}", 99, ("a.nbc", "notes.txt"))
    cache.prune(tmp_path, mine.name, now_s)
    assert [path.exists() for path in (mine, *recent, kept, foreign)] == [True] * 12
    assert not crowded_out.exists()
    assert not stale.exists()
    assert [path.name for path in with_other_files.iterdir()] == ["notes.txt"]
    cache.prune(tmp_path / "missing", mine.name)


def test_the_folder_follows_the_conventions_of_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("HYPSOLVE_CACHE_DIR", raising=False)
    monkeypatch.setattr(cache.sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored
    assert cache.user_folder() == tmp_path / ".cache" / "hypsolve" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache.user_folder() == tmp_path / "x" / "hypsolve" / "kernels"
    monkeypatch.setenv("HYPSOLVE_CACHE_DIR", str(tmp_path / "own"))
    assert cache.user_folder() == tmp_path / "own"

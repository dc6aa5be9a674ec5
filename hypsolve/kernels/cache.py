"""Disk cache of the compiled kernels.

numba's own cache (``cache=True``) checks the source file of a kernel, but not the files of the
kernels that it calls. After an edit of a callee in another file it would load stale machine
code. It also numbers its files through an index, which two machines that share a folder may
write at once. hypsolve therefore stores its kernels itself:

- *One folder per version.* The name of the folder is a digest of every source file of
  `hypsolve.kernels`, of the versions of Python, numba and llvmlite, of the CPU, and of those
  settings of numba that change machine code. An edit of any kernel leads to another folder.
- *One file per kernel and signature*, with a checksum. It is written to a temporary file next
  to its final path and then renamed. Processes and machines that share the folder
  cannot mix up each other's files.
- *Old folders are removed* when a new one is filled: those unused for 30 days, or for one day
  if at least `KEPT` other folders have been used since then.

The folder lies in ``HYPSOLVE_CACHE_DIR`` if that is set, else in the user's cache directory:
``XDG_CACHE_HOME`` or ``~/.cache`` (on macOS ``~/Library/Caches``, on Windows ``LOCALAPPDATA``).
If hypsolve cannot write there, a private folder in the temporary directory takes its place, and
one warning says so when a kernel is compiled. A read-only folder that holds compiled kernels,
such as one in a container image, is still read. ``NUMBA_CACHE_DIR``, and the caches of other
kernels, are not touched.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import platform
import re
import stat
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite  # type: ignore[import-untyped]
import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps

KERNELS = Path(__file__).parent
SETTINGS = (  # of `numba.config`, those that change machine code
    "OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "DEBUG_NRT", "NRT_STATS", "ENABLE_AVX",
    "LOOP_VECTORIZE", "SLP_VECTORIZE", "DISABLE_INTEL_SVML", "USING_SVML", "ENABLE_PROFILING",
    "EXTEND_VARIABLE_LIFETIMES", "LLVM_REFPRUNE_PASS", "LLVM_REFPRUNE_FLAGS",
)  # fmt: skip
KEPT = 10  # folders that are kept for `DAYS`; others only for a day
DAYS = 30
CHECKSUM_BYTES = 32
_FOLDER = re.compile(r"py\d+-[0-9a-f]{24}")
_logger = logging.getLogger("hypsolve")


# --- the version ------------------------------------------------------------------------------


def _stamps() -> tuple[tuple[str, int, int], ...]:
    """Name, time of the last change, and size of every source file of the kernels."""
    with contextlib.suppress(OSError):
        files = sorted(KERNELS.rglob("*.py"))
        return tuple((str(f), (s := f.stat()).st_mtime_ns, s.st_size) for f in files)
    return ()


def _digest_of_sources() -> bytes | None:
    """Digest of every source file of the kernels; None if there are none to be read."""
    try:
        files = sorted(KERNELS.rglob("*.py"))
        parts = [(str(f.relative_to(KERNELS)).encode(), f.read_bytes()) for f in files]
    except OSError:
        return None
    digest = hashlib.sha256()
    for name, source in parts:
        digest.update(b"%d %d %s %s" % (len(name), len(source), name, source))
    return digest.digest() if parts else None


# Taken when the first kernel is imported: it describes the code that this process runs.
_SOURCES, _STAMPS = _digest_of_sources(), _stamps()


def _is_as_imported() -> bool:
    """Return False once a source file has changed, so that the digest may be of other code."""
    return _SOURCES is not None and _stamps() == _STAMPS


@functools.cache
def _folder_name() -> str:
    """Name of the folder for this version of the kernels, of numba, and of this CPU."""
    version = (
        _SOURCES, platform.python_implementation(), sys.version_info[:2],
        getattr(sys, "abiflags", ""), numba.__version__, llvmlite.__version__,
        cpu_target.target_context.codegen().magic_tuple(),
        tuple(getattr(numba.config, name, None) for name in SETTINGS),
    )  # fmt: skip
    digest = hashlib.sha256(repr(version).encode()).hexdigest()[:24]
    return f"py{sys.version_info[0]}{sys.version_info[1]}-{digest}"


# --- the folder -------------------------------------------------------------------------------


class Folders(NamedTuple):
    """Where compiled kernels are read, where they are written, and what a user should know."""

    read: tuple[Path, ...]
    write: Path | None
    remark: str


def user_folder() -> Path:
    """Return the folder of hypsolve's kernel caches in the user's cache directory.

    Raises
    ------
    RuntimeError
        If the user has no home directory.
    """
    chosen = os.environ.get("HYPSOLVE_CACHE_DIR", "")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        variable, default = "LOCALAPPDATA", ("AppData", "Local")
    elif sys.platform == "darwin":
        variable, default = "XDG_CACHE_HOME", ("Library", "Caches")
    else:
        variable, default = "XDG_CACHE_HOME", (".cache",)
    base = os.environ.get(variable, "")
    if not os.path.isabs(base):  # the XDG specification: relative paths are ignored
        base = os.path.join(Path.home(), *default)
    return Path(base) / "hypsolve" / "kernels"


def _temporary_folder() -> Path:
    """Return this user's folder in the temporary directory; nobody else may write to it.

    Compiled kernels are pickles, and reading a pickle runs it.

    Raises
    ------
    OSError
        If there is no such directory, or another user made one of that name.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"hypsolve-kernels-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(folder)
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise PermissionError(f"{folder}: others may write to it")
    return folder


def _make_writable(folder: Path) -> None:
    """Create a folder and mark it as used now; raise OSError if it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    os.utime(folder)


@functools.cache
def folders() -> Folders:
    """Choose the folders of this process, once."""
    if _SOURCES is None:
        return Folders((), None, "the kernels have no source files to be told apart by")
    read: list[Path] = []
    why = ""
    for root in (user_folder, _temporary_folder):
        try:
            folder = root() / _folder_name()
            if folder.is_dir():
                read.append(folder)
            _make_writable(folder)
        except (OSError, RuntimeError) as error:
            why = why or str(error)
            continue
        remark = f"kept in {folder} for now, because of {why}" if why else ""
        return Folders(tuple(dict.fromkeys((*read, folder))), folder, remark)
    return Folders(tuple(read), None, f"not kept for the next process, because of {why}")


@functools.cache
def _remark_once(remark: str) -> None:
    _logger.warning(
        "compiled kernels are %s; HYPSOLVE_CACHE_DIR can name a folder that is writable", remark
    )


def prune(root: Path, keep: str, now_s: float | None = None) -> None:
    """Remove folders of old versions from `root`; see the docstring of this module.

    Files are removed one by one, and only those that this module writes. Another process that
    still uses such a folder compiles anew.
    """
    now_s = time.time() if now_s is None else now_s
    with contextlib.suppress(OSError):
        old = [
            (entry.stat(follow_symlinks=False).st_mtime, Path(entry.path))
            for entry in os.scandir(root)
            if entry.is_dir(follow_symlinks=False) and _FOLDER.fullmatch(entry.name)
            and entry.name != keep
        ]  # fmt: skip
        for rank, (used_s, folder) in enumerate(sorted(old, reverse=True)):
            days = (now_s - used_s) / 86400
            if days > DAYS or (days > 1 and rank >= KEPT):
                _remove(folder)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.is_file(follow_symlinks=False) and entry.name.endswith(
                (".nbc", ".tmp", ".lock")
            ):
                os.unlink(entry.path)
        folder.rmdir()


# --- the files --------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    """Return what `_write` wrote; None if the file is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, payload = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
    if hashlib.sha256(payload).digest() != checksum:
        return None
    return pickle.loads(payload)


def _write(path: Path, value: Any) -> None:
    payload = dumps(value)
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(hashlib.sha256(payload).digest() + payload)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


class KernelCache(NullCache):
    """Disk cache of one kernel; numba calls it where it compiles a signature."""

    n_missed = 0  # kernels of this process that were not found on disk, of all caches

    def __init__(self, function: Any) -> None:
        self._function = function

    @property
    def cache_path(self) -> str | None:
        """Folder that the kernel is written to; None if there is no writable one."""
        folder = folders().write
        return None if folder is None else str(folder)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled kernel of a signature, or None."""
        target_context.refresh()
        if not _is_as_imported():
            return None
        name = self._file_name(sig)
        for folder in folders().read:
            stored = _read(folder / name)
            if stored is not None and stored[0] == sig:
                return CompileResult._rebuild(target_context, *stored[1])
        KernelCache.n_missed += 1
        return None

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Store a compiled kernel; without a writable folder, warn once."""
        chosen = folders()
        if chosen.remark:
            _remark_once(chosen.remark)
        is_portable = not cres.library.has_dynamic_globals  # such as addresses of this process
        is_portable = is_portable and all(loop.can_cache for loop in cres.lifted)
        if chosen.write is None or not is_portable or not _is_as_imported():
            return
        is_new = not any(chosen.write.glob("*.nbc"))
        try:
            chosen.write.mkdir(parents=True, exist_ok=True)  # it may have been pruned
            _write(chosen.write / self._file_name(sig), (sig, cres._reduce()))
        except OSError as error:
            _remark_once(f"not kept for the next process, because of {error}")
            return
        if is_new:
            prune(chosen.write.parent, chosen.write.name)

    def _file_name(self, sig: Any) -> str:
        function = self._function
        cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
        key = (
            function.__module__, function.__qualname__, function.__code__.co_firstlineno,
            function.__code__.co_code, dumps(cells) if cells else b"", str(sig),
        )  # fmt: skip
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:24]
        return f"{function.__module__.rpartition('.')[2]}.{function.__name__}-{digest}.nbc"

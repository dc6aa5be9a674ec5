"""Keep the spurious error messages of OR-Tools' SCIP off the terminal."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

# Starts of the two lines that OR-Tools 9.15 prints, and the words that identify each.
SPURIOUS_LINES = {
    b"[scip_event.c:": b"SCIPcatchEvent does not support variable or row change events",
    b"[gscip_event_handler.cc:": b"Error <-9> in function call",
}


@contextlib.contextmanager
def hide_spurious_scip_errors() -> Iterator[None]:
    """Filter the two spurious ERROR lines of SCIP out of file descriptor 2.

    OR-Tools 9.15 prints them whenever a solve by SCIP can be interrupted; see `partition_scip`.
    It writes to the file descriptor, where Python cannot intercept it. Inside the context, file
    descriptor 2 is therefore a pipe, and a thread forwards everything but these two lines as it
    comes. File descriptors belong to the whole process, so only a program should use this
    context, not a library; and only one thread at a time.

    Examples
    --------
    >>> import hypsolve as hs
    >>> instance = hs.Instance.from_tables([[[1.0] * 4]], [1] * 4, [[(0, 9)], [(0, 9)]])
    >>> with hide_spurious_scip_errors():
    ...     result = hs.solve(instance, "partition_scip")
    >>> result.objective_s
    2.0
    """
    if sys.stderr is None:  # the process was started without file descriptor 2
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    readable, writable = os.pipe()
    os.dup2(writable, 2)
    os.close(writable)

    def write(data: bytes) -> None:
        while data:
            data = data[os.write(terminal, data) :]

    forwarder = threading.Thread(target=_forward, args=(readable, write), daemon=True)
    forwarder.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)  # closes the pipe, which ends the thread
        forwarder.join()
        os.close(terminal)
        os.close(readable)


def _forward(readable: int, write: Callable[[bytes], None]) -> None:
    """Copy a pipe to `write` until its end, without the spurious lines."""
    held = b""
    while data := os.read(readable, 2**16):
        passed, held = _without_spurious(held + data)
        write(passed)
    write(held)


def _without_spurious(data: bytes) -> tuple[bytes, bytes]:
    """Split data into bytes to pass on and an unfinished line that may be spurious."""
    passed = b""
    while True:
        found = [(at, start) for start in SPURIOUS_LINES if (at := data.find(start)) >= 0]
        if not found:
            break
        at, start = min(found)
        end = data.find(b"\n", at) + 1
        if not end:
            return passed + data[:at], data[at:]
        line = data[at:end]
        passed += data[:at] + (b"" if SPURIOUS_LINES[start] in line else line)
        data = data[end:]
    at = max(data.rfind(b"["), 0)
    if any(start.startswith(data[at:]) for start in SPURIOUS_LINES):
        return passed + data[:at], data[at:]
    return passed + data, b""

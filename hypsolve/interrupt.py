"""`stop_in_one_line`: Ctrl-C while the command loads ends it without a traceback."""

import os
import sys
from pathlib import PurePath
from types import TracebackType

COMMAND = "hypsolve"


def stop_in_one_line() -> None:
    """End this process with one line and exit code 130 at an interrupt that nobody handles.

    Only the command does so: its modules take seconds to load, before it can handle anything.
    Other programs that import hypsolve keep their own way to end.
    """
    by_module = sys.argv[:1] == ["-m"] and "hypsolve.cli" in sys.orig_argv
    if not by_module and PurePath(sys.argv[0] if sys.argv else "").stem != COMMAND:
        return
    others = sys.excepthook

    def stop(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            others(kind, error, trace)
            return
        print("hypsolve: stopped", file=sys.stderr, flush=True)
        os._exit(130)

    sys.excepthook = stop


stop_in_one_line()

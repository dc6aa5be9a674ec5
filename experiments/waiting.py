"""Lines that a long wait prints, and durations for people."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


def duration(seconds: float) -> str:
    """Format seconds as minutes and seconds, as in 1:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def every(period_s: float, text: str | Callable[[], str]) -> Iterator[None]:
    """Print `text` and the seconds so far each `period_s`, until the block ends.

    A function makes the text anew each time; nothing is printed where it returns "".
    """
    began_s = time.perf_counter()
    ended = threading.Event()

    def say() -> None:
        while not ended.wait(period_s):
            line = text if isinstance(text, str) else text()
            if line:
                print(f"{line} ({duration(time.perf_counter() - began_s)} gone)", flush=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

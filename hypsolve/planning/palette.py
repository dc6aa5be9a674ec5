"""Colours and text sizes of the figures of a plan."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hypsolve.problem.optional import optional

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # Okabe-Ito
INK, MUTED, FAINT, GREY = "#000000", "#4a5460", "#d5dae0", "#8c959f"
RC = {
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
}
"""Matplotlib settings: no text is smaller than 8 pt."""


@contextmanager
def drawing(settings: Mapping[str, Any]) -> Iterator[None]:
    """Apply Matplotlib settings while figures are drawn through pyplot.

    The back end of a notebook is loaded with the first figure, and turns interactive drawing
    on. Leaving Matplotlib's own context would turn it off again, and later figures would not
    be shown. Interactive drawing therefore stays as it was at the end of the context.
    """
    pyplot = optional("matplotlib.pyplot")
    with pyplot.rc_context(settings):
        yield
        is_interactive = pyplot.isinteractive()
    optional("matplotlib").interactive(is_interactive)


def short_name(name: str, n_letters: int) -> str:
    """Cut a name to at most `n_letters` letters."""
    return name if len(name) <= n_letters else f"{name[: max(n_letters - 1, 1)]}…"

"""Names of GPUs near a name or near some figures, for messages about unknown GPUs."""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hypsolve.problem.deployment import GpuProfile
from hypsolve.problem.units import GIB

N_NEAREST = 3
MAX_FIGURE = 1e100
MIN_LIKENESS = 0.5  # of names, by difflib
_MAKERS = re.compile(r"nvidia|geforce|amd|radeon|intel|tesla|apple|gpu|graphics")
_BARE = re.compile(r"[A-Za-z0-9_-]+")  # a key of TOML that needs no quotes


def near_names(name: str, gpus: Iterable[str]) -> list[str]:
    """Return up to `N_NEAREST` names like `name`, the likeliest first.

    Case, punctuation and the maker's name do not count: ``M2 Max`` is ``apple-m2-max``.

    Examples
    --------
    >>> near_names("NVIDIA GeForce RTX 4090", ["rtx-4080", "rtx-4090", "t4"])
    ['rtx-4090', 'rtx-4080']
    """
    wanted = _letters(name[:60])
    likeness = {gpu: _likeness(wanted, _letters(gpu)) for gpu in gpus}
    near = [gpu for gpu, like in likeness.items() if like >= MIN_LIKENESS]
    return sorted(near, key=lambda gpu: -likeness[gpu])[:N_NEAREST]


def _letters(name: str) -> str:
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return _MAKERS.sub("", letters) or letters


def _likeness(wanted: str, letters: str) -> float:
    ratio = difflib.SequenceMatcher(None, wanted, letters).ratio()
    if len(wanted) > 1 and wanted in letters:
        return 2 + ratio  # a part of the name, such as a100
    return ratio + (len(letters) > 1 and letters in wanted)


def near_figures(figures: Mapping[str, float], gpus: Mapping[str, GpuProfile]) -> list[str]:
    """Return the `N_NEAREST` GPUs whose figures differ least, as ratios.

    Parameters
    ----------
    figures : mapping
        Some of ``tflops``, ``gb_per_s`` and ``memory_gib``, which must be positive. The first
        two are rates that are reached, not those of a datasheet.
    gpus : mapping of str to GpuProfile

    Examples
    --------
    >>> from hypsolve import catalog
    >>> near_figures({"tflops": 150, "gb_per_s": 900, "memory_gib": 24}, catalog.gpus())[0]
    'rtx-4090'
    """

    def distance(gpu: str) -> float:
        own = figures_of(gpus[gpu])
        return sum(abs(math.log(figures[key] / own[key])) for key in figures)

    return sorted(gpus, key=distance)[:N_NEAREST]


def figures_of(gpu: GpuProfile) -> dict[str, float]:
    """Return the figures of a GPU in the units of a network file."""
    figures = {
        "t0_us": gpu.t0_s * 1e6,
        "tflops": gpu.flops_per_s * 1e-12,
        "gb_per_s": gpu.bytes_per_s * 1e-9,
        "memory_gib": gpu.memory_bytes / GIB,
    }
    return {key: float(f"{value:.3g}") for key, value in figures.items()}


def usable_figures(given: Any) -> dict[str, float]:
    """Return the figures among a user's values, as far as they are positive numbers."""
    if not isinstance(given, Mapping):
        return {}
    keys = ("tflops", "gb_per_s", "memory_gib")
    numbers = {key: given[key] for key in keys if type(given.get(key)) in (int, float)}
    return {key: float(value) for key, value in numbers.items() if 0 < value <= MAX_FIGURE}


def hint_by_figures(given: Any, gpus: Mapping[str, GpuProfile]) -> str:
    """Return a hint to the GPUs nearest to a user's incomplete table of figures, or nothing."""
    figures = usable_figures(given)
    if not figures or all(
        key in given for key in ("t0_us", "tflops", "gb_per_s", "memory_gib")
    ):
        return ""
    near = near_figures(figures, gpus)
    own = ", ".join(f"{key} = {value:g}" for key, value in figures_of(gpus[near[0]]).items())
    return f"; nearest by {', '.join(figures)}: {near[0]} ({own}), {', '.join(near[1:])}"


def own_line(name: str, gpu: GpuProfile) -> str:
    """Return the line of a network file that defines a GPU, with the figures of another."""
    key = name if _BARE.fullmatch(name) else json.dumps(name)
    figures = ", ".join(f"{field} = {value:g}" for field, value in figures_of(gpu).items())
    return f"gpus.{key} = {{{figures}}}"


def unknown_gpu(
    name: object, gpus: Mapping[str, GpuProfile], figures: Mapping[str, float] | None = None
) -> str:
    """Return the message about an unknown GPU, in one line.

    It names the GPUs that are nearest by name and by `figures`, and shows how to define a GPU.
    """
    text = name if isinstance(name, str) else ""
    near = near_names(text, gpus) if text else []
    message = f"unknown gpu {name!r:.60}; "
    if near:
        message += f"did you mean {near[0]}? "
    if near[1:]:
        message += f"or {', '.join(near[1:])}? "
    by_figures = near_figures(figures, gpus) if figures else []
    if by_figures:
        message += f"nearest by {', '.join(figures or ())}: {', '.join(by_figures)}; "
    message += f"hypsolve gpus lists all {len(gpus)}"
    if not text or not text.isprintable() or len(text) > 60:
        return message
    like = gpus[(near + by_figures or ["rtx-4090"])[0]]
    return (
        f"{message}; for a GPU of your own, put a line such as {own_line(text, like)}, with the"
        " rates that it reaches, before the first table of the file"
    )

"""Profile files: a GPU profile in TOML, with what it was fitted to and how true it is.

The first keys are those of a table ``[gpus.NAME]`` of a network file, and a name. The tables
below them are for people and for later comparisons: 95 % intervals, errors, provenance.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NotRequired

from hypsolve.catalog.datasheets import ceiling
from hypsolve.formats.network_toml_types import GpuTable, Key
from hypsolve.formats.toml_tables import checked_table, read_toml
from hypsolve.problem import validation as valid
from hypsolve.problem.files import checked_path, replacing
from hypsolve.problem.network import GpuProfile
from hypsolve.problem.profile_errors import NAMES, ProfileErrors
from hypsolve.problem.units import GIB, gib_to_bytes

PROFILE_ENDING = ".toml"
HELD_OUT = "held out"  # ends the name of errors of what a profile was not fitted to
ROUNDED = 1.001  # files have four digits
_BARE = re.compile(r"[A-Za-z0-9_-]+")  # a key of TOML that needs no quotes
_KEYS = {
    "t0_s": ("t0_us", 1e6),
    "flops_per_s": ("tflops", 1e-12),
    "bytes_per_s": ("gb_per_s", 1e-9),
}
"""Key of each rate in files, and the factor of its unit."""


class ProfileTable(GpuTable):
    """A profile file, as `hypsolve measure` and `hypsolve calibrate` write it."""

    name: Annotated[str, Key("Name of the GPU or machine.")]
    intervals: NotRequired[
        Annotated[
            dict[str, tuple[float, float]],
            Key("95 % intervals of the numbers above, in their units, by key."),
        ]
    ]
    errors: NotRequired[
        Annotated[
            dict[str, dict[str, float]],
            Key("Mean absolute relative errors, by what they are about; 0.05 is 5 %."),
        ]
    ]
    measured: NotRequired[
        Annotated[
            dict[str, str | int | float],
            Key("Machine, versions, date, files: what the numbers were fitted to."),
        ]
    ]


@dataclass(frozen=True, slots=True)
class MeasuredProfile:
    """A GPU profile with its intervals, its errors, and its provenance.

    Attributes
    ----------
    gpu : GpuProfile
    intervals : mapping of str to (float, float)
        95 % intervals of attributes of the profile, in their units.
    errors : mapping of str to mapping of str to float
        Mean absolute relative errors by what they are about; 0.05 is 5 %.
    measured : mapping of str to str or number
        Machine, versions, date, files.
    """

    gpu: GpuProfile
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    measured: Mapping[str, str | int | float] = field(default_factory=dict)


def profile_of(name: str, entry: GpuTable) -> GpuProfile:
    """Return the profile of a GPU that a file defines by its own numbers.

    Raises
    ------
    ValueError
        If it is a fitted profile, and a rate is above the data sheet of its GPU.
    """
    _check_ceiling(name, entry)
    return GpuProfile(
        name=name,
        t0_s=entry["t0_us"] * 1e-6,
        flops_per_s=entry["tflops"] * 1e12,
        bytes_per_s=entry["gb_per_s"] * 1e9,
        memory_bytes=gib_to_bytes(entry["memory_gib"]),
        power_w=entry.get("power_w", 0.0),
        overlaps=entry.get("overlaps", True),
        source=entry.get("source", ""),
    )


def _check_ceiling(name: str, entry: GpuTable) -> None:
    """Raise if a rate of a fitted profile is above the data sheet of its GPU, if known."""
    measured = entry.get("measured")
    if not isinstance(measured, dict):
        return
    of_names = (ceiling(str(each)) for each in (measured.get("started_from", ""), name))
    most = next((each for each in of_names if each is not None), None)
    if most is None:
        return
    for key, limit in (
        ("tflops", most.flops_per_s / 1e12),
        ("gb_per_s", most.bytes_per_s / 1e9),
    ):
        value = entry.get(key)
        if isinstance(value, int | float) and value > limit * ROUNDED:
            raise ValueError(
                f"profile {name!r}: {key} must be at most {limit:g}, the peak of {most.gpu} by"
                f" its data sheet, got {value:g}; calibrate it anew"
            )


def read_gpu_profile(path: str | os.PathLike[str]) -> GpuProfile:
    r"""Read the GPU profile of a profile file.

    Parameters
    ----------
    path : str or path
        TOML with ``name``, the keys of a table ``[gpus.NAME]`` of a network file, and the
        tables ``intervals``, ``errors`` and ``measured``, which are checked alone. The JSON
        Schema is ``hypsolve schema profile``.

    Returns
    -------
    GpuProfile

    Raises
    ------
    ValueError, TypeError
        If the file is invalid; the message names the file, the key, the rule and the value.
    OSError
        If the file does not exist or cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "desk.toml")
    ...     _ = path.write_text(
    ...         "name = 'desk'\nt0_us = 40\ntflops = 0.2\ngb_per_s = 20\nmemory_gib = 16"
    ...     )
    ...     read_gpu_profile(path).bytes_per_s
    20000000000.0
    """
    path = checked_path("read_gpu_profile", path)
    entry = checked_table(str(path), ProfileTable, read_toml(path))
    _check_tables(str(path), entry)
    gpu = profile_of(valid.name(str(path), entry["name"]), entry)
    return replace(gpu, errors=_errors_in(entry))


def _errors_in(entry: ProfileTable) -> ProfileErrors | None:
    """Return the errors of what a profile was not fitted to; None if a person wrote it."""
    errors, measured = entry.get("errors", {}), entry.get("measured", {})
    if not measured:
        return None
    held_out = [
        parts
        for about, parts in errors.items()
        if about == HELD_OUT or about.endswith(f", {HELD_OUT}")
    ]
    n_runs = measured.get("runs", 0)
    return ProfileErrors(
        **{name: _mean(parts.get(name) for parts in held_out) for name in NAMES},  # type: ignore[arg-type]
        n_runs=n_runs if isinstance(n_runs, int) and n_runs >= 0 else 0,
        **{key: str(measured.get(key, "")) for key in ("model", "runtime", "file")},  # type: ignore[arg-type]
    )


def _mean(errors: Iterable[float | None]) -> float | None:
    """Return the mean of the errors that are known; None if none is."""
    known = [error for error in errors if error is not None and 0 <= error < math.inf]
    return sum(known) / len(known) if known else None


def _check_tables(owner: str, entry: ProfileTable) -> None:
    """Raise if a table of intervals, errors or provenance holds another kind of value."""
    for key, bounds in entry.get("intervals", {}).items():
        if not (isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_number, bounds))):
            raise TypeError(
                f"{owner}: intervals.{key} must be a list of two numbers, got {bounds!r:.60}"
            )
    for about, parts in entry.get("errors", {}).items():
        if not (isinstance(parts, dict) and all(map(_is_number, parts.values()))):
            raise TypeError(
                f"{owner}: errors.{about} must be a table of numbers, got {parts!r:.60}"
            )
    for key, value in entry.get("measured", {}).items():
        if not (isinstance(value, str) or _is_number(value)):
            raise TypeError(
                f"{owner}: measured.{key} must be text or a number, got {value!r:.60}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_gpu_profile(path: str | os.PathLike[str], profile: MeasuredProfile) -> None:
    """Write a profile file.

    Raises
    ------
    OSError
        If the file cannot be written; a file that was there keeps its content.
    """
    path = checked_path("write_gpu_profile", path)
    with replacing(path, "a GPU profile") as file:
        file.write(profile_text(profile, path.name))


def formula(overlaps: bool) -> str:
    """Return the seconds of a block in a step, by the keys of a file.

    Examples
    --------
    >>> formula(overlaps=False)
    't0 + FLOPs / tflops + bytes / gb_per_s'
    """
    if overlaps:
        return "t0 + max(FLOPs / tflops, bytes / gb_per_s)"
    return "t0 + FLOPs / tflops + bytes / gb_per_s"


def profile_text(profile: MeasuredProfile, file: str = "this-file.toml") -> str:
    """Return the text of a profile file."""
    gpu = profile.gpu
    lines = [
        "# A GPU profile for a network file:",
        f"#     nodes = [{{gpu = {_text(file)}}}]",
        f"# In one step, a block takes {formula(gpu.overlaps)}.",
        f"name = {_text(gpu.name)}",
        *(f"{key} = {_number(getattr(gpu, f) * unit)}" for f, (key, unit) in _KEYS.items()),
        f"memory_gib = {_number(gpu.memory_bytes / GIB)}",
    ]
    if not gpu.overlaps:
        lines.append("overlaps = false")
    if gpu.power_w:
        lines.append(f"power_w = {_number(gpu.power_w)}")
    if gpu.source:
        lines.append(f"source = {_text(gpu.source)}")
    if profile.intervals:
        lines += ["", "[intervals]  # 95 %"]
        for name, (low, high) in profile.intervals.items():
            key, unit = _KEYS.get(name, (name, 1.0))
            lines.append(f"{key} = [{_number(low * unit)}, {_number(high * unit)}]")
    if profile.errors:
        lines += ["", "[errors]  # mean absolute relative errors; 0.05 is 5 %"]
        for about, parts in profile.errors.items():
            known = {k: v for k, v in parts.items() if math.isfinite(v)}
            inner = ", ".join(f"{_key(k)} = {_number(v, 3)}" for k, v in known.items())
            lines.append(f"{_key(about)} = {{{inner}}}")
    if profile.measured:
        lines += ["", "[measured]"]
        lines += [f"{_key(key)} = {_value(value)}" for key, value in profile.measured.items()]
    return "\n".join(lines) + "\n"


def _number(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}g}" if abs(value) < 1e16 else f"{value:.{digits - 1}e}"


def _text(value: str) -> str:
    return json.dumps(value)  # a basic string of TOML has the escapes of JSON


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _value(value: str | int | float) -> str:
    return _text(value) if isinstance(value, str) else str(value)

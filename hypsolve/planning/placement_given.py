"""Record what a placement was made for, field by field, and find what differs from it today."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from hypsolve.problem.placement import PlacementProblem

LONG = 60  # letters, from which a digest stands for a value
MAX_NAMED = 4  # fields that are named


class GivenTable(TypedDict):
    """Entries that are alike, such as machines, and their fields."""

    entries: list[str]
    fields: dict[str, str]


def given_of(problem: PlacementProblem) -> list[GivenTable]:
    """Return the fields of model, sites, links and machines as text; equal entries share them.

    A value of many letters is written as its digest.

    Examples
    --------
    >>> import hypsolve as hs
    >>> lan = hs.Link(bytes_per_s=1.25e9, latency_s=1e-4)
    >>> boxes = [hs.Node(name=name, gpu=hs.gpu("rtx-4090")) for name in ("a", "b")]
    >>> problem = hs.PlacementProblem(
    ...     model=hs.model("llama-3-8b"), requests=hs.Requests([0.0], [512], [128]),
    ...     fleet=hs.Fleet(
    ...         name="lab", sites=(hs.Site(name="room", link=lan),),
    ...         machines=tuple(hs.Machine(node=box, site="room") for box in boxes),
    ...     ),
    ... )
    >>> given_of(problem)[-1]["entries"], given_of(problem)[-1]["fields"]["gpu.name"]
    (['machine a', 'machine b'], "'RTX 4090'")
    """
    rows: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for entry, fields in _entries(problem):
        rows[tuple(fields.items())].append(entry)
    return [{"entries": entries, "fields": dict(row)} for row, entries in rows.items()]


def differences(before: Sequence[GivenTable], problem: PlacementProblem) -> list[str]:
    """Return the fields of entries of the same name that differ, each with its two values.

    Parameters
    ----------
    before : sequence of GivenTable
        As `given_of` returned it for an earlier problem. Empty: nothing is known of it.
    problem : PlacementProblem
    """
    if not before:
        return []
    old = {entry: row["fields"] for row in before for entry in row["entries"]}
    new = {entry: row["fields"] for row in given_of(problem) for entry in row["entries"]}
    words = []
    for entry in old.keys() & new.keys():
        for name in sorted(old[entry].keys() | new[entry].keys()):
            was, now = old[entry].get(name, "not known"), new[entry].get(name, "not known")
            if was != now:
                is_long = was.startswith("sha256 ") or now.startswith("sha256 ")
                values = "differs" if is_long else f"is {now}, was {was}"
                words.append(f"{name} of {entry} {values}")
    words += [f"{entry} is new" for entry in new.keys() - old.keys() if _is_no_machine(entry)]
    words += [f"{entry} is gone" for entry in old.keys() - new.keys() if _is_no_machine(entry)]
    return sorted(words)


def describe_differences(words: Sequence[str]) -> str:
    """Join differences; of many, the first ones are named."""
    named = list(words[:MAX_NAMED])
    if len(words) > MAX_NAMED:
        named.append(f"and {len(words) - MAX_NAMED} more")
    return "; ".join(named)


def _is_no_machine(entry: str) -> bool:
    return not entry.startswith("machine ")


def _entries(problem: PlacementProblem) -> Iterator[tuple[str, dict[str, str]]]:
    fleet = problem.fleet
    yield "the model", dict(_fields(problem.model))
    for site in fleet.sites:
        yield f"site {site.name}", dict(_fields(site.link))
    for (start, end), link in fleet.links.items():
        yield f"the link from {start} to {end}", dict(_fields(link))
    if fleet.default_link is not None:
        yield "the default link", dict(_fields(fleet.default_link))
    rest = {"entry": fleet.entry, "pins": fleet.pins, "apart": fleet.apart}
    yield "the fleet", {name: _shown(value) for name, value in rest.items()}
    for machine in fleet.machines:
        own = {f.name: getattr(machine, f.name) for f in dataclasses.fields(machine)}
        node = own.pop("node")
        fields = {name: _shown(value) for name, value in own.items()}
        fields |= dict(_fields(node, without=("name", "gpu")))
        fields |= {f"gpu.{name}": text for name, text in _fields(node.gpu)}
        yield f"machine {machine.name}", fields


def _fields(record: Any, without: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    for each in dataclasses.fields(record):
        if each.name not in without:
            yield each.name, _shown(getattr(record, each.name))


def _shown(value: Any) -> str:
    """Return a value as text that is equal for equal values."""
    if isinstance(value, Mapping):
        value = sorted(value.items())
    if isinstance(value, tuple) and all(isinstance(each, frozenset) for each in value):
        value = [sorted(each) for each in value]
    text = repr(value)
    if len(text) > LONG:
        text = f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return text

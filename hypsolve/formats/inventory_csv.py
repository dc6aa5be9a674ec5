"""Fleets of inventories: tables of GPUs as ``nvidia-smi --query-gpu`` prints them."""

import csv
import itertools
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypsolve import catalog
from hypsolve.catalog.gpu_names import gpu_of_name, has_memory_of, usual_interconnect
from hypsolve.catalog.interconnects import interconnect
from hypsolve.formats.machines_file import ASSUMED_LINK, MachinesFile, assumed_link_note
from hypsolve.formats.machines_toml import ONLY_SITE
from hypsolve.formats.machines_toml_types import MAX_MACHINES
from hypsolve.problem import validation as valid
from hypsolve.problem.fleet import Fleet, Machine, Site
from hypsolve.problem.network import MAX_GPUS, Node

THIS_HOST = "host"
"""Name of the machine of an inventory without a column of hosts."""
MIB = 2**20
_COLUMNS = {
    "host": "host",
    "hostname": "host",
    "index": "index",
    "name": "name",
    "gpu_name": "name",
    "memory.total": "memory.total",
    "pcie.link.gen.max": "pcie.link.gen.max",
}
_UNKNOWN = re.compile(r"|\[(n/a|not supported|unknown error|unknown)\]|n/a", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Card:
    """A GPU of the inventory; what the table does not know is None."""

    owner: str
    host: str
    index: int | None
    name: str
    memory_bytes: float | None
    pcie: int | None


def machines_of_inventory(path: Path, content: bytes) -> MachinesFile:
    """Return the fleet of an inventory; equal GPUs of a host are one machine."""
    columns, rows, notes = _table(path, content)
    cards = [_card(owner, columns, row) for owner, row in rows]
    if not cards:
        raise ValueError(f"{path}: must list at least one GPU below its header, got none")
    kinds: dict[tuple[str, str, float | None], list[_Card]] = {}
    seen: dict[tuple[str, int], str] = {}
    for card in cards:
        kinds.setdefault((card.host, card.name, card.memory_bytes), []).append(card)
        if card.index is None:
            continue
        before = seen.setdefault((card.host, card.index), card.owner)
        if before != card.owner:
            hint = "" if "host" in columns else "; GPUs of several hosts need a column host"
            raise ValueError(
                f"{card.owner}: index must differ from those of the host before it,"
                f" got {card.index}{hint}"
            )
    if len(kinds) > MAX_MACHINES:
        raise ValueError(f"{path}: must have at most {MAX_MACHINES} machines, got {len(kinds)}")
    on_host: dict[str, int] = {}
    for host, *_ in kinds:
        on_host[host] = on_host.get(host, 0) + 1
    machines: dict[str, Machine] = {}
    for (host, *_), group in kinds.items():
        node = _node(group, alone=on_host[host] == 1, taken=machines, notes=notes)
        machines[node.name] = Machine(node=node, site=ONLY_SITE)
    if len(machines) > 1:
        notes.append(assumed_link_note("the inventory has no links"))
    return MachinesFile(
        fleet=Fleet(
            name=path.stem,
            sites=(Site(name=ONLY_SITE, link=ASSUMED_LINK),),
            machines=tuple(machines.values()),
        ),
        source=str(path),
        notes=tuple(dict.fromkeys(notes)),
    )


def _table(
    path: Path, content: bytes
) -> tuple[list[str], Iterator[tuple[str, list[str]]], list[str]]:
    """Return the columns, the rows with their owners, and a note about unused columns."""
    try:
        text = content.decode("utf-8-sig")
        lines = csv.reader(text.splitlines(), skipinitialspace=True, strict=True)
        table = [(lines.line_num, [cell.strip() for cell in row]) for row in lines]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not CSV: {error}") from None
    table = [(number, row) for number, row in table if any(row)]
    if not table:
        raise ValueError(f"{path}: must begin with a line that names the columns, got none")
    (first, header), rows = table[0], table[1:]
    words = [cell.partition("[")[0].strip().lower() for cell in header]
    columns = [_COLUMNS.get(word, "") for word in words]
    if "name" not in columns:
        raise ValueError(
            f"{path}: line {first}: a column name must be there, as nvidia-smi --query-gpu="
            f"index,name,memory.total --format=csv prints it, got {', '.join(words)!s:.80}"
        )
    for column in columns:
        if column and columns.count(column) > 1:
            raise ValueError(f"{path}: line {first}: column {column} must be there once")
    unused = [word for word, column in zip(words, columns, strict=True) if not column]
    notes = [f"columns left out: {', '.join(unused)!s:.200}"] if unused else []
    return columns, _rows(path, header, rows), notes


def _rows(
    path: Path, header: list[str], rows: Sequence[tuple[int, list[str]]]
) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows, without copies of the header that joined files have."""
    for number, row in rows:
        if row == header:
            continue
        owner = f"{path}: line {number}"
        if len(row) != len(header):
            raise ValueError(
                f"{owner}: must have {len(header)} columns, as the header, got {len(row)}"
            )
        yield owner, row


def _card(owner: str, columns: list[str], row: list[str]) -> _Card:
    cells = dict(zip(columns, row, strict=True))
    host = cells.get("host", "")
    if "host" in cells:
        valid.name(f"{owner}: host", host)
    return _Card(
        owner=owner,
        host=host,
        index=_number(owner, "index", cells),
        name=valid.name(owner, cells["name"]),
        memory_bytes=_memory(owner, cells),
        pcie=_number(owner, "pcie.link.gen.max", cells),
    )


def _number(owner: str, column: str, cells: dict[str, str]) -> int | None:
    text = cells.get(column, "")
    if _UNKNOWN.fullmatch(text):
        return None
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError(f"{owner}: {column} must be a whole number, got {text!r:.60}")
    return int(text)


def _memory(owner: str, cells: dict[str, str]) -> float | None:
    text = cells.get("memory.total", "")
    if _UNKNOWN.fullmatch(text):
        return None
    found = re.fullmatch(r"([0-9]{1,12})( MiB)?", text)
    if not found or int(found[1]) == 0:
        raise ValueError(
            f"{owner}: memory.total must be a number of MiB, such as 81559 MiB,"
            f" got {text!r:.60}"
        )
    return float(int(found[1]) * MIB)


def _node(cards: list[_Card], *, alone: bool, taken: Container[str], notes: list[str]) -> Node:
    """Return the machine of equal GPUs of a host, which has no others if `alone`."""
    first = cards[0]
    try:
        gpu = gpu_of_name(first.name, first.memory_bytes)
    except ValueError as error:
        raise ValueError(
            f"{first.owner}: {error}; write a name of the catalogue in its place, or define the"
            " GPU in a machines file (hypsolve init --machines)"
        ) from None
    if len(cards) > MAX_GPUS:
        raise ValueError(
            f"{first.owner}: a host must have at most {MAX_GPUS} GPUs of a kind,"
            f" got {len(cards)}"
        )
    host = first.host or THIS_HOST
    stem = host if alone else f"{host}-{gpu}"
    names = (stem if i == 0 else f"{stem}-{i}" for i in itertools.count())
    name = next(each for each in names if each not in taken)
    memory = first.memory_bytes
    if memory is not None and has_memory_of(gpu, memory):
        memory = None  # drivers show a little less than the catalogue's
    if memory is not None:
        notes.append(
            f"{first.name} has {memory / 2**30:.3g} GiB and is taken for {gpu}, which has"
            f" {catalog.gpu(gpu).memory_bytes / 2**30:.3g} GiB"
        )
    links = _links(cards, gpu, notes) if len(cards) > 1 else None
    return Node(
        name=name,
        gpu=catalog.gpu(gpu),
        memory_bytes=memory,
        host=first.host,
        card=_first_card(cards),
        gpus=len(cards),
        interconnect=None if links is None else interconnect(links, gpu),
    )


def _links(cards: list[_Card], gpu: str, notes: list[str]) -> str:
    """Return the name of the interconnect of several GPUs, and note how it is known."""
    links = usual_interconnect(gpu, cards[0].name)
    generations = [card.pcie for card in cards if card.pcie]
    if links.startswith("pcie") and generations:
        links = f"pcie{min(max(min(generations), 3), 5)}"
    else:
        notes.append(f"the interconnect among several {gpu} is assumed to be {links}")
    return links


def _first_card(cards: list[_Card]) -> int | None:
    """Return the number of the first GPU of a machine, if the others follow it."""
    if not cards[0].host or any(card.index is None for card in cards):
        return None
    indices = sorted(card.index for card in cards if card.index is not None)
    in_a_row = indices[-1] - indices[0] == len(indices) - 1
    return indices[0] if in_a_row else None

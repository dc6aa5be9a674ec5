"""`read_machines`: a fleet from a machines file, a network file, Helix or an inventory."""

import os
import re
from pathlib import Path

from hypsolve.formats.helix_fleet import machines_of_helix
from hypsolve.formats.inventory_csv import machines_of_inventory
from hypsolve.formats.machines_file import MachinesFile
from hypsolve.formats.machines_network import machines_of_network
from hypsolve.formats.machines_toml import machines_of_table
from hypsolve.formats.toml_tables import parse_toml
from hypsolve.problem.files import checked_path, read_bytes

MAX_BYTES = 2**24
_HELIX = re.compile(rb"^[ \t]*\[(NodeNames|ComputeNode-\d+)\]", re.MULTILINE)
_INVENTORY = re.compile(rb"\A[^=\[\n]*\b(gpu_)?name\b[^=\n]*(\n|\Z)")


def read_machines(path: str | os.PathLike[str]) -> MachinesFile:
    """Read machines without an order, for `PlacementProblem`, from a file of one of four kinds.

    What a file does not state and what of it is left out is said in `MachinesFile.notes`.

    **Machines file** (TOML). ``hypsolve init --machines`` writes an example.

    - ``[[machines]]``: a ``gpu``, as in a network file (`read_network_file`). Optional:
      ``name`` or ``names``, ``count``, ``gpus`` with ``interconnect``, ``memory_gib``,
      ``reserved_gib``, ``slowdown``, ``price_per_hour``, ``host``, ``site``, and ``uplink``, a
      link to the site that is slower than the site's own.
    - ``[[offers]]``: machines that could be rented, with ``name``, ``max_count``,
      ``price_per_hour``, and the keys of hardware and place of a machine.
    - ``[[sites]]``: ``name``, and the ``link`` between two of its machines. Without sites, all
      machines are at one, which is called ``site``. A ``link`` at the top of the file is that
      of all sites without one. If there is none, 1 Gbit/s and 0.2 ms are assumed.
    - ``[[links]]``: ``from`` a site ``to`` another, and the keys of a link. The way back is the
      same, or has an entry of its own. ``default_link`` joins the other sites; without it they
      are not used together.
    - ``[entry]``: shares of the requests by the site where they enter; default: all at the
      first.
    - ``[[pins]]``: ``blocks`` that must stay at ``sites``: ``embedding``, ``head``, or numbers
      such as ``0:4``, of which the embedding is block 0.
    - ``apart``: lists of names of machines and offers, of which a pipeline uses one.
    - ``[gpus.NAME]``, ``runtime``, ``currency``, ``description``: as in a network file.

    **Network file** (TOML with ``[[tiers]]``). Tiers become sites, and their order does not
    count. Degrees of tensor parallelism are chosen anew.

    **Cluster file of Helix** (.ini). A node of type ``T4x2`` has two GPUs. Sites are the
    regions that the latencies of links tell apart. Requests enter at the site of the
    coordinator, which has no machines.

    **Inventory** (CSV), as ``nvidia-smi --query-gpu=index,name,memory.total --format=csv``
    prints it; a column ``host`` tells several hosts apart. Equal GPUs of a host become a
    machine.

    Parameters
    ----------
    path : str or path
        The ending .csv or .ini tells the kind, else the content.

    Returns
    -------
    MachinesFile
        Its fleet is named after the file.

    Raises
    ------
    ValueError, TypeError
        If the file is invalid; the message names the file, the entry with its line, the key,
        the rule and the value, and suggests the likeliest key in place of an unknown one.
    OSError
        If the file does not exist or cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import hypsolve as hs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "lab.toml")
    ...     _ = path.write_text('''
    ...     link = {gbps = 10, latency_ms = 0.1}
    ...     [[machines]]
    ...     gpu = "rtx-4090"
    ...     count = 2
    ...     [[offers]]
    ...     name = "rented"
    ...     gpu = "h100"
    ...     max_count = 4
    ...     price_per_hour = 2.5
    ...     ''')
    ...     file = hs.read_machines(path)
    >>> [machine.name for machine in file.fleet.machines][:3], file.notes
    (['rtx-4090-0', 'rtx-4090-1', 'rented-0'], ())
    """
    path = checked_path("read_machines", path)
    content = read_bytes(path, MAX_BYTES)
    kind = _kind(path, content)
    if kind == "helix":
        return machines_of_helix(path, content)
    if kind == "inventory":
        return machines_of_inventory(path, content)
    table = parse_toml(path, content)
    if "tiers" in table and not table.keys() & {"machines", "offers"}:
        return machines_of_network(path, table)
    return machines_of_table(path, content, table)


def _kind(path: Path, content: bytes) -> str:
    """Return ``helix``, ``inventory`` or ``toml``: by the ending, else by the content."""
    by_ending = {".ini": "helix", ".csv": "inventory", ".toml": "toml"}
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    if (kind := by_ending.get(f".{ending}")) is not None:
        return kind
    if _HELIX.search(content):
        return "helix"
    return "inventory" if _INVENTORY.match(content) else "toml"

"""Clusters in the formats of other planners: YAML files of PipeEdge, .ini files of Helix."""

import configparser
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hypsolve import catalog
from hypsolve.problem import validation as valid
from hypsolve.problem.deployment import GpuProfile, Link, Network, Node, Tier
from hypsolve.problem.files import checked_path, read_bytes
from hypsolve.problem.instance import Instance, Objective
from hypsolve.problem.optional import optional

MAX_BYTES = 2**24  # YAML is parsed in Python, at less than 1 MB/s
MAX_CELLS = 10**7  # hosts times cuts
_MEBI = 2**20  # PipeEdge uses MB and Mb for 2^20 bytes and bits
_DTYPE_BYTES = {"torch.float32": 4, "torch.float64": 8, "torch.float16": 2, "torch.bfloat16": 2}
GPUS_OF_TYPES = {"A100": "a100-40gb", "L4": "l4", "T4": "t4", "V100": "v100-16gb"}
_UNITS = {  # Helix divides sizes in bytes by its "bps", so they are bytes/s
    "bandwidth": {"kbps": 1e3, "mbps": 1e6, "gbps": 1e9},
    "latency": {"Sec": 1.0, "MilliSec": 1e-3},
}
_QUANTITY = re.compile(r"(-?[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?)(?: *\* *([A-Za-z]+))?")
_NODE = re.compile(r"ComputeNode-(0|[1-9][0-9]{0,8})")
_LINK = re.compile(r"Link-(source|0|[1-9][0-9]{0,8})-(sink|0|[1-9][0-9]{0,8})")


def read_pipeedge(
    models: str | os.PathLike[str],
    device_types: str | os.PathLike[str],
    devices: str | os.PathLike[str],
    *,
    model: str,
    batch_size: int = 8,
    dtype: str = "torch.float32",
    order: Sequence[str] | None = None,
    reserved_bytes: float = 0.0,
    allow_empty: bool = False,
    overlap: bool = True,
    objective: Objective | str = Objective.BOTTLENECK,
) -> Instance:
    """Read an instance with measured layer times from the files of PipeEdge's scheduler [1]_.

    A host becomes a tier of one node, a layer becomes a block, and a microbatch is the request.
    As in PipeEdge, MB and Mb are 2^20 bytes and bits, and the rate of a link is the lower
    ``bw_Mbps`` of its two ends. A cut moves ``parameters_out`` of the layer before it (the
    first cut ``parameters_in``, the last nothing) times bytes per element times `batch_size`.

    Two things differ from PipeEdge. It chooses the order of the hosts and may skip some; here
    the order is given, and an empty tier relays. It adds send and receive buffers, which depend
    on the cuts, to the memory of a stage; here `reserved_bytes` must cover them.

    Parameters
    ----------
    models, device_types, devices : str or path
        ``models.yml``, ``device_types.yml``, ``devices.yml``. Unused entries are not checked.
    model : str
        Name of a model in `models`.
    batch_size, dtype : int, str
        Batch size and element type of the profile and of the transfers; the defaults are
        PipeEdge's. (`dtype` is PipeEdge's word: here it is a torch type, not a weight format.)
    order : sequence of str, optional
        Hosts in pipeline order; hosts that are not named are left out. Default: all hosts in
        the order of `devices`.
    reserved_bytes : float
        Memory that is kept free on every host.
    allow_empty : bool
        Whether a host may be left without layers.
    overlap : bool
        Whether a stage computes while its link sends, as in PipeEdge.
    objective : Objective or str

    Returns
    -------
    Instance
        Named after the model.

    Raises
    ------
    ValueError, TypeError
        If a file or an argument is invalid; the message names the file, the object, the field,
        the rule and the value.
    OSError
        If a file does not exist or cannot be read.

    References
    ----------
    .. [1] usc-isi/PipeEdge on GitHub: README_Scheduler.md, src-native/.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import hypsolve as hs
    >>> models = '''
    ... vit: {layers: 2, mem_MB: [30, 12], parameters_in: 1500, parameters_out: [400, 10]}
    ... '''
    >>> types = '''
    ... board:
    ...   mem_MB: 64
    ...   bw_Mbps: 100
    ...   model_profiles:
    ...     vit: [{batch_size: 8, dtype: torch.float32, time_s: [0.4, 0.1]}]
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [pathlib.Path(folder, name) for name in ("models", "types", "devices")]
    ...     for path, text in zip(paths, (models, types, "board: [left, right]")):
    ...         _ = path.write_text(text)
    ...     hs.read_pipeedge(*paths, model="vit")
    <Instance 'vit': 1 request, 2 blocks, 2 tiers, 2 nodes, bottleneck>
    """
    owner = "read_pipeedge"
    element_bytes = _DTYPE_BYTES[valid.known("dtype", dtype, _DTYPE_BYTES)]
    batch_size = valid.whole(owner, "batch_size", batch_size, minimum=1)
    reserved_bytes = valid.real(owner, "reserved_bytes", reserved_bytes)
    paths = [checked_path(owner, path) for path in (models, device_types, devices)]
    keys = {"layers", "mem_MB", "parameters_in", "parameters_out"}
    of_model, entry = _entry(str(paths[0]), "model", _read_yaml(paths[0]), model, keys)
    n_layers = valid.whole(of_model, "layers", entry["layers"], minimum=1)
    block_bytes = np.array(_row(of_model, "mem_MB", entry, n_layers, valid.real)) * _MEBI
    crossing = [_count(of_model, "parameters_in", entry["parameters_in"])]
    crossing += _row(of_model, "parameters_out", entry, n_layers, _count)
    crossing_bytes = np.array([*crossing[:-1], 0.0]) * element_bytes * batch_size

    type_of = _hosts(paths[2])
    if order is not None:
        what = f"host ({paths[2]})"
        type_of = {
            host: type_of[host] for host in _chosen(owner, "order", what, order, type_of)
        }
    if len(type_of) * (n_layers + 1) > MAX_CELLS:
        raise ValueError(
            f"{of_model}: layers + 1 times hosts must be at most {MAX_CELLS}, got {n_layers}"
            f" layers on {len(type_of)} hosts"
        )
    kinds = list(dict.fromkeys(type_of.values()))
    table, keys = _read_yaml(paths[1]), {"mem_MB", "bw_Mbps", "model_profiles"}
    block_s, node_bytes, bytes_per_s = [], {}, {}
    for kind in kinds:
        of_kind, entry = _entry(str(paths[1]), "device type", table, kind, keys)
        node_bytes[kind] = valid.real(of_kind, "mem_MB", entry["mem_MB"]) * _MEBI
        if reserved_bytes > node_bytes[kind]:
            raise ValueError(
                f"{of_kind}: mem_MB must be at least reserved_bytes, {reserved_bytes:g} bytes,"
                f" got {entry['mem_MB']}"
            )
        megabits = valid.real(of_kind, "bw_Mbps", entry["bw_Mbps"], strict=True)
        bytes_per_s[kind] = megabits * _MEBI / 8
        profile = _profile(of_kind, entry["model_profiles"], model, batch_size, dtype)
        block_s.append(_row(of_kind, "time_s", profile, n_layers, valid.real))

    speed = np.array([bytes_per_s[kind] for kind in type_of.values()])
    instance = Instance.from_tables(
        block_s=[block_s],
        block_bytes=block_bytes,
        tiers=[[(kinds.index(k), node_bytes[k] - reserved_bytes)] for k in type_of.values()],
        transfer_s=[crossing_bytes / np.minimum(speed[:-1], speed[1:])[:, None]],
        allow_empty=allow_empty,
        overlap=overlap,
        objective=objective,
        name=model,
    )
    hosts = tuple(type_of)
    return instance.replace(tier_names=hosts, node_names=hosts, class_names=tuple(kinds))


def _hosts(path: Path) -> dict[str, str]:
    """Return the device type of each host."""
    type_of: dict[str, str] = {}
    for kind, hosts in _read_yaml(path).items():
        owner = f"{path}: device type {kind!r}"
        if not isinstance(hosts, list):
            raise TypeError(f"{owner}: hosts must be a list, got {hosts!r:.60}")
        for host in hosts:
            if valid.name(f"{owner}: host", host) in type_of:
                raise ValueError(f"{owner}: hosts must be distinct, got {host!r} twice")
            type_of[host] = kind
    if not type_of:
        raise ValueError(f"{path}: must hold at least one host, got none")
    return type_of


def _profile(owner: str, profiles: Any, model: str, batch_size: int, dtype: str) -> Any:
    """Return the only profile of the model with this batch size and dtype."""
    profiles = {} if profiles is None else profiles  # PipeEdge writes null for none
    found = profiles.get(model, []) if isinstance(profiles, dict) else None
    if not isinstance(found, list):
        raise TypeError(
            f"{owner}: model_profiles must map models to lists, got {profiles!r:.60}"
        )
    for profile in found:
        _check_keys(
            f"{owner}: profile of {model!r}", profile, {"batch_size", "dtype", "time_s"}
        )
    measured = [(profile["batch_size"], profile["dtype"]) for profile in found]
    if measured.count((batch_size, dtype)) != 1:
        raise ValueError(
            f"{owner}: model_profiles must hold one profile of {model!r} with batch_size"
            f" {batch_size} and dtype {dtype}, got {measured!s:.120}"
        )
    return found[measured.index((batch_size, dtype))]


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return a mapping from YAML: plain values, distinct string keys, no aliases."""
    yaml = optional("yaml")
    safe: Any = yaml.SafeLoader

    def fail(problem: str, at: Any) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)

    class Loader(safe):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):  # a few bytes could expand to billions
                fail("aliases are not read: write the value out", self.peek_event())
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.tag != "tag:yaml.org,2002:str":
                    fail(f"keys must be strings, got {key.value!s:.60}", key)
                if key.value in seen:
                    fail(f"key {key.value!r:.60} occurs twice", key)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    content = read_bytes(path, MAX_BYTES)
    try:
        table = yaml.load(content.decode("utf-8-sig"), Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"{path}: line {line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML: {_on_one_line(error)}") from None
    if not isinstance(table, dict):
        raise TypeError(f"{path}: must be a mapping, got {table!r:.60}")
    return table


def read_helix(
    path: str | os.PathLike[str],
    *,
    tiers: Sequence[str] | dict[str, list[int]] | None = None,
    gpus: dict[str, str | GpuProfile] | None = None,
) -> Network:
    """Read a network from a cluster .ini file of Helix [1]_.

    The file has the sections ``NodeNames``, ``SourceNode``, ``SinkNode``, ``ComputeNode-i`` and
    ``Link-i-j`` (both ways) that Helix's cluster generators write. A ``simulator_cluster.ini``
    is refused: it has only the links of one placement. A rate is a number, optionally times
    kbps, mbps or gbps. These stand for 10^3, 10^6 and 10^9 *bytes*/s, because Helix divides
    bytes by the rate.

    Helix has no tiers, and its files do not name regions, so the argument `tiers` groups the
    nodes. All nodes of a tier hold equal blocks, and each may send to any node of the next
    tier. All these pairs must therefore be linked; the tier's link gets their lowest bandwidth
    and their highest latency. Other links (of the coordinator, inside a tier, past the next
    tier) are left out, and ``connected_nodes``, which repeats the links, is not read. The file
    states no memory: it comes from the catalogue.

    Parameters
    ----------
    path : str or path
    tiers : sequence of str, or dict of str to list of int, optional
        GPU types in the order that a request visits them, a tier for each; or the node numbers
        of each tier. Other nodes are left out. Default: all types, in the order of their first
        nodes.
    gpus : dict of str to str or GpuProfile, optional
        GPU of each ``type``, in addition to A100 (a100-40gb), L4, T4 and V100 (v100-16gb). A
        node with several GPUs (L4x2) is refused unless its type is given here;
        `hypsolve.read_machines` reads it as a machine.

    Returns
    -------
    Network
        Named after the file.

    Raises
    ------
    ValueError, TypeError
        If the file is invalid; the message names the file, the section, the key, the rule and
        the value.
    OSError
        If the file does not exist or cannot be read.

    References
    ----------
    .. [1] Thesys-lab/Helix-ASPLOS25 on GitHub: simulator/initial_layout/.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import hypsolve as hs
    >>> cluster = '''
    ... [NodeNames]
    ... total_compute_nodes=2
    ... [SourceNode]
    ... [SinkNode]
    ... [ComputeNode-0]
    ... type=T4
    ... connected_nodes=1
    ... [ComputeNode-1]
    ... type=A100
    ... connected_nodes=0
    ... [Link-0-1]
    ... bandwidth=1.25 * gbps
    ... latency=0.01
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "site.ini")
    ...     _ = path.write_text(cluster)
    ...     hs.read_helix(path)
    <Network site, nodes of each tier: T4 (1), A100 (1)>
    """
    owner, path = "read_helix", checked_path("read_helix", path)
    type_of, links = cluster_of_ini(path, read_bytes(path, MAX_BYTES))
    types = list(dict.fromkeys(type_of.values()))
    if isinstance(tiers, dict):
        groups = {name: _numbers(f"tiers[{name!r}]", tiers[name]) for name in tiers}
        picked = [i for members in groups.values() for i in members]
        _chosen(owner, "tiers", f"node ({path})", picked, type_of)
    else:
        if tiers is not None:
            types = _chosen(owner, "tiers", f"type ({path})", tiers, types)
        groups = {kind: [i for i in type_of if type_of[i] == kind] for kind in types}
    profiles: dict[str, Any] = GPUS_OF_TYPES | valid.of_type(owner, "gpus", gpus or {}, dict)
    made: list[Tier] = []
    for (name, members), after in zip(
        groups.items(), [*list(groups.values())[1:], None], strict=True
    ):
        nodes = []
        for i in members:
            if type_of[i] not in profiles:
                raise ValueError(
                    f"{path}: ComputeNode-{i}: type must be one of {', '.join(profiles)},"
                    " or one of gpus (hypsolve.read_machines reads several GPUs in a node),"
                    f" got {type_of[i]!r:.60}"
                )
            gpu = profiles[type_of[i]]
            gpu = catalog.gpu(gpu) if isinstance(gpu, str) else gpu
            nodes.append(Node(name=f"ComputeNode-{i}", gpu=gpu))
        link = _slowest(f"{path}: tier {name!r}", members, after, links) if after else None
        made.append(Tier(name=name, nodes=tuple(nodes), link=link))
    return Network(name=path.stem, tiers=tuple(made))


def _numbers(field: str, members: Any) -> list[str]:
    members = valid.of_type("read_helix", field, members, list)
    return [str(valid.whole("read_helix", field, i)) for i in members]


def _slowest(
    owner: str, here: list[str], there: list[str], links: Mapping[frozenset[str], Link]
) -> Link:
    """Return the link between two tiers: lowest rate and highest latency of their pairs."""
    pairs = [frozenset((i, j)) for i in here for j in there]
    for pair in pairs:
        if pair not in links:
            raise ValueError(
                f"{owner}: each node must be linked to each of the next tier, got no link"
                f" between nodes {' and '.join(sorted(pair))}"
            )
    return Link(
        bytes_per_s=min(links[pair].bytes_per_s for pair in pairs),
        latency_s=max(links[pair].latency_s for pair in pairs),
    )


def cluster_of_ini(
    path: Path, content: bytes
) -> tuple[dict[str, str], dict[frozenset[str], Link]]:
    """Return the type of each node by its number, and each link by its two ends."""
    # interpolation and a section of defaults would change values silently
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(content.decode("utf-8-sig"), str(path))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not INI: {_on_one_line(error)}") from None
    types: dict[str, str] = {}
    links: dict[frozenset[str], Link] = {}
    others: dict[str, Any] = {}
    for section in parser.sections():
        owner, entry = f"{path}: {section}", dict(parser[section])
        if ends := _LINK.fullmatch(section):
            _check_keys(owner, entry, {"bandwidth", "latency"})
            pair = frozenset(ends.groups())
            if pair in links or len(pair) < 2:
                raise ValueError(f"{owner}: ends must be two, and have no other link")
            links[pair] = Link(
                bytes_per_s=_quantity(owner, "bandwidth", entry, strict=True),
                latency_s=_quantity(owner, "latency", entry),
            )
        elif node := _NODE.fullmatch(section):
            _check_keys(owner, entry, {"type", "connected_nodes"})
            types[node[1]] = entry["type"]
        else:
            others[section] = entry
    _check_keys(str(path), others, {"NodeNames", "SourceNode", "SinkNode"}, "section")
    _check_keys(f"{path}: NodeNames", others["NodeNames"], {"total_compute_nodes"})
    total, numbers = others["NodeNames"]["total_compute_nodes"], sorted(map(int, types))
    if total != str(len(types)) or not types or numbers != list(range(len(types))):
        raise ValueError(
            f"{path}: NodeNames: total_compute_nodes must be the number of sections"
            f" ComputeNode-0, ComputeNode-1, ..., which are {numbers!s:.60}, got {total!r:.60}"
        )
    for end in frozenset().union(*links) - {"source", "sink", *types}:
        raise ValueError(f"{path}: ends of links must be nodes below {len(types)}, got {end}")
    return {str(i): types[str(i)] for i in numbers}, links


def _quantity(owner: str, key: str, entry: Mapping[str, str], *, strict: bool = False) -> float:
    """Return a number, or a number times a unit, in bytes/s or s."""
    match, units = _QUANTITY.fullmatch(entry[key]), _UNITS[key]
    if not match or (match[2] and match[2] not in units):
        raise ValueError(
            f"{owner}: {key} must be a number, or one times {' or '.join(units)},"
            f" got {entry[key]!r:.60}"
        )
    number = float(match[1]) * (units[match[2]] if match[2] else 1.0)
    return valid.real(owner, key, number, strict=strict)


def _entry(file: str, what: str, table: Any, name: str, keys: set[str]) -> tuple[str, Any]:
    """Return the name of an entry of a file, for messages, and its fields."""
    entry = table[valid.known(f"{what} ({file})", name, table)]
    _check_keys(f"{file}: {what} {name!r}", entry, keys)
    return f"{file}: {what} {name!r}", entry


def _check_keys(owner: str, entry: Any, keys: set[str], what: str = "key") -> None:
    if not isinstance(entry, dict):
        raise TypeError(f"{owner}: must be a mapping, got {entry!r:.60}")
    for key in sorted(entry.keys() - keys):
        raise ValueError(f"{owner}: unknown {what} {key!r:.60}; known: {sorted(keys)}")
    for key in sorted(keys - entry.keys()):
        raise ValueError(f"{owner}: {what} {key!r} is missing")


def _row(owner: str, key: str, entry: Any, n: int, check: Callable[..., float]) -> list[float]:
    """Return a number for each layer."""
    values = entry[key]
    if not isinstance(values, list) or len(values) != n:
        raise ValueError(
            f"{owner}: {key} must be a list of {n} numbers, one per layer, got {values!r:.60}"
        )
    return [check(owner, f"{key}[{i}]", value) for i, value in enumerate(values)]


def _count(owner: str, field: str, value: Any) -> float:
    return valid.real(owner, field, valid.whole(owner, field, value))


def _chosen(owner: str, field: str, what: str, names: Any, known: Iterable[str]) -> list[str]:
    """Return names that a user picked, which must be known and distinct."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"{owner}: {field} must be a sequence of names, got {names!r:.60}")
    chosen = [valid.known(what, name, known) for name in names]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"{owner}: {field} must name at least one, once, got {chosen!s:.80}")
    return chosen


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())

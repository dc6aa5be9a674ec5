"""Imports point one way, kernels are compiled once, no machine leaks into the repository."""

import ast
import fnmatch
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numba
import numpy as np
import pytest

from hypsolve.problem.instance import Instance
from hypsolve.problem.solution import Partition
from hypsolve.simulation.simulate import simulate
from tests.helpers.scenarios_token import random_scenario

ROOT = Path(__file__).parent.parent
PACKAGES = ("hypsolve", "instances", "experiments")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ON_DEMAND = {
    "pandas", "matplotlib", "pulp", "ortools", "highspy", "scipy", "rich", "tqdm", "simpy",
    "dask", "distributed", "click", "yaml", "torch",
}  # fmt: skip

# What the files of a package may import, besides those of their own package. `solve` is a file.
MAY_IMPORT = {
    "hypsolve.problem": (),
    "hypsolve.kernels": (),
    "hypsolve.catalog": ("hypsolve.problem",),
    "hypsolve.bounds": ("hypsolve.problem",),
    "hypsolve.dispatch": ("hypsolve.problem", "hypsolve.kernels"),
    "hypsolve.formats": ("hypsolve.problem", "hypsolve.catalog"),
    "hypsolve.simulation": (
        "hypsolve.problem", "hypsolve.kernels", "hypsolve.catalog", "hypsolve.dispatch",
    ),
    "hypsolve.verify": ("hypsolve.problem", "hypsolve.formats"),
    "hypsolve.calibration": (
        "hypsolve.problem", "hypsolve.catalog", "hypsolve.formats", "hypsolve.simulation",
        "hypsolve.dispatch",
    ),
    "hypsolve.solvers.clock": (),
    "hypsolve.solvers.backends": ("hypsolve.problem", "hypsolve.solvers.clock"),
    "hypsolve.solvers.outcomes": ("hypsolve.problem",),
    "hypsolve.solvers.many_networks": ("hypsolve.problem",),
    "hypsolve.solvers.partition": (
        "hypsolve.problem", "hypsolve.kernels",
        "hypsolve.solvers.backends", "hypsolve.solvers.clock", "hypsolve.solvers.outcomes",
        "hypsolve.solvers.many_networks",
    ),
    "hypsolve.solvers.joint": (
        "hypsolve.problem", "hypsolve.kernels", "hypsolve.dispatch",
        "hypsolve.solvers.backends", "hypsolve.solvers.clock", "hypsolve.solvers.outcomes",
        "hypsolve.solvers.partition",
    ),
    "hypsolve.solvers.throughput": (
        "hypsolve.problem", "hypsolve.kernels",
        "hypsolve.solvers.backends", "hypsolve.solvers.clock", "hypsolve.solvers.outcomes",
        "hypsolve.solvers.partition", "hypsolve.solvers.many_networks",
    ),
    "hypsolve.solvers.placement": (
        "hypsolve.problem", "hypsolve.kernels",
        "hypsolve.solvers.backends", "hypsolve.solvers.clock", "hypsolve.solvers.many_networks",
        "hypsolve.solvers.outcomes",
        "hypsolve.solvers.throughput",
    ),
    "hypsolve.solvers.layer_flow": (
        "hypsolve.problem", "hypsolve.kernels",
        "hypsolve.solvers.backends", "hypsolve.solvers.clock",
    ),
    "hypsolve.solvers.write_formulation": ("hypsolve.problem", "hypsolve.solvers"),
    "hypsolve.solve_serving": (
        "hypsolve.problem", "hypsolve.kernels", "hypsolve.solvers",
    ),
    "hypsolve.solve_placement": (
        "hypsolve.problem", "hypsolve.kernels", "hypsolve.solvers",
    ),
    "hypsolve.solve_layer_flow": (
        "hypsolve.problem", "hypsolve.kernels", "hypsolve.solvers",
    ),
    "hypsolve.solve": (
        "hypsolve.problem", "hypsolve.kernels", "hypsolve.dispatch", "hypsolve.solvers",
        "hypsolve.solve_serving", "hypsolve.solve_placement", "hypsolve.solve_layer_flow",
    ),
    "hypsolve.planning": (
        "hypsolve.problem", "hypsolve.catalog", "hypsolve.formats", "hypsolve.dispatch",
        "hypsolve.simulation", "hypsolve.solvers", "hypsolve.solve", "hypsolve.solve_placement",
        "hypsolve.verify", "hypsolve.bounds", "hypsolve.calibration",
    ),
    "hypsolve.router": ("hypsolve.problem",),
    "hypsolve.interrupt": (),
    "hypsolve": ("hypsolve",),
    "hypsolve.cli": ("hypsolve",),
    "instances": (
        "hypsolve.problem", "hypsolve.catalog", "hypsolve.formats", "hypsolve.simulation",
    ),
    "experiments": ("hypsolve", "instances"),
}  # fmt: skip


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, *, top_level=False):
    """(module, line) of what a file imports; `from package import name` counts package.name."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    nodes = tree.body if top_level else list(ast.walk(tree))
    package = (
        module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    )
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    filter(
                        None,
                        [
                            *package.split(".")[: None if node.level == 1 else 1 - node.level],
                            base,
                        ],
                    )
                )
            for alias in node.names:
                inner = ROOT / Path(*base.split("."), alias.name)
                known = inner.is_dir() or inner.with_suffix(".py").exists()
                yield (f"{base}.{alias.name}" if known else base), node.lineno


def package_of(module):
    """The entry of MAY_IMPORT that a module belongs to: the longest name it starts with."""
    fits = [name for name in MAY_IMPORT if within(module, name) and name != "hypsolve"]
    return max(fits, key=len) if fits else ("hypsolve" if module == "hypsolve" else None)


def within(module, package):
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_keep_to_the_table_of_packages(path):
    module = module_of(path)
    package = package_of(module)
    if package is None:
        assert module == "hypsolve.solvers", f"{module} is in no package of MAY_IMPORT"
        package = "hypsolve.problem"  # its __init__ imports nothing
    for name, line in imports_of(path):
        root = name.split(".")[0]
        if package == "hypsolve.kernels":
            own = {"numpy", "numba", "llvmlite", "hypsolve"}
            assert root in own | sys.stdlib_module_names, name
        if root in PACKAGES:
            allowed = (package, *MAY_IMPORT[package])
            assert any(within(name, other) for other in allowed), (
                f"{path.name}:{line}: {module} may not import {name}"
            )


def test_no_file_imports_itself_through_others():
    """A renderer may name the class that it renders under TYPE_CHECKING, and no more."""
    known = {module_of(path): path for path in FILES}
    graph = {
        module: {name for name, _ in imports_of(path) if name in known and name != module}
        for module, path in known.items()
    }
    while True:  # take away what imports nothing that is left, as long as there is such a file
        ready = {module for module, names in graph.items() if not names & graph.keys()}
        if not ready:
            break
        graph = {module: names for module, names in graph.items() if module not in ready}
    cycles = {module: sorted(names & graph.keys()) for module, names in graph.items()}
    assert cycles == {}


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if not module_of(p).startswith(("experiments", "hypsolve.cli"))],
    ids=module_of,
)
def test_heavy_packages_are_imported_where_they_are_used(path):
    heavy = {f"{n} at line {at}" for n, at in imports_of(path, top_level=True)
             if n.split(".")[0] in ON_DEMAND}  # fmt: skip
    assert not heavy


def test_instances_know_no_solver():
    for path in FILES:
        if module_of(path).startswith("instances"):
            names = {name for name, _ in imports_of(path)}
            assert not {
                n
                for n in names
                if n.startswith(("hypsolve.solve", "hypsolve.dispatch", "experiments"))
            }


def loaded_after(statement):
    code = f"import sys; {statement}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_hypsolve_loads_no_backend_and_no_pandas():
    loaded = loaded_after("import hypsolve")
    assert "hypsolve" in loaded
    assert not loaded & ON_DEMAND - loaded_after("import numba")  # which loads scipy, if there


def test_the_command_loads_the_router_only_to_route():
    of_router = {"starlette", "uvicorn", "httpx", "httpcore", "prometheus_client", "litellm"}
    assert not loaded_after("import hypsolve.cli") & of_router


def test_every_public_name_is_there_and_documented():
    import hypsolve

    assert "solve" in hypsolve.__all__
    for name in hypsolve.__all__:
        assert hasattr(hypsolve, name)
        thing = getattr(hypsolve, name)
        if callable(thing):
            assert thing.__doc__, f"hypsolve.{name} has no docstring"


# --- kernels ----------------------------------------------------------------------------------


def kernels():
    found = {}
    for path in sorted((ROOT / "hypsolve" / "kernels").rglob("*.py")):
        module = importlib.import_module(module_of(path))
        for name, value in vars(module).items():
            if isinstance(value, numba.core.registry.CPUDispatcher):
                found[f"{value.py_func.__module__}.{name}"] = value
    return found


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the JIT is off")
def test_a_kernel_is_compiled_for_one_set_of_types():
    """Once warm, instances of every sort compile no kernel for a second set of types.

    Tests that ran before in this process may have compiled some for types of their own.
    """
    from hypsolve.dispatch.batch_dispatcher import BatchDispatcher
    from hypsolve.dispatch.policies import POLICIES
    from hypsolve.dispatch.schedule import schedule
    from hypsolve.kernels.warm_up import warm
    from hypsolve.solve import METHODS, solve
    from hypsolve.solvers.partition.hypsplit import pareto_frontier
    from hypsolve.solvers.partition.solve_many import solve_many

    warm()
    # none: it is compiled on first use, or was loaded into its caller
    warmed = {name: len(kernel.signatures) for name, kernel in kernels().items()}
    assert warmed
    objectives = ("bottleneck", "path", "p0", "mean_latency")
    many = [[(0, 9)] * 70, [(1, 9.5)], [(0, 9)]]
    tables = [
        {"block_s": [[[1, 2, 3], [2, 1, 1]]], "tiers": [[(0, 9)], [(1, 9)]]},
        {"block_s": np.ones((3, 2, 4), np.float32), "tiers": many, "arrival_s": [0, 1, 2]},
        {"block_s": [[[1, 2, 3], [2, 1, 1]]], "tiers": [[(0, 9), (1, 5)]], "tied_bytes": 1},
    ]
    for given in tables:
        n_blocks = np.shape(given["block_s"])[2]
        for objective in objectives:
            instance = Instance.from_tables(
                block_bytes=[1] * n_blocks, objective=objective, **given
            )
            for name, method in METHODS.items():
                if not method.kernels or objective not in (
                    *method.objectives, *(objectives if method.decides == "partition" else ()),
                ):  # fmt: skip
                    continue
                solve(instance, name, time_limit_s=5)
        pareto_frontier(instance)
        cuts = np.linspace(0, n_blocks, instance.n_tiers + 1).astype(int).tolist()
        for policy in POLICIES:
            schedule(instance, Partition(tuple(cuts)), policy)
    for seed in range(12):  # at token level, with all options
        given = random_scenario(seed, simulate)
        policies = (given.policy, lambda tier_state, request: tier_state.nodes[0])
        for policy in policies:
            simulate(
                given.deployment, given.partition, policy, record_visits=True, **given.options
            )
    networks = np.array([[[0, -1], [1, 0]]], np.int8)
    for links in (None, np.ones((1, 1, 4), np.float32)):
        solve_many(np.ones((2, 3), order="F"), [1, 1, 0.5], networks, 9, links, overlap=True)
    router = BatchDispatcher(np.array([0, 1], np.uint8))
    for _ in range(2):
        router.complete(router.dispatch([[1, 1]]), [1.0], [3.0])
    used = {name: len(kernel.signatures) for name, kernel in kernels().items()}
    assert {name: n for name, n in used.items() if n > max(warmed[name], 1)} == {}


# --- what is shipped --------------------------------------------------------------------------


def test_the_wheel_holds_hypsolve_alone():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    find = config["tool"]["setuptools"]["packages"]["find"]
    packages = {module_of(p) for p in ROOT.glob("*/**/__init__.py")} | {"tests", *PACKAGES}
    shipped = {p for p in packages if any(fnmatch.fnmatch(p, glob) for glob in find["include"])}
    assert "hypsolve" in shipped
    assert all(p == "hypsolve" or p.startswith("hypsolve.") for p in shipped)
    data = config["tool"]["setuptools"]["package-data"]
    assert set(data) == {"hypsolve"}
    for pattern in data["hypsolve"]:
        assert list((ROOT / "hypsolve").glob(pattern)), f"nothing matches {pattern}"
    # a folder without __init__.py would be left out
    for path in (ROOT / "hypsolve").rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path


MACHINE = re.compile(r"/work/|/tmp/w\b|/root/|/home/\w+/|[\w.-]+\.internal\b")
WITHIN = ("/work/", "/tmp/w", "/root/", "/home/", ".internal")  # one is in all that it matches


def listed_by_git(*options):
    """List files as git does; skip the test outside a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", *options, "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def test_no_machine_path_is_in_the_repository():
    found = []
    for name in listed_by_git("--cached", "--others"):
        path = ROOT / name
        if (
            path == Path(__file__).resolve()
            or path.suffix in (".png", ".pdf")
            or not path.is_file()
        ):
            continue
        text = path.read_text(errors="replace")
        if not any(word in text for word in WITHIN):  # much faster than the pattern
            continue
        for number, line in enumerate(text.splitlines(), 1):
            match = MACHINE.search(line)
            if match:
                found.append(f"{name}:{number}: {match[0]}")
    assert found == []


def test_no_file_is_both_tracked_and_ignored():
    """An ignored file that is tracked misses from `git add` in a copy without history."""
    assert listed_by_git("--cached", "--ignored") == []


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_that_draw_hold_a_picture(path):
    """A figure that a notebook's back end does not show leaves no output and no error."""
    drawing = re.compile(r"\.plot\w*\(|figures_of\(|figures\.\w+\(|plt\.subplots\(")
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert any("image/png" in output.get("data", {}) for c in code for output in c["outputs"])
    for cell in code:
        source = "".join(cell["source"])
        if drawing.search(source):
            shown = [kind for output in cell["outputs"] for kind in output.get("data", {})]
            assert "image/png" in shown, f"no picture below:\n{source}"

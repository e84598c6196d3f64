"""The house: a file imports from its own floor or from below, nothing in a circle, the oracle stays in evaluate/, and
files and classes stay small."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "selfreward_jax"
ROOT = Path(__file__).parents[1] / PACKAGE
# From the ground up. Rooms on one floor do not import each other.
FLOORS = (
    ("foreign", "console"),
    ("config", "worlds", "parallel"),
    ("telemetry",),
    ("storage",),
    ("llm",),
    ("sampling", "train"),
    ("method",),
    ("data",),
    ("runs", "evaluate", "suites"),
    ("memory", "integrations"),
    ("report",),
    ("stages",),
    ("loop",),
    ("api",),
    ("cli",),
    ("main",),
    ("__main__",),
)
LEVEL = {"__version__": -1} | {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
MEASURES = ["evaluate.model_metrics", "evaluate.audit", "stages.measure", "stages.judge_audit", "stages.table"]
# What a room may not import although it is below, or is no room of ours.
FORBIDDEN = {
    "config": {"jax", "jaxlib", "flax", "optax"},
    "method": {"jax", "jaxlib", "flax", "optax", "train", "llm"},
    "data": {"jax", "jaxlib", "flax", "optax", "train", "llm"},
    "suites": {"jax", "jaxlib", "flax", "optax", "train", "llm"},
    "storage": {"llm"},
}
KNOWS_MODEL_METRICS = {"stages/measure.py", "stages/table.py", "stages/judge_audit.py"}  # of the stages; none trains


def imports(source, package):
    """Full names of what a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def room(name):
    """The room of a full name: "selfreward_jax.llm.chat" is of llm, "jax.numpy" of jax."""
    parts = name.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else parts[0]


def faults(path, names):
    """Those of `names` that the file `path` (below the package) may not import."""
    own = path.split("/")[0].removesuffix(".py")
    wrong = set()
    for name in names:
        other = room(name)
        if name.startswith(f"{PACKAGE}.") and other != own and LEVEL[other] >= LEVEL[own]:
            wrong.add(name)
        if other in FORBIDDEN.get(own, ()):
            wrong.add(name)
        if name.startswith("jax._src") and path != "parallel/coordinator.py":
            wrong.add(name)
    return wrong | oracles(path, names)


def oracles(path, names):
    """Those of `names` by which the oracle would reach a file. evaluate/ alone knows it. Of the stages, only those that
    measure may have its figures."""
    own = path.split("/")[0]
    hidden = [] if own == "evaluate" else ["worlds.toy.oracle", "worlds.checkable.oracle", "evaluate.oracle"]
    if own == "stages":
        hidden += [] if path in KNOWS_MODEL_METRICS else MEASURES
    return {n for n in names if any(f"{n}.".startswith(f"{PACKAGE}.{h}.") for h in hidden)}


def files():
    """Path within the package, and imports, of each file."""
    for path in sorted(ROOT.rglob("*.py")):
        inside = path.relative_to(ROOT)
        yield str(inside), imports(path.read_text(), ".".join([PACKAGE, *inside.parts[:-1]]))


FILES = dict(files())


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_nothing_from_above(path):
    if path == "__init__.py":
        assert not {name for name in FILES[path] if name.startswith(PACKAGE) or room(name) == "jax"}
    else:
        assert path.split("/")[0].removesuffix(".py") in LEVEL, f"{path} is in a new room: give it a floor"
        assert not faults(path, FILES[path])


def test_no_files_import_each_other_in_a_circle():
    modules = {f"{PACKAGE}." + p.removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in FILES}
    graph = {}
    for module, path in modules.items():
        # `from package import name` imports the module of that name, or else the package.
        used = {name if name in modules else name.rpartition(".")[0] for name in FILES[path]}
        graph[module] = {u for u in used if u in modules and u != module and not module.startswith(f"{u}.")}
    assert f"{PACKAGE}.main" in list(TopologicalSorter(graph).static_order())  # raises CycleError on a circle


def test_the_house_is_small_enough_to_walk_through():
    assert len(list(ROOT.glob("*.py"))) <= 6
    for path in ROOT.rglob("*.py"):
        source = path.read_text()
        assert len(source.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
                assert len(methods) <= 15, f"{path}: {node.name}"


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("llm/x.py", "from selfreward_jax.train import logprobs", {"selfreward_jax.train.logprobs"}),
        ("llm/x.py", "import selfreward_jax.sampling.engine", {"selfreward_jax.sampling.engine"}),
        ("method/x.py", "def f():\n    import jax.numpy as jnp", {"jax.numpy"}),
        ("method/x.py", "from selfreward_jax.worlds.toy import oracle", {"selfreward_jax.worlds.toy.oracle"}),
        (
            "method/x.py",
            "from selfreward_jax.worlds.toy.oracle import points",
            {"selfreward_jax.worlds.toy.oracle.points"},
        ),
        ("method/x.py", "from ..worlds.toy import oracle", {"selfreward_jax.worlds.toy.oracle"}),
        ("evaluate/x.py", "from selfreward_jax.worlds.toy import oracle", set()),
        ("stages/dpo.py", "from selfreward_jax.evaluate import oracle", {"selfreward_jax.evaluate.oracle"}),
        (
            "stages/dpo.py",
            "from selfreward_jax.evaluate import model_metrics",
            {"selfreward_jax.evaluate.model_metrics"},
        ),
        ("stages/dpo.py", "from selfreward_jax.stages import measure", {"selfreward_jax.stages.measure"}),
        ("stages/measure.py", "from selfreward_jax.evaluate import model_metrics", set()),
        ("stages/x.py", "from selfreward_jax.evaluate.head_to_head import sign", set()),
        ("report/x.py", "from selfreward_jax.evaluate.oracle import points", {"selfreward_jax.evaluate.oracle.points"}),
        ("evaluate/x.py", "from selfreward_jax import loop, storage", {"selfreward_jax.loop"}),
        ("parallel/x.py", "from selfreward_jax import storage", {"selfreward_jax.storage"}),
        ("parallel/x.py", "from jax._src import distributed", {"jax._src.distributed"}),
        ("parallel/x.py", "from .mesh import make_mesh\nimport jax", set()),
        ("train/x.py", "from selfreward_jax.sampling import engine", {"selfreward_jax.sampling.engine"}),
        ("train/x.py", "from selfreward_jax.llm.decoder import Decoder\nimport jax", set()),
    ],
)
def test_the_rule_sees_what_it_forbids(path, source, wrong):
    package = ".".join([PACKAGE, *path.split("/")[:-1]])
    assert faults(path, imports(source, package)) == wrong

"""The house's import rule: a file imports from its own floor or below, and the oracle stays in evaluate/."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "selfreward_jax"
ROOT = Path(__file__).parents[1] / PACKAGE
PROGRAMS = {
    "main",
    "export",
    "answer",
    "evaluation",
    "harness",
    "fits",
    "explain",
    "reporting",
}  # harness is what another program, lm_eval, starts from
ABOVE = {"loop", "stages", "saved", "formats"}
BENEATH = ABOVE | {"run", "report", "evaluate", "method", "train", "generate", "llm", "worlds", "config", "scales"}

# What each floor may not import. Nothing imports a program.
FORBIDDEN = {
    "command": ABOVE | {"run", "report", "evaluate", "method", "train", "generate", "llm", "worlds"},
    "loop": set(),
    "stages": {"loop", "formats"},
    "saved": {"loop", "stages", "report", "evaluate", "method", "formats"},
    "formats": ABOVE | {"run", "report", "evaluate", "train", "generate", "llm", "worlds", "jax", "jaxlib"},
    "report": ABOVE,
    "run": ABOVE | {"report", "evaluate"},
    "evaluate": ABOVE | {"report"},
    "sizing": ABOVE | {"report", "evaluate", "method"},
    "llm": ABOVE | {"run", "report", "evaluate", "method", "train", "generate", "worlds"},
    "generate": ABOVE | {"run", "report", "evaluate", "method", "train", "worlds"},
    "method": ABOVE | {"run", "report", "evaluate", "train", "jax", "jaxlib", "flax", "optax"},
    "train": ABOVE | {"run", "report", "evaluate", "method"},
    "worlds": ABOVE | {"run", "report", "evaluate", "train", "llm", "generate", "method"},
    "parallel": {PACKAGE},
    "storage": BENEATH | {"rowfile", "lock"},
    "rowfile": BENEATH | {"lock"},
    "lock": BENEATH | {"rowfile"},
    "compiled": {PACKAGE},
    "ledger": BENEATH | {"storage", "rowfile", "lock"},
    "config": {PACKAGE},
    "changes": BENEATH - {"config"} | {"storage", "rowfile", "lock"},
    "checks": ABOVE | {"run", "report", "evaluate", "method", "train", "generate", "llm", "worlds"},
    "scales": {PACKAGE},
}


def imports(source, package):
    """Full names of the modules that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def floor(name):
    """The floor of a full name: "selfreward_jax.llm.chat" is of llm, "jax.numpy" of jax."""
    parts = name.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else parts[0]


def faults(floor_name, names):
    """Those of `names` that a file of that floor may not import."""
    forbidden = FORBIDDEN[floor_name] | PROGRAMS
    beside = {floor_name, "scales"} if floor_name == "config" else {floor_name}
    own = {name for name in names if name.split(".")[0] == PACKAGE and floor(name) not in beside}
    whole = own if PACKAGE in forbidden else set()
    return {name for name in names if floor(name) in forbidden} | whole | oracles(floor_name, names)


def oracles(floor_name, names):
    """Those of `names` by which the oracle would come to a file of that floor. evaluate/ alone knows it; the stages,
    which train, may not even have evaluate/'s figures, in which it speaks."""
    hidden = [] if floor_name == "evaluate" else ["worlds.oracle", "evaluate.oracle"]
    hidden += ["evaluate.models"] if floor_name == "stages" else []
    return {n for n in names if any(f"{n}.".startswith(f"{PACKAGE}.{h}.") for h in hidden)}


def files():
    """Path within the package, dotted package and imports of each file."""
    for path in sorted(ROOT.rglob("*.py")):
        inside = path.relative_to(ROOT)
        yield inside, imports(path.read_text(), ".".join([PACKAGE, *inside.parts[:-1]]))


FILES = dict(files())


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_nothing_from_above(path):
    floor_name = path.parts[0].removesuffix(".py")
    if floor_name == "__init__":
        assert not {name for name in FILES[path] if name.startswith(PACKAGE)}
    elif path.name == "__main__.py":  # a door: it opens a program and does nothing else
        assert {floor(name) for name in FILES[path] if name.startswith(PACKAGE)} <= PROGRAMS
        assert len((ROOT / path).read_text().splitlines()) < 12
    elif floor_name in PROGRAMS:
        assert not oracles(floor_name, FILES[path])
    else:
        assert floor_name in FORBIDDEN, f"{floor_name} is a new floor: say what it may not import"
        assert not faults(floor_name, FILES[path])


def test_no_floors_import_each_other_in_a_circle():
    graph = {}
    for path, names in FILES.items():
        own = "main" if path.name == "__main__.py" else path.parts[0].removesuffix(".py")
        below = {floor(name) for name in names if name.startswith(f"{PACKAGE}.")} - {own}
        graph.setdefault(own, set()).update(below)
    assert "main" in list(TopologicalSorter(graph).static_order())  # raises CycleError on a circle


@pytest.mark.parametrize(
    ("floor_name", "source", "found"),
    [
        ("llm", "from selfreward_jax.train import losses", {"selfreward_jax.train.logprobs"}),
        ("llm", "import selfreward_jax.sampling.engine", {"selfreward_jax.sampling.engine"}),
        ("method", "def f():\n    import jax.numpy as jnp", {"jax.numpy"}),
        ("method", "from selfreward_jax.worlds import oracle", {"selfreward_jax.worlds.toy.oracle"}),
        ("method", "from selfreward_jax.worlds.toy.oracle import points", {"selfreward_jax.worlds.toy.oracle.points"}),
        ("method", "from ..worlds import oracle", {"selfreward_jax.worlds.toy.oracle"}),
        ("evaluate", "from selfreward_jax.worlds import oracle", set()),
        ("stages", "from selfreward_jax.evaluate import oracle", {"selfreward_jax.evaluate.oracle"}),
        ("stages", "from selfreward_jax.evaluate import models", {"selfreward_jax.evaluate.model_metrics"}),
        ("stages", "from selfreward_jax.evaluate.head_to_head import sign", set()),
        ("report", "from selfreward_jax.evaluate.oracle import points", {"selfreward_jax.evaluate.oracle.points"}),
        ("evaluate", "from selfreward_jax import loop, storage", {"selfreward_jax.loop"}),
        ("parallel", "from selfreward_jax import storage", {"selfreward_jax.storage"}),
        ("config", "from selfreward_jax.config.presets import SCALES", set()),
        ("storage", "from selfreward_jax.config.presets import SCALES", {"selfreward_jax.config.presets.SCALES"}),
        ("parallel", "from .mesh import make_mesh\nimport jax", set()),
        ("train", "from selfreward_jax.llm.llama import Llama\nimport jax", set()),
    ],
)
def test_the_rule_sees_what_it_forbids(floor_name, source, found):
    assert faults(floor_name, imports(source, f"{PACKAGE}.{floor_name}")) == found

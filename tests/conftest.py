"""What several test files share."""

import contextlib
import fcntl
import io
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import environment  # first: JAX reads it when it is imported
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings
from ml_collections import ConfigDict

from selfreward_jax import config, main
from selfreward_jax.cli import program
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params, ParamSpec, param_specs

ROOT = Path(__file__).parents[1]

# The same few examples each time; HYPOTHESIS_PROFILE=thorough (or exhaustive) looks at many, and at others.
settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=400, deadline=None, print_blob=True)
settings.register_profile("exhaustive", max_examples=2_500, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a finished run come first: while one worker makes it, the others have work that needs none."""
    items.sort(key=lambda item: "finished_run" not in getattr(item, "fixturenames", ()))


def arguments(workdir: Path, iterations: int, *options: str) -> list[str]:
    """The main program's, at the smallest scale."""
    return [f"--config={ROOT}/configs/iter{iterations}.py:micro", f"--workdir={workdir}", *options]


def command(workdir: Path, iterations: int, *options: str) -> list[str]:
    """The main command at the smallest scale, for a process of its own."""
    return [sys.executable, "-m", "selfreward_jax.main", *arguments(workdir, iterations, *options)]


def ended(command: types.ModuleType, *argv: str) -> tuple[int, str]:
    """Exit code and standard error of a command in this process: main, or a module of cli/."""
    err, name = io.StringIO(), command.__name__.rpartition(".")[2]
    with contextlib.redirect_stderr(err):
        code = main.main(argv) if command is main else program.main([name, *argv])
    return code, err.getvalue()


def run(workdir: Path, iterations: int, *options: str) -> None:
    """The main program in this process, at the smallest scale."""
    code, err = ended(main, *arguments(workdir, iterations, *options))
    assert code == 0, err[-3000:]


def refused(*argv: str) -> str:
    """The one line with which the main program refuses its arguments in this process."""
    code, err = ended(main, *argv)
    assert (code, err.count("\n")) == (2, 1), err
    return err


def assert_mentions(message: str, *facts: object) -> None:
    """That each of the facts stands in a message, whatever its words: a setting, a value, a path, a number."""
    for fact in facts:
        assert re.search(rf"(?<![\w.]){re.escape(str(fact))}(?!\w|[.,]\d)", message), (fact, message)


def on_eight_devices(script: str, *argv: str) -> str:
    """What a Python script prints in a process with eight simulated devices."""
    command = [sys.executable, "-c", script, *argv]
    done = subprocess.run(command, cwd=ROOT, env=environment.simulated(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def micro(iterations: int) -> ConfigDict:
    """The settings of the smallest scale."""
    cfg = config.get_config("micro")
    cfg.iterations = iterations
    return cfg


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function from a name and a maker to a folder that the first worker which asks for it makes for all of them.
    Tests must leave it as it is."""
    home = tmp_path_factory.getbasetemp()
    home = home.parent if "PYTEST_XDIST_WORKER" in os.environ else home

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path, done = home / name, home / f"{name}.done"
        with (home / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)
                make(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def finished_run(once) -> Path:
    """An uninterrupted run to M2. Tests must leave it as it is."""
    return once("finished_run", lambda path: run(path, 2))


@pytest.fixture(scope="session")
def random_params() -> Callable[..., Params]:
    """A function from a DecoderConfig to parameters in which nothing is 0 or 1: a scale or a bias that still has its
    initial value would hide its own omission."""

    def make(cfg: DecoderConfig, seed: int = 0) -> Params:
        rng = np.random.default_rng(seed)

        def one(path, w):
            return jnp.asarray(rng.normal("norm" in str(path[-1]), 0.3, w.shape), cfg.param_dtype)

        return jax.tree_util.tree_map_with_path(one, param_specs(cfg), is_leaf=lambda x: isinstance(x, ParamSpec))

    return make

"""What several test files share."""

import atexit
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What tests and the programs that they start compile, they share for as long as they run, and leave nothing behind.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="selfreward_jax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfreward_jax import config, loop
from selfreward_jax.llm.llama import Weight, weights

# Tests compile many small programs and run each of them once.
jax.config.update("jax_disable_most_optimizations", True)


ROOT = Path(__file__).parents[1]


def command(workdir, iterations, *options):
    """The main command at the smallest scale."""
    config = f"--config=configs/iter{iterations}.py:micro"
    return [sys.executable, "-m", "selfreward_jax.main", config, f"--workdir={workdir}", *options]


def run(workdir, iterations, *options):
    """Runs it."""
    done = subprocess.run(command(workdir, iterations, *options), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def on_eight_devices(script, *argv):
    """What a Python script prints in a process with eight simulated devices."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, *argv]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def ended(program, *argv):
    """Exit code and standard error of a program run in this process."""
    err = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", err)
        code = program.main(["program", *argv])
    return code, err.getvalue()


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """An uninterrupted run to M2. Tests must leave it as it is."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(workdir, 2)
    return workdir


def micro(iterations):
    """The settings of the smallest scale."""
    cfg = config.get("micro")
    cfg.iterations = iterations
    return cfg


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """An uninterrupted run to M2 in this process, whose bits are those of other runs in it. Tests must leave it as it
    is."""
    workdir = tmp_path_factory.mktemp("made") / "run"
    loop.run(micro(2), str(workdir))
    return workdir


@pytest.fixture(scope="session")
def random_params():
    """A function from a LlamaConfig to parameters in which nothing is 0 or 1: a scale or a bias that still has its
    initial value would hide its own omission."""

    def make(cfg, seed=0):
        rng = np.random.default_rng(seed)

        def one(path, w):
            return jnp.asarray(rng.normal("norm" in str(path[-1]), 0.3, w.shape), cfg.param_dtype)

        return jax.tree_util.tree_map_with_path(one, weights(cfg), is_leaf=lambda x: isinstance(x, Weight))

    return make

"""Compiled programs are cached from run to run, and counted."""

import os
import pwd
import subprocess
import sys

import pytest
from conftest import ROOT, assert_mentions, refused

from selfreward_jax.telemetry import compile_cache

SCRIPT = """
import sys
import jax
from selfreward_jax.telemetry import compile_cache
compile_cache.enable(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs too, however fast the machine
before = compile_cache.count()
with jax.default_device(jax.devices()[0]):
    x = jax.jit(lambda x: jax.lax.fori_loop(0, 9, lambda i, y: jax.numpy.sort(y @ y)[::-1], x))(jax.numpy.eye(9))
new = compile_cache.count().since(before)
print(x.sum(), new.compiled, new.cache_hits, new.seconds > 0)
"""


def counted(directory, **env):
    """The sum, the number of compiled programs, and the number of cache hits."""
    base = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, directory]
    done = subprocess.run(command, cwd=ROOT, env=base | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    total, new, hits, took = done.stdout.split()
    assert took == "True"
    return total, int(new), int(hits)


def test_a_second_start_reads_from_the_cache(tmp_path):
    first, second = counted(str(tmp_path)), counted(str(tmp_path))
    assert first[0] == second[0]
    assert first[2] == 0 < second[2]
    assert second[1] < first[1]
    (folder,) = tmp_path.iterdir()  # one for each kind of processor
    assert any(folder.iterdir())


def test_an_empty_directory_disables_the_cache(tmp_path):
    assert counted("", HOME=str(tmp_path))[2] == counted("", HOME=str(tmp_path))[2] == 0
    assert not any(tmp_path.iterdir())


def test_the_environment_variable_has_priority(tmp_path):
    counted(str(tmp_path / "ours"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert not (tmp_path / "ours").exists()


IN_A_BUCKET = """
import jax
from selfreward_jax.telemetry import compile_cache
compile_cache.enable(WHERE)
print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_enable_xla_caches)
"""


@pytest.mark.parametrize(
    ("where", "env", "directory", "xla"),
    [
        ("'gs://b/cache'", {}, "gs://b/cache/", "none"),
        ("None, 'gs://b/run/'", {}, "gs://b/run/compile_cache/", "none"),
        ("'/x', 'gs://b/run'", {}, "/x/", "xla_gpu"),
        ("None, '/runs/a'", {}, "/caches/selfreward_jax/", "xla_gpu"),
        ("None, 'gs://b/run'", {"JAX_COMPILATION_CACHE_DIR": "/y"}, "/y", "xla_gpu"),
        ("'/x'", {"JAX_COMPILATION_CACHE_DIR": "gs://b/z"}, "gs://b/z", "none"),
    ],
)
def test_a_cache_may_be_in_a_bucket(where, env, directory, xla):
    """Then XLA keeps none of its own, which would be a local folder named gs:."""
    base = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    base |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": "/caches"} | env
    command = [sys.executable, "-c", IN_A_BUCKET.replace("WHERE", where)]
    done = subprocess.run(command, cwd=ROOT, env=base, capture_output=True, text=True)
    found, enabled = done.stdout.split()
    assert found.startswith(directory), done.stderr
    assert enabled.startswith(xla)


def test_the_default_is_in_the_users_cache_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert compile_cache._default_directory() == "/caches/selfreward_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/a")
    assert compile_cache._default_directory() == "/home/a/.cache/selfreward_jax"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert compile_cache._default_directory() == ""  # no home folder: no cache


def test_counts_are_differences():
    assert compile_cache.CompileCount(5, 3, 2.5).since(compile_cache.CompileCount(2, 1, 0.5)) == (3, 2, 2.0)


def test_the_option_exists():
    assert_mentions(refused("--compile_cache=", "--workdir=x"), "--config")

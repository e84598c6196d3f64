"""Loading of models: which model a path names, the pinned writer of prompts, and shardings."""

import json
import shutil
import weakref
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mentions, on_eight_devices
from etils import epath

from selfreward_jax.cli import program
from selfreward_jax.config import ConfigError, get_config
from selfreward_jax.parallel.mesh import make_mesh, sampling_mesh
from selfreward_jax.runs.loading import load_model, resolve_model
from selfreward_jax.stages import StageError
from selfreward_jax.stages.common import _pin_writer
from selfreward_jax.storage import read_checksummed, write_checksummed


def test_the_digest_of_a_model_does_not_depend_on_its_directory(finished_run, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "copy", ignore=shutil.ignore_patterns("*.jsonl"))
    assert resolve_model(str(finished_run)) == resolve_model(str(copy)) == resolve_model(str(copy), "m2")
    (_, last), (name, first) = resolve_model(str(finished_run)), resolve_model(str(finished_run), "m1")
    assert (name, last != first) == ("m1", True)
    with pytest.raises(ConfigError, match=r"\bm0, m1, m2\b.*\bm7\b"):
        resolve_model(str(finished_run), "m7")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        resolve_model(str(tmp_path))


def test_the_digest_of_a_folder_follows_from_its_content(finished_run, tmp_path):
    for name in ("m1", "m2"):
        assert program.main(["export", f"--workdir={finished_run}", f"--model={name}", f"--out={tmp_path}/{name}"]) == 0
    shutil.copytree(tmp_path / "m1", tmp_path / "other" / "m1")
    assert resolve_model(f"{tmp_path}/m1") == resolve_model(f"{tmp_path}/other/m1")
    assert resolve_model(f"{tmp_path}/m1")[0] == "m1"


def test_a_folder_that_is_neither_run_nor_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        load_model(str(tmp_path))
    assert_mentions(str(caught.value), repr(str(tmp_path)), "config.json", "'architectures'")


def test_the_prompt_writer_is_pinned_in_the_first_round(finished_run, tmp_path):
    writer = shutil.copytree(finished_run, tmp_path / "writer", ignore=shutil.ignore_patterns("*.jsonl"))
    mesh = make_mesh()
    run = SimpleNamespace(
        workdir=epath.Path(tmp_path),
        cfg=SimpleNamespace(prompts=SimpleNamespace(writer=str(writer)), parallel=get_config("micro").parallel),
        models=SimpleNamespace(mesh=mesh, sampling_mesh=sampling_mesh(mesh)),
    )
    _pin_writer(run)
    pinned = json.loads((tmp_path / "prompts_writer.json").read_text())
    assert pinned["model"] == "m2"
    shutil.copytree(writer / "m1", writer / "m3")  # the run has continued: its last model is another one now
    _pin_writer(run)
    assert json.loads((tmp_path / "prompts_writer.json").read_text()) == pinned
    manifest = epath.Path(writer) / "m2" / "manifest.json"
    write_checksummed(manifest, read_checksummed(manifest) | {"weights": "of another"})
    with pytest.raises(StageError, match=r"prompts\.writer\b.*\bm2\b"):
        _pin_writer(run)


UNDIVIDED = """
import sys, tempfile
from types import SimpleNamespace
from etils import epath
from selfreward_jax import config
from selfreward_jax.parallel.mesh import make_mesh, sampling_mesh
from selfreward_jax.stages.common import _pin_writer
for tensor in (2, 8):
    cfg, mesh = config.get_config("micro"), make_mesh(8 // tensor, tensor)
    cfg.parallel.fsdp, cfg.parallel.tensor = 8 // tensor, tensor
    models = SimpleNamespace(mesh=mesh, sampling_mesh=sampling_mesh(mesh))
    for cfg.prompts.writer in sys.argv[1:]:
        try:
            _pin_writer(SimpleNamespace(workdir=epath.Path(tempfile.mkdtemp()), cfg=cfg, models=models))
            print("fits")
        except config.ConfigError as error:
            print(error)
"""


def test_a_writer_that_the_meshes_do_not_divide_is_refused_before_it_is_loaded(finished_run, tmp_path):
    assert program.main(["export", f"--workdir={finished_run}", "--model=m1", f"--out={tmp_path}/m1"]) == 0
    lines = on_eight_devices(UNDIVIDED, f"{tmp_path}/m1", finished_run).splitlines()
    assert lines[:2] == ["fits", "fits"]  # two heads
    assert len(lines) == 4
    for line in lines[2:]:
        assert_mentions(line, "prompts.writer", "8", "tensor")


FRACTIONS = """
import math, sys
from types import SimpleNamespace
from selfreward_jax import config
from selfreward_jax.parallel.mesh import make_mesh, sampling_mesh
from selfreward_jax.runs.loading import load_model
cfg = config.get_config("micro")
cfg.parallel.fsdp, cfg.parallel.tensor = 4, 2
mesh = make_mesh(4, 2)
run = SimpleNamespace(cfg=cfg, models=SimpleNamespace(mesh=mesh, sampling_mesh=sampling_mesh(mesh)))
for path in sys.argv[1:]:
    for mesh_from in (run, None):
        model = load_model(path, mesh_from=mesh_from)
        fraction = lambda x: math.prod(x.sharding.shard_shape(x.shape)) / x.size
        engine = model.engine(8, 256)
        print(fraction(model.params["layers"]["wq"]), fraction(engine.params["layers"][0]["wq"]))
"""


def test_mesh_from_shards_a_model_over_the_meshes_of_a_run(finished_run, tmp_path):
    assert program.main(["export", f"--workdir={finished_run}", "--model=m1", f"--out={tmp_path}/m1"]) == 0
    lines = on_eight_devices(FRACTIONS, f"{tmp_path}/m1", finished_run).splitlines()
    fractions = [[float(x) for x in line.split()] for line in lines]
    # Training over 4 x 2 devices, sampling over 2; without mesh_from each device has all weights.
    assert fractions == [[1 / 8, 1 / 2], [1, 1]] * 2


def test_an_engine_that_takes_the_parameters_is_all_that_holds_them(finished_run):
    model = load_model(str(finished_run), "m1")
    stacks = [weakref.ref(w) for w in model.params["layers"].values()]
    expected = {name: float(jnp.sum(w)) for name, w in model.params["layers"].items()}
    engine = model.engine(2, 64, take_params=True)
    assert not jax.tree.leaves(model.params)
    assert [stack() for stack in stacks] == [None] * len(stacks)
    layers = engine.params["layers"]
    for name, total in expected.items():
        np.testing.assert_allclose(sum(float(jnp.sum(layer[name])) for layer in layers), total, rtol=1e-4, atol=1e-3)

"""Which model a path names, told without loading it; and the writer of prompts, who stays the same."""

import json
import shutil
from types import SimpleNamespace

import pytest
from conftest import on_eight_devices
from etils import epath

from selfreward_jax.cli import export
from selfreward_jax.config import ConfigError
from selfreward_jax.runs.loading import resolve_model
from selfreward_jax.stages import StageError
from selfreward_jax.stages.common import _pin_writer
from selfreward_jax.storage import write_checksummed


def test_a_model_is_what_it_is_wherever_it_lies(finished_run, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "copy", ignore=shutil.ignore_patterns("*.jsonl"))
    assert resolve_model(str(finished_run)) == resolve_model(str(copy)) == resolve_model(str(copy), "m2")
    (_, last), (name, first) = resolve_model(str(finished_run)), resolve_model(str(finished_run), "m1")
    assert (name, last != first) == ("m1", True)
    with pytest.raises(ConfigError, match=r"\bm0, m1, m2\b.*\bm7\b"):
        resolve_model(str(finished_run), "m7")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        resolve_model(str(tmp_path))


def test_an_exported_folder_is_known_by_what_it_holds(finished_run, tmp_path):
    for name in ("m1", "m2"):
        assert export.main(["export", f"--workdir={finished_run}", f"--model={name}", f"--to={tmp_path}/{name}"]) == 0
    shutil.copytree(tmp_path / "m1", tmp_path / "other" / "m1")
    assert resolve_model(f"{tmp_path}/m1") == resolve_model(f"{tmp_path}/other/m1")
    assert resolve_model(f"{tmp_path}/m1")[0] == "m1"


def test_the_writer_of_the_first_round_writes_in_every_round(finished_run, tmp_path):
    writer = shutil.copytree(finished_run, tmp_path / "writer", ignore=shutil.ignore_patterns("*.jsonl"))
    run = SimpleNamespace(dir=epath.Path(tmp_path), cfg=SimpleNamespace(prompts=SimpleNamespace(writer=str(writer))))
    _pin_writer(run)
    pinned = json.loads((tmp_path / "prompts_writer.json").read_text())
    assert pinned["model"] == "m2"
    shutil.copytree(writer / "m1", writer / "m3")  # the run goes on: its last model is another one now
    _pin_writer(run)
    assert json.loads((tmp_path / "prompts_writer.json").read_text()) == pinned
    write_checksummed(epath.Path(writer) / "m2" / "manifest.json", {"weights": "of another"})
    with pytest.raises(StageError, match=r"prompts\.writer\b.*\bm2\b"):
        _pin_writer(run)


SHARES = """
import math, sys
from types import SimpleNamespace
from selfreward_jax import config
from selfreward_jax.parallel.mesh import make_mesh, sampling_mesh
from selfreward_jax.runs.loading import open_model
cfg = config.get("micro")
cfg.parallel.fsdp, cfg.parallel.tensor = 4, 2
mesh = make_mesh(4, 2)
run = SimpleNamespace(cfg=cfg, mesh=mesh, sampling_mesh=sampling_mesh(mesh))
for path in sys.argv[1:]:
    for like in (run, None):
        model = open_model(path, like=like)
        share = lambda x: math.prod(x.sharding.shard_shape(x.shape)) / x.size
        engine = model.engine(8, 256)
        print(share(model.params["layers"]["wq"]), share(engine.params["layers"]["wq"]))
"""


def test_a_model_that_serves_a_run_lies_on_its_meshes(finished_run, tmp_path):
    assert export.main(["export", f"--workdir={finished_run}", "--model=m1", f"--to={tmp_path}/m1"]) == 0
    lines = on_eight_devices(SHARES, f"{tmp_path}/m1", finished_run).splitlines()
    found = [[float(x) for x in line.split()] for line in lines]
    # Training over 4 x 2 devices, sampling over 2; of its own accord either lies whole on each.
    assert found == [[1 / 8, 1 / 2], [1, 1]] * 2

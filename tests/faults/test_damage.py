"""Whatever file of a finished run is damaged: it is detected, quarantined, and regenerated with the same bytes."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import assert_mentions, micro
from etils import epath
from test_loop import contents

from selfreward_jax import loop, storage
from selfreward_jax.config import ConfigError
from selfreward_jax.stages import early_stopping
from selfreward_jax.storage import StorageError

# What is damaged, and what is quarantined with it.
FILES = {
    "seed/ift.jsonl": ["seed/ift.manifest.json"],
    "seed/documents.manifest.json": [],
    "tokenizer/tokenizer.model": ["tokenizer"],
    "m0/manifest.json": [],
    "m1/manifest.json": [],
    "m1/eval.json": [],
    "m1/eval_answers.jsonl": ["m1/eval_answers.manifest.json"],
    "m2/prompts.jsonl": ["m2/prompts.manifest.json"],
    "m2/responses.jsonl": ["m2/responses.manifest.json"],
    "m2/judgments.manifest.json": [],
    "m2/pairs.jsonl": ["m2/pairs.manifest.json"],
    "m2/manifest.json": [],
}


def flip(path, at=0.6):
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(bytes(data))


def quarantined(workdir):
    """What was quarantined, by its former name."""
    found = [str(p.relative_to(workdir)) for p in workdir.rglob("*.damaged")]
    return sorted(name.removesuffix(".damaged") for name in found)


@pytest.mark.slow
def test_all_damage_at_once_is_detected_and_regenerated(finished_run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    for name in FILES:
        flip(workdir / name)
    loop.run(micro(2), str(workdir))
    assert contents(workdir) == contents(finished_run)
    expected = {*FILES, *(name for others in FILES.values() for name in others)} - {"tokenizer/tokenizer.model"}
    assert set(quarantined(workdir)) == expected
    printed = capsys.readouterr().err
    for name in expected:
        assert f"{name.rpartition('/')[2]}.damaged" in printed, name


def test_a_damaged_log_costs_nothing_else(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    (workdir / "events.jsonl").write_text('{"seconds": ')
    loop.run(micro(2), str(workdir))
    assert contents(workdir) == contents(finished_run)


@pytest.mark.parametrize("model", [pytest.param("m1", marks=pytest.mark.slow), "m2"])
def test_a_damaged_model_is_trained_again_and_is_the_same(finished_run, tmp_path, capsys, model):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    flip(max((p for p in (workdir / model / "checkpoint").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))
    for name in ("eval.json", "eval_answers.manifest.json"):  # for which the model is needed
        (workdir / model / name).unlink()
    loop.run(micro(2), str(workdir))
    assert contents(workdir) == contents(finished_run)
    assert f"{model}/checkpoint" in capsys.readouterr().err
    assert quarantined(workdir) == [f"{model}/checkpoint", f"{model}/checkpoint.json"]


@pytest.mark.slow
def test_a_damaged_best_step_of_early_stopping_is_regenerated(tmp_path, monkeypatch, capsys):
    cfg = micro(2)
    cfg.dpo.eval_every, cfg.dpo.eval_prompts = 2, 4
    monkeypatch.setattr(
        early_stopping, "win_rates", lambda verdicts: {"win": 0.6, "tie": 0.0, "lose": 0.4}
    )  # each step is better
    loop.run(cfg, str(tmp_path / "whole"))
    best_params, damaged = early_stopping.EarlyStopping.best_params, []

    def after_damage(self):
        if not damaged:
            damaged.append(Path(self.run.workdir) / self.model / "best" / str(self.best))
            flip(max((p for p in damaged[0].rglob("*") if p.is_file()), key=lambda p: len(p.read_bytes())))
        return best_params(self)

    monkeypatch.setattr(early_stopping.EarlyStopping, "best_params", after_damage)
    loop.run(cfg, str(tmp_path / "run"))
    assert damaged
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert "best/" in capsys.readouterr().err


def test_rows_of_other_weights_are_not_mixed_with_these(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    shutil.rmtree(workdir / "m1" / "checkpoint")
    shutil.copytree(workdir / "m0" / "checkpoint", workdir / "m1" / "checkpoint")
    shutil.copy(workdir / "m0" / "checkpoint.json", workdir / "m1" / "checkpoint.json")
    # As another machine makes it from the same settings: other weights, the same owner.
    m0, m1 = (epath.Path(workdir / name / "manifest.json") for name in ("m0", "m1"))
    owner = {"owner": storage.read_checksummed(m1)["owner"]}
    storage.write_checksummed(m1, storage.read_checksummed(m0) | owner)
    (workdir / "m1" / "eval.json").unlink()
    with pytest.raises(StorageError) as error:
        loop.run(micro(2), str(workdir))
    theirs, now = (json.loads((finished_run / name / "manifest.json").read_text())["weights"] for name in ("m1", "m0"))
    assert_mentions(str(error.value), "eval_answers.jsonl", "m1", theirs, now)


def test_damaged_settings_are_refused_with_a_remedy(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ConfigError, match=r"config\.json\b.*--workdir"):
        loop.run(micro(1), str(tmp_path))

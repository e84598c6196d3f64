"""Training curves for TensorBoard and Weights & Biases: the values of the log under TRL's names."""

import importlib.util
import json
import struct
import sys
import types

import pytest
from conftest import assert_mentions, micro
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from selfreward_jax.config import ConfigError
from selfreward_jax.runs.run import Run
from selfreward_jax.train import metric_writers


def folder(directory, **changed):
    """Settings and working directory, as curves need them."""
    cfg = micro(2)
    cfg.report.update(changed)
    return cfg, epath.Path(directory)


class Folder:
    """As much of a run as curves need."""

    def __init__(self, directory, **changed):
        self.dir, self.cfg = epath.Path(directory), micro(2)
        self.cfg.report.update(changed)


def events(path):
    """A file of TFRecords: length, checksum, event, checksum."""
    data = path.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def values(folder):
    """{tag: {step: value}} of all files, as TensorBoard reads them: a start takes back the steps from its own on."""
    found = {}
    for path in sorted(folder.glob("*"), key=lambda p: p.stat().st_mtime_ns):
        for event in events(path):
            if event.HasField("session_log"):
                for of in found.values():
                    for step in [s for s in of if s >= event.step]:
                        del of[step]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_a_run_has_the_curves_of_its_log(finished_run):
    log = [json.loads(line) for line in (finished_run / "events.jsonl").read_text().splitlines()]
    for name, tag, field in (
        ("m2-dpo", "train/rewards/margins", "margin"),
        ("m2-dpo", "train/rewards/accuracies", "accuracy"),
        ("m2-dpo", "train/logps/chosen", "chosen_logprob"),
        ("m2-dpo", "train/learning_rate", "lr"),
        ("m1-sft", "train/loss", "loss"),
        ("m0-base", "train/grad_norm", "grad_norm"),
    ):
        model, stage = name.split("-")
        logged = {
            e["step"]: e[field] for e in log if (e.get("model"), e.get("stage")) == (model, stage) and "step" in e
        }
        assert logged
        assert values(finished_run / "tensorboard" / name)[tag] == pytest.approx(logged, rel=1e-6)


def test_steps_that_are_redone_count_once(tmp_path):
    r = Folder(tmp_path)
    for start, loss in ((0, 1.0), (3, 2.0)):
        with metric_writers.metric_writer(r.cfg, r.dir, "m1-sft", start) as add:
            for step in range(start, start + 5):
                add(step, {"loss": loss})
    assert values(tmp_path / "tensorboard" / "m1-sft")["train/loss"] == {s: 1.0 + (s >= 3) for s in range(8)}


def test_curves_that_nobody_wants_are_not_written(tmp_path):
    with metric_writers.metric_writer(*folder(tmp_path, tensorboard=False), "m1-sft", 0) as add:
        add(0, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_they_are_sent_to_a_project_that_is_named(tmp_path, monkeypatch):
    sent = []

    class Sent:
        def log(self, values, step):
            sent.append((step, values))

        def finish(self):
            sent.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **how: sent.append(how) or Sent()))
    with metric_writers.metric_writer(*folder(tmp_path, tensorboard=False, wandb="mine"), "m2-dpo", 0) as add:
        add(4, {"margin": 0.5})
    assert sent[0]["project"] == "mine"
    assert sent[1:] == [(4, {"train/rewards/margins": 0.5}), "finished"]


def test_where_it_fails_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **how: 1 / 0))
    with metric_writers.metric_writer(*folder(tmp_path, wandb="mine"), "m2-dpo", 0) as add:
        add(0, {"loss": 1.0})
        add(1, {"loss": 1.0})
    (line,) = capsys.readouterr().err.splitlines()
    assert_mentions(line, "report.wandb", "ZeroDivisionError")
    assert values(tmp_path / "tensorboard" / "m2-dpo")["train/loss"] == {0: 1.0, 1: 1.0}


def test_without_the_package_a_run_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cfg = micro(2)
    cfg.report.wandb = "mine"
    with pytest.raises(ConfigError, match=r"report\.wandb\b.*'mine'"):
        Run(cfg, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()

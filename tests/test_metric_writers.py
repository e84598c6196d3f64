"""Metrics for TensorBoard and Weights & Biases: the values of the log under TRL's names."""

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
from selfreward_jax.runs.run import check, make_run
from selfreward_jax.stages.table import TABLE
from selfreward_jax.train import metric_writers


def folder(directory, **changed):
    """Settings and a working directory."""
    cfg = micro(2)
    cfg.report.update(changed)
    return cfg, epath.Path(directory)


def events(path):
    """The events of a TFRecord file: length, checksum, event, checksum."""
    data = path.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def values(folder):
    """{tag: {step: value}} of all files, as TensorBoard reads them: a start discards the steps from its own on."""
    found = {}
    for path in sorted(folder.glob("*"), key=lambda p: p.stat().st_mtime_ns):
        for event in events(path):
            if event.HasField("session_log"):
                for curve in found.values():
                    for step in [s for s in curve if s >= event.step]:
                        del curve[step]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_has_the_values_of_the_log(finished_run):
    log = [json.loads(line) for line in (finished_run / "events.jsonl").read_text().splitlines()]
    for name, tag, field in (
        ("m2-dpo", "train/rewards/margins", "margin"),
        ("m2-dpo", "train/rewards/accuracies", "accuracy"),
        ("m2-dpo", "train/logps/chosen", "chosen_logprob"),
        ("m2-dpo", "train/learning_rate", "lr"),
        ("m1-sft", "train/loss", "loss"),
        ("m0-pretrain", "train/grad_norm", "grad_norm"),
    ):
        model, stage = name.split("-")
        logged = {
            e["step"]: e[field] for e in log if (e.get("model"), e.get("stage")) == (model, stage) and "step" in e
        }
        assert logged
        assert values(finished_run / "tensorboard" / name)[tag] == pytest.approx(logged, rel=1e-6)


def test_repeated_steps_count_once(tmp_path):
    for start, loss in ((0, 1.0), (3, 2.0)):
        with metric_writers.metric_writer(*folder(tmp_path), "m1-sft", start) as write:
            for step in range(start, start + 5):
                write(step, {"loss": loss})
    assert values(tmp_path / "tensorboard" / "m1-sft")["train/loss"] == {s: 1.0 + (s >= 3) for s in range(8)}


def test_tensorboard_can_be_switched_off(tmp_path):
    with metric_writers.metric_writer(*folder(tmp_path, tensorboard=False), "m1-sft", 0) as write:
        write(0, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_sent_to_the_wandb_project(tmp_path, monkeypatch):
    sent = []

    class FakeRun:
        def log(self, values, step):
            sent.append((step, values))

        def finish(self):
            sent.append("finished")

    monkeypatch.setitem(
        sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: sent.append(options) or FakeRun())
    )
    with metric_writers.metric_writer(*folder(tmp_path, tensorboard=False, wandb="mine"), "m2-dpo", 0) as write:
        write(4, {"margin": 0.5})
    assert sent[0]["project"] == "mine"
    assert sent[1:] == [(4, {"train/rewards/margins": 0.5}), "finished"]


def test_a_failure_of_wandb_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: 1 / 0))
    with metric_writers.metric_writer(*folder(tmp_path, wandb="mine"), "m2-dpo", 0) as write:
        write(0, {"loss": 1.0})
        write(1, {"loss": 1.0})
    (line,) = capsys.readouterr().err.splitlines()
    assert_mentions(line, "report.wandb", "ZeroDivisionError")
    assert values(tmp_path / "tensorboard" / "m2-dpo")["train/loss"] == {0: 1.0, 1: 1.0}


def test_without_the_wandb_package_a_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cfg = micro(2)
    cfg.report.wandb = "mine"
    with pytest.raises(ConfigError, match=r"report\.wandb\b.*'mine'"):
        check(make_run(cfg, str(tmp_path / "run")), TABLE.dependents)
    assert not (tmp_path / "run").exists()

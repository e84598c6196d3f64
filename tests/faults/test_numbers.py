"""A loss or gradient that is not finite stops the run, or its step is skipped; a bad curve causes a warning."""

import copy
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mentions, micro
from etils import epath
from test_loop import contents
from test_trainer import ADAMW, gradient

from selfreward_jax import loop
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import replicated
from selfreward_jax.runs.log import EventLog
from selfreward_jax.runs.models import ModelStore
from selfreward_jax.stages import StageError
from selfreward_jax.stages import dpo as dpo_stage
from selfreward_jax.train import checkpoints, dpo, trainer
from selfreward_jax.train.monitor import TrainingMonitor

BAD = (2, 5, 6)  # steps whose gradient is not finite


def fit(tmp_path, skip, bad=BAD, start=None):
    """Eight steps; the state, and the metrics of each."""
    optimizer, mesh = trainer.make_optimizer(ADAMW, skip), make_mesh()
    params = {"w": jnp.array([1.0, -2.0])}
    shardings = trainer.state_shardings(optimizer, params, {"w": replicated(mesh)}, mesh)
    state = trainer.TrainState(jnp.int32(0), params, optimizer.init(params))
    update = trainer.make_update(lambda p, b, key: (jnp.sum(b["x"] @ p["w"]), {}), optimizer, shardings, mesh)
    metrics = {}
    state = trainer.fit(
        jax.device_put(state, shardings),
        update,
        lambda step: gradient(math.nan if step in bad else step, 1),
        8,
        lambda _: 0.1,
        jax.random.key(0),
        trainer.FitOptions(
            path=epath.Path(tmp_path), checkpoint_every=2, on_step=metrics.__setitem__, max_nonfinite_steps=skip
        ),
    )
    return state, metrics


def test_skipped_steps_change_nothing_but_the_step_number(tmp_path):
    state, metrics = fit(tmp_path, skip=2)
    assert {step: int(m["skipped"]) for step, m in metrics.items() if m["skipped"]} == {2: 1, 5: 1, 6: 2}
    assert int(state.step) == 8
    inner = state.opt_state.inner_state[1][0]
    assert int(inner.count) == 5
    w, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for t, step in enumerate((0, 1, 3, 4, 7), 1):
        g = np.array([step, 1.0]) / max(1.0, math.hypot(step, 1))
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        w = w - 0.1 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8) + 0.1 * w)
    np.testing.assert_allclose(state.params["w"], w, atol=1e-5)


@pytest.mark.parametrize(("skip", "at"), [(0, 2), (1, 6)])
def test_too_many_of_them_stop_the_run(tmp_path, skip, at):
    with pytest.raises(trainer.DivergenceError) as caught:
        fit(tmp_path, skip)
    assert caught.value.step == at


def test_a_diverged_run_names_its_step_its_batch_and_the_last_good_state(finished_run, tmp_path, monkeypatch):
    loss_fn = dpo.loss_fn

    def breaks(model, settings):
        whole = loss_fn(model, settings)

        def loss(params, batch, key):
            value, metrics = whole(params, batch, key)
            moved = jnp.abs(metrics["margin"]) > 1e-4  # once the rate is no longer 0; below is rounding
            return jnp.where(moved, jnp.nan, value), metrics

        return loss

    monkeypatch.setattr(dpo_stage, "loss_fn", breaks)
    shutil.copytree(finished_run, tmp_path / "run")
    for path in (tmp_path / "run" / "m2").iterdir():
        if path.name.startswith(("checkpoint", "manifest", "ref_logprobs", "eval")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    cfg = micro(2)
    cfg.checkpoint_every = 1
    with pytest.raises(StageError, match=r"\bm2 dpo\b.*\bnan\b.*\b2\b.*\b2\b.*dpo\.lr\b"):
        loop.run(cfg, str(tmp_path / "run"))
    stored = json.loads((tmp_path / "run" / "m2" / "diverged.json").read_text())
    assert stored["step"] == 2
    assert len(stored["chosen_tokens"]) == cfg.dpo.batch_size
    assert all(isinstance(text, str) and text for text in stored["chosen_tokens"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert all(math.isfinite(e["loss"]) for e in lines if "loss" in e)
    # Without the fault, the same command resumes from the last good state.
    monkeypatch.setattr(dpo_stage, "loss_fn", loss_fn)
    assert checkpoints.latest_step(epath.Path(tmp_path) / "run" / "m2" / "steps") == 2
    assert "m2" in loop.run(cfg, str(tmp_path / "run"))["models"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prompts", "responses", "judgments"])
def test_logits_that_are_not_finite_stop_the_run_with_the_row(stage, finished_run, tmp_path, monkeypatch):
    make_engine = ModelStore.engine

    def broken(self, model):
        engine = copy.copy(make_engine(self, model))
        engine.params = jax.tree.map(lambda x: x * jnp.nan, engine.params)
        return engine

    shutil.copytree(finished_run, tmp_path / "run")
    for name in (f"m2/{stage}.jsonl", f"m2/{stage}.manifest.json"):
        (tmp_path / "run" / name).unlink()
    monkeypatch.setattr(ModelStore, "engine", broken)
    with pytest.raises(StageError, match=rf"\bm2 {stage}\b.*\brow \S+, sample 0, token 0\b.*model\.dtype"):
        loop.run(micro(2), str(tmp_path / "run"))
    monkeypatch.setattr(ModelStore, "engine", make_engine)
    loop.run(micro(2), str(tmp_path / "run"))
    assert contents(tmp_path / "run") == contents(finished_run)


def test_a_log_line_with_such_a_number_is_still_json(tmp_path):
    EventLog(epath.Path(tmp_path)).event(step=1, loss=math.nan, grad_norm=math.inf, margin=0.5)
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()

    def refuse(name):
        raise AssertionError(name)

    assert json.loads(line, parse_constant=refuse)["loss"] == "nan"


# --- curves --------------------------------------------------------------------------------------------------------


def warnings(losses, chosen=()):
    monitor = TrainingMonitor(*chosen[:1], 3.0) if chosen else TrainingMonitor()
    rows = [{"loss": loss, **({"chosen_logprob": chosen[i]} if chosen else {})} for i, loss in enumerate(losses)]
    return [line for step, row in enumerate(rows) for line in monitor.warnings(step, row)]


def test_a_loss_spike_causes_one_warning():
    rng = np.random.default_rng(0)
    calm = (1.2 + 0.1 * rng.normal(size=200) - np.arange(200) / 400).tolist()
    assert warnings(calm) == []
    (line,) = warnings([*calm[:80], 3.0, 3.1, *calm[80:]])
    assert_mentions(line, 81, "loss", "3.100", "1.102", 50)
    assert warnings([*calm[:80], 3.0, *calm[80:], 3.0]) == []  # one odd batch
    assert warnings([5.0, 1.0, 9.0, 0.5]) == []  # nothing to compare with yet
    assert warnings([*calm[:80], math.nan, *calm[80:]]) == []  # which is an error elsewhere


def test_a_fall_of_the_chosen_log_probs_causes_one_warning():
    steady = [1.0] * 100
    assert warnings(steady, [-10 - step / 20 for step in range(100)]) == []
    (line,) = warnings(steady, [-10 - step for step in range(100)])
    assert_mentions(line, "-30.5", "-10.0")

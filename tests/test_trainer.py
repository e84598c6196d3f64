"""The update and the loop around it: accumulation, optimizers, resuming, divergence, sharding."""

import math
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import on_eight_devices
from etils import epath
from families import EXPERTS

from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import param_specs
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.preemption import Stopped
from selfreward_jax.parallel.sharding import param_shardings, replicated
from selfreward_jax.train import checkpoints, dpo, logprobs, pair_layout, sft, trainer

CFG = DecoderConfig(vocab_size=29, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)
ADAMW = SimpleNamespace(
    name="adamw", b1=0.9, b2=0.98, weight_decay=0.1, grad_clip_norm=1.0, muon_rms=0.2, moment_dtype="float32"
)


def examples(count, seed):
    rng = np.random.default_rng(seed)
    made = []
    for n in rng.integers(3, 15, count):
        start = int(rng.integers(1, n))
        made.append(Example(rng.integers(0, 29, n).tolist(), [False] * start + [True] * int(n - start)))
    return made


TEXTS = examples(30, seed=0)
PAIRS = [dpo.Pair(*two) for two in zip(examples(9, seed=1), examples(9, seed=2), strict=True)]


def start(cfg, params, optimizer):
    """An initial state (a copy, because updates donate theirs) and its shardings."""
    mesh = make_mesh()
    shardings = trainer.state_shardings(optimizer, params, param_shardings(param_specs(cfg), mesh), mesh)
    state = trainer.TrainState(jnp.int32(0), jax.tree.map(jnp.copy, params), optimizer.init(params))
    return jax.device_put(state, shardings), shardings


def one_step(cfg, params, optimizer, loss_fn, batch):
    state, shardings = start(cfg, params, optimizer)
    return trainer.make_update(loss_fn, optimizer, shardings, make_mesh())(state, batch, jax.random.key(0))


def assert_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


# --- gradient accumulation: SGD with rate 1 moves the parameters by the gradient -----------------------------------


def test_accumulation_changes_only_rounding_for_sft(random_params):
    params = random_params(CFG)
    after = []
    for grad_accum_steps in (1, 4):
        settings = SimpleNamespace(epochs=1, seq_len=32, batch_size=16, grad_accum_steps=grad_accum_steps)
        steps, batch_at = sft.make_batch_fn(TEXTS, settings, 3, make_mesh(), CFG)
        batch = batch_at(steps - 1)  # the last, which is padded with empty rows: microbatches differ in their targets
        assert batch["arrays"]["tokens"].shape == (grad_accum_steps, 16 // grad_accum_steps, 32)
        after.append(one_step(CFG, params, optax.sgd(1.0), sft.loss_fn(Decoder(CFG)), batch))
    assert_close((after[0][0].params, after[0][1]), (after[1][0].params, after[1][1]), 1e-5)
    target = batch["arrays"]["target"]
    assert len(set(np.asarray(target).sum((1, 2)).tolist())) > 1
    assert float(batch["totals"]["target_total"]) == target.sum()


def dpo_settings(**changed):
    defaults = {"epochs": 1, "batch_size": 4, "grad_accum_steps": 1, "beta": 0.3, "dpo_weight": 0.7, "nll_weight": 0.2}
    defaults |= {"replay_weight": 0.5, "replay_batch_size": 4, "replay_seq_len": 32}
    defaults |= {"loss": "sigmoid", "label_smoothing": 0.0, "gamma": 0.0, "length_buckets": 1}
    return SimpleNamespace(**defaults | changed)


@pytest.fixture(scope="module")
def dpo_step(random_params):
    """The parameters, and a function (reference, grad_accum_steps, step) -> batch, next state, metrics."""
    params, optimizer = random_params(CFG), optax.sgd(1.0)
    shardings = start(CFG, params, optimizer)[1]
    update = trainer.make_update(dpo.loss_fn(Decoder(CFG), dpo_settings()), optimizer, shardings, make_mesh())

    def run(reference, grad_accum_steps, step):
        settings = dpo_settings(grad_accum_steps=grad_accum_steps)
        batch = dpo.make_batch_fn(PAIRS, reference, TEXTS, settings, 3, make_mesh(), CFG)[1](step)
        return batch, *update(start(CFG, params, optimizer)[0], batch, jax.random.key(0))

    return params, run


def test_accumulation_changes_only_rounding_for_dpo(dpo_step):
    reference = np.random.default_rng(0).normal(-20, 3, (len(PAIRS), 2)).astype(np.float32)
    (_, *one), (_, *four) = (dpo_step[1](reference, grad_accum_steps, 0) for grad_accum_steps in (1, 4))
    assert_close((one[0].params, one[1]), (four[0].params, four[1]), 2e-5)


# --- DPO -----------------------------------------------------------------------------------------------------------


def test_the_first_dpo_loss_is_log_2_and_the_total_is_its_weighted_parts(dpo_step):
    params, run = dpo_step
    # A reference batch that divides neither the pairs nor the training batch.
    reference = dpo.reference_logprobs(Decoder(CFG), params, PAIRS, 5, make_mesh())
    batch, _, metrics = run(reference, 1, 1)
    metrics = {name: float(x) for name, x in metrics.items()}
    assert metrics["dpo"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["margin"] == pytest.approx(0, abs=1e-5)
    assert metrics["loss"] == pytest.approx(0.7 * metrics["dpo"] + 0.2 * metrics["nll"] + 0.5 * metrics["replay"])

    arrays = jax.device_get(batch["arrays"])
    tokens, target = arrays["chosen_tokens"][0], arrays["chosen_target"][0]
    chosen = np.asarray(jax.jit(lambda p: logprobs.sequence_logprobs(Decoder(CFG), p, tokens, target))(params))
    assert metrics["chosen_logprob"] == pytest.approx(chosen.mean(), rel=1e-5)
    assert metrics["nll"] == pytest.approx(-(chosen / target.sum(-1)).mean(), rel=1e-5)


def test_dpo_batches_have_every_pair_once_an_epoch_with_its_reference():
    reference = np.stack([np.arange(9.0), -np.arange(9.0)], axis=1).astype(np.float32)
    settings = dpo_settings(replay_weight=0.0, batch_size=3, epochs=2)
    steps, batch_at = dpo.make_batch_fn(PAIRS, reference, [], settings, 3, make_mesh(), CFG)
    assert steps == 6
    seen = []
    for step in range(steps):
        arrays = jax.device_get(batch_at(step)["arrays"])
        for row, (number, _) in enumerate(arrays["reference"][0]):
            seen.append(int(number))
            for side, e in zip(("chosen", "rejected"), PAIRS[int(number)].sides, strict=True):
                assert arrays[f"{side}_tokens"][0, row, : len(e.ids)].tolist() == e.ids
                assert arrays[f"{side}_target"][0, row].sum() == sum(e.target)
    assert sorted(seen[:9]) == sorted(seen[9:]) == list(range(9))
    # Nine pairs do not fill batches of four: the last batch is completed.
    steps, batch_at = dpo.make_batch_fn(
        PAIRS, reference, [], dpo_settings(replay_weight=0.0, batch_size=4), 3, make_mesh(), CFG
    )
    assert steps == 3
    assert batch_at(2)["arrays"]["reference"].shape == (1, 4, 2)


# --- optimizers ----------------------------------------------------------------------------------------------------


def toy(**changed):
    """A model with one weight and the loss weight @ x: the gradient is the batch."""
    optimizer = trainer.make_optimizer(SimpleNamespace(**vars(ADAMW) | changed))
    params = {"w": jnp.array([1.0, -2.0])}
    mesh = make_mesh()
    shardings = trainer.state_shardings(optimizer, params, {"w": replicated(mesh)}, mesh)
    state = trainer.TrainState(jnp.int32(0), params, optimizer.init(params))
    update = trainer.make_update(lambda p, b, key: (jnp.sum(b["x"] @ p["w"]), {}), optimizer, shardings, mesh)
    return jax.device_put(state, shardings), update


def gradient(*x):
    return {"arrays": {"x": jnp.array([[x]], jnp.float32)}, "totals": {}}


def test_two_adamw_steps_by_hand():
    state, update = toy()
    state, metrics = update(state, gradient(3, 4), jax.random.key(0), rate=0.5)
    assert float(metrics["loss"]) == pytest.approx(3 - 8)
    assert float(metrics["grad_norm"]) == pytest.approx(5)  # before the clip
    state, metrics = update(state, gradient(0.3, -0.4), jax.random.key(0), rate=0.5)
    assert float(metrics["grad_norm"]) == pytest.approx(0.5)

    w, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for t, g in enumerate((np.array([0.6, 0.8]), np.array([0.3, -0.4])), 1):  # norm 5 is clipped to 1; 0.5 is not
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        w = w - 0.5 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8) + 0.1 * w)
    np.testing.assert_allclose(state.params["w"], w, atol=1e-5)
    assert int(state.step) == 2


def test_schedule_warms_up_from_0_and_decays_to_the_end():
    rate = trainer.make_schedule(100, 2e-3, 2e-4, 20)
    assert [float(rate(s)) for s in (0, 10, 20, 60, 100)] == pytest.approx([0, 1e-3, 2e-3, 1.1e-3, 2e-4], abs=1e-9)
    assert float(trainer.make_schedule(100, 2e-3, 2e-4, 0)(0)) == pytest.approx(2e-3)
    assert float(trainer.make_schedule(6, 2e-3, 2e-4, 20)(3)) == pytest.approx(2e-3)  # warm-up: at most half
    assert float(trainer.make_schedule(1, 2e-3, 2e-4, 20)(0)) == pytest.approx(2e-3)


@pytest.mark.parametrize("family", [{}, EXPERTS])
def test_muon_updates_every_weight_and_equalizes_the_singular_values_of_each_matrix(family, random_params):
    cfg = DecoderConfig(
        **vars(CFG) | {"qk_norm": "head", "attention_bias": True, "tie_embeddings": False, "num_layers": 2} | family
    )
    params = random_params(cfg)
    optimizer = trainer.make_optimizer(SimpleNamespace(**vars(ADAMW) | {"name": "muon", "weight_decay": 0.0}))
    settings = SimpleNamespace(epochs=1, seq_len=32, batch_size=8, grad_accum_steps=1)
    _, batch_at = sft.make_batch_fn(TEXTS, settings, 3, make_mesh(), CFG)
    state, _ = one_step(cfg, params, optimizer, sft.loss_fn(Decoder(cfg)), batch_at(0))
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, params)
    for path, delta in jax.tree_util.tree_leaves_with_path(moved):
        assert np.isfinite(delta).all(), path
        assert np.abs(delta).max() > 1e-4, path
    # As matrices [layer, in, out]; stored arrays may have more axes.
    D, F, heads, kv = cfg.dim, cfg.mlp_dim, cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    shapes = {"wq": (D, heads), "wk": (D, kv), "wv": (D, kv), "wo": (heads, D)}
    for name, shape in (shapes | {"w_gate": (D, F), "w_up": (D, F), "w_down": (F, D)}).items():
        for matrix in moved["layers"][name].reshape(-1, *shape):  # of each layer, and of each expert
            values = np.linalg.svd(matrix, compute_uv=False)
            assert values.max() < 3 * np.quantile(values, 0.25), (name, values)
            assert np.sqrt(np.mean(matrix**2)) == pytest.approx(0.2, rel=0.3), name


# --- the loop ------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a killed process."""


def test_a_resumed_run_is_bitwise_equal_to_an_uninterrupted_one(random_params, tmp_path):
    cfg = DecoderConfig(**vars(CFG) | {"dropout": 0.1})  # so that the keys of the steps matter too
    params, mesh, key = random_params(cfg), make_mesh(), jax.random.key(4)
    settings = SimpleNamespace(epochs=4, seq_len=32, batch_size=4, grad_accum_steps=2)
    steps = 7
    _, batch_at = sft.make_batch_fn(TEXTS, settings, 3, mesh, cfg)
    optimizer, rate = trainer.make_optimizer(ADAMW), trainer.make_schedule(steps, 1e-2, 1e-3, 2)
    initial, shardings = start(cfg, params, optimizer)
    update = trainer.make_update(sft.loss_fn(Decoder(cfg)), optimizer, shardings, mesh)
    path = epath.Path(tmp_path) / "steps"

    def fit(state, batch_at, log):
        options = trainer.FitOptions(path, 2, on_step=lambda step, metrics: log.append((step, metrics)))
        return trainer.fit(state, update, batch_at, steps, rate, key, options)

    def killed_at_5(step):
        if step == 5:
            raise Killed
        return batch_at(step)

    log, resumed_log = [], []
    with pytest.raises(Killed):
        fit(initial, killed_at_5, [])
    assert sorted(p.name for p in path.iterdir()) == ["2", "2.json", "4", "4.json"]  # the last two
    assert checkpoints.latest_step(path) == 4
    abstract = jax.eval_shape(lambda: trainer.TrainState(jnp.int32(0), params, optimizer.init(params)))
    resumed = fit(checkpoints.restore(path / "4", abstract, shardings), batch_at, resumed_log)

    path = epath.Path(tmp_path) / "other"
    uninterrupted = fit(start(cfg, params, optimizer)[0], batch_at, log)
    jax.tree.map(np.testing.assert_array_equal, resumed, uninterrupted)
    assert int(uninterrupted.step) == steps
    assert [step for step, _ in log] == list(range(steps))
    assert resumed_log == log[4:]
    assert log[-1][1]["loss"] != log[0][1]["loss"]


def test_every_step_and_every_microbatch_has_its_own_key(tmp_path):
    state, _ = toy()
    optimizer = trainer.make_optimizer(ADAMW)
    shardings = jax.tree.map(lambda _: replicated(make_mesh()), state)

    def loss_fn(params, batch, key):
        return jnp.sum(batch["x"] @ params["w"]), {"drawn": jax.random.uniform(key)}

    update = trainer.make_update(loss_fn, optimizer, shardings, make_mesh())
    batch = {"arrays": {"x": jnp.ones((1, 1, 2))}, "totals": {}}
    drawn = []
    options = trainer.FitOptions(epath.Path(tmp_path), 0, on_step=lambda _, metrics: drawn.append(metrics["drawn"]))
    trainer.fit(state, update, lambda _: batch, 4, lambda _: 0.1, jax.random.key(0), options)
    assert len(set(drawn)) == 4
    # Metrics of microbatches are summed; the first one has the same value in every sum.
    drawn = []
    for count in (1, 2, 3):
        batch = {"arrays": {"x": jnp.ones((count, 1, 2))}, "totals": {}}
        drawn.append(float(update(toy()[0], batch, jax.random.key(0))[1]["drawn"]))
    assert len(np.unique(np.diff([0, *drawn]).round(5))) == 3


def fit_toy(state, update, options, batch_at=lambda _: gradient(1, 1), steps=5):
    return trainer.fit(state, update, batch_at, steps, lambda _: 0.5, jax.random.key(0), options)


@pytest.mark.parametrize(("last", "evals", "saved"), [(None, [2, 4, 5], 3), (4, [2, 4], 3), (2, [2], 2)])
def test_training_ends_where_eval_fn_returns_false(last, evals, saved, tmp_path):
    state, update = toy()
    abstract, calls, path = jax.eval_shape(lambda: state), [], epath.Path(tmp_path)
    shardings = jax.tree.map(lambda _: replicated(make_mesh()), abstract)

    def eval_fn(step, params):
        calls.append((step, params["w"].tolist()))
        return step != last

    options = trainer.FitOptions(path, saved, on_step=lambda *_: None, eval_fn=eval_fn, eval_every=2)
    final = fit_toy(state, update, options)
    assert [step for step, _ in calls] == evals
    assert int(final.step) == evals[-1]
    assert calls[-1][1] == final.params["w"].tolist()
    # A run that is killed after the last evaluation resumes from the saved step, evaluates again, and ends the same.
    assert checkpoints.latest_step(path) == saved
    again = fit_toy(checkpoints.restore_latest(path, abstract, shardings), update, options)
    jax.tree.map(np.testing.assert_array_equal, again, final)


@pytest.mark.parametrize("during", ["a step", "an evaluation"])
def test_a_stop_request_saves_the_current_step(during, tmp_path):
    state, update = toy()
    abstract, path, reported = jax.eval_shape(lambda: state), epath.Path(tmp_path), []
    shardings = jax.tree.map(lambda _: replicated(make_mesh()), abstract)
    options = trainer.FitOptions(
        path, 0, on_step=lambda step, _: reported.append(step), eval_fn=lambda *_: True, eval_every=3
    )
    uninterrupted = fit_toy(toy()[0], update, options)
    reported.clear()

    def stopped(step, params):
        raise Stopped

    if during == "a step":
        stopping = options._replace(eval_fn=None, eval_every=0, should_stop=lambda: len(reported) == 2)
    else:
        stopping = options._replace(eval_fn=stopped)
    with pytest.raises(Stopped):
        fit_toy(state, update, stopping)
    assert checkpoints.latest_step(path) == 3
    again = fit_toy(checkpoints.restore_latest(path, abstract, shardings), update, options)
    jax.tree.map(np.testing.assert_array_equal, again, uninterrupted)
    assert reported == [0, 1, 2, 3, 4]


def test_a_finished_run_does_nothing(tmp_path):
    state, update = toy()
    options = trainer.FitOptions(epath.Path(tmp_path), 1, on_step=None)
    again = trainer.fit(state._replace(step=jnp.int32(3)), update, None, 3, None, jax.random.key(0), options)
    np.testing.assert_array_equal(again.params["w"], [1, -2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [2, 4])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(bad, at, tmp_path):
    state, update = toy()
    reported = []
    options = trainer.FitOptions(epath.Path(tmp_path), 1, on_step=lambda step, _: reported.append(step))
    with pytest.raises(trainer.DivergenceError) as caught:
        fit_toy(state, update, options, batch_at=lambda step: gradient(1, bad if step == at else 1))
    assert caught.value.step == at
    assert reported == list(range(at))
    assert checkpoints.latest_step(epath.Path(tmp_path)) == at


def test_checkpoint_every_0_saves_no_state(tmp_path):
    state, update = toy()
    fit_toy(state, update, trainer.FitOptions(epath.Path(tmp_path) / "steps", 0, on_step=lambda *_: None), steps=3)
    assert checkpoints.latest_step(epath.Path(tmp_path) / "steps") is None


# --- sharding ------------------------------------------------------------------------------------------------------

ON_EIGHT_DEVICES = """
import sys
from types import SimpleNamespace
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, sys.argv[1])
from test_trainer import ADAMW, TEXTS
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import param_specs
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import param_shardings
from selfreward_jax.train import sft, trainer

assert jax.device_count() == 8
cfg = DecoderConfig(vocab_size=30, dim=16, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24)
params = jax.jit(lambda: Decoder(cfg).init(jax.random.key(0), jnp.zeros((1, 1), int)))()["params"]
params = jax.tree.map(np.asarray, params)
optimizer = trainer.make_optimizer(ADAMW)

def run(mesh):
    shardings = trainer.state_shardings(optimizer, params, param_shardings(param_specs(cfg), mesh), mesh)
    initial = lambda p: trainer.TrainState(jnp.int32(0), p, optimizer.init(p))
    state = jax.jit(initial, out_shardings=shardings)(params)
    settings = SimpleNamespace(epochs=1, seq_len=32, batch_size=8, grad_accum_steps=2)
    batch = sft.make_batch_fn(TEXTS, settings, 3, mesh, cfg)[1](0)
    update = trainer.make_update(sft.loss_fn(Decoder(cfg)), optimizer, shardings, mesh)
    state, metrics = update(state, batch, jax.random.key(0), rate=1e-3)
    jax.tree.map(lambda x, s: np.testing.assert_(x.sharding.is_equivalent_to(s, x.ndim)), state, shardings)
    return state, metrics

one = make_mesh(devices=jax.devices()[:1])
mesh = make_mesh(fsdp=2, tensor=2)
assert dict(mesh.shape) == {"replica": 1, "data": 2, "fsdp": 2, "tensor": 2}
(expected, m1), (state, m2) = run(one), run(mesh)
close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
jax.tree.map(close, (state.params, m2), (expected.params, m1))
jax.tree.map(close, state.opt_state, expected.opt_state)
moments = state.opt_state[1][0].mu
for tree in (state.params, moments):
    shape = lambda x: x.addressable_shards[0].data.shape
    assert shape(tree["embed"]) == (15, 8)
    assert shape(tree["layers"]["wq"]) == (1, 8, 2, 8)
    assert shape(tree["layers"]["wk"]) == (1, 8, 1, 8)
    assert shape(tree["layers"]["w_down"]) == (1, 12, 8)
before = jax.tree.leaves(params)
assert all(np.abs(np.asarray(a) - b).max() > 1e-4 for a, b in zip(jax.tree.leaves(state.params), before))
print("all of it held")
"""


def test_a_sharded_update_equals_one_on_a_single_device_and_preserves_shardings():
    """The asserts are in the script, which ends with an error at the first that fails."""
    assert on_eight_devices(ON_EIGHT_DEVICES, os.path.dirname(__file__)) == "all of it held\n"


def test_a_share_of_each_batch_is_pairs_of_judgments():
    """Seven pairs of responses and two of judgments: three and one in each batch."""
    reference = np.stack([np.arange(9.0), -np.arange(9.0)], axis=1).astype(np.float32)
    settings = dpo_settings(replay_weight=0.0, batch_size=4, epochs=2, judge_pair_share=0.25)
    schedule = pair_layout.make_schedule(PAIRS, 2, settings, 3, CFG)
    steps, batch_at = dpo.make_batch_fn(PAIRS, reference, [], settings, 3, make_mesh(), CFG, schedule)
    assert steps == 5  # 14 of three
    seen = [
        jax.device_get(batch_at(step)["arrays"]["reference"][0, :, 0]).astype(int).tolist() for step in range(steps)
    ]
    assert all(sum(number >= 7 for number in batch) == 1 for batch in seen)
    others = [number for batch in seen for number in batch if number < 7]
    assert sorted(others[:7]) == sorted(others[7:14]) == list(range(7))
    of_judge = [number for batch in seen for number in batch if number >= 7]
    assert sorted(of_judge[:2]) == sorted(of_judge[2:4]) == [7, 8]


@pytest.mark.parametrize(
    ("pairs", "judge_pairs", "places"),
    [(400, 200, 4), (400, 0, 0), (400, 10, 1), (40, 10, 4), (400, 30, 3), (1, 1000, 4)],
)
def test_few_judge_pairs_get_few_places(pairs, judge_pairs, places):
    """Of 16 places 4 are wanted. Ten judge pairs among 400 others would come 13 times as often with them."""
    settings = SimpleNamespace(batch_size=16, judge_pair_share=0.25)
    assert pair_layout.judge_pairs_per_batch(pairs, judge_pairs, settings) == places

"""Losses over a pair: against values computed by hand, and against TRL's own trainers on a tiny Llama."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from goldens import make_trl_losses as trl
from safetensors.numpy import load_file, save_file

from selfreward_jax import config
from selfreward_jax.config import ConfigError, validate
from selfreward_jax.llm import hf
from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.hf_config import read_config
from selfreward_jax.llm.parameters import param_specs
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.sharding import param_shardings
from selfreward_jax.train import dpo
from selfreward_jax.train.preference_losses import LOSSES, PairLogProbs, pair_loss

EXTRA = {"label_smoothing": 0.2, "gamma": 0.5}

# --- by hand -------------------------------------------------------------------------------------------------------

# Log-ratios: chosen -10 + 13 = 3 (of 4 tokens: 0.75), rejected -8 + 7 = -1 (of 2 tokens: -0.5). With beta 0.5 the
# margin is 2 on sums and 0.625 on means; without the reference, of means: 0.5 * (-2.5 + 4) = 0.75.
PAIR = PairLogProbs(*(jnp.array([x]) for x in (-10.0, -8.0, -13.0, -7.0, 4.0, 2.0)))


def softplus(x):
    return math.log(1 + math.exp(x))


BY_HAND = {
    "sigmoid": (softplus(-2), 2),
    "hinge": (0, 2),
    "ipo": ((4 - 1) ** 2, 2),
    "ipo_mean": ((1.25 - 1) ** 2, 0.625),
    "cdpo": (0.8 * softplus(-2) + 0.2 * softplus(2), 2),
    "robust": ((0.8 * softplus(-2) - 0.2 * softplus(2)) / 0.6, 2),
    "simpo": (softplus(-0.25), 0.75),
    "sigmoid_norm": (softplus(-0.625), 0.625),
}
# The derivative of the loss in its margin.
SLOPE = {
    "sigmoid": -1 / (1 + math.exp(2)),
    "hinge": 0,
    "ipo": 2 * (4 - 1) / 0.5,
    "ipo_mean": 2 * (1.25 - 1) / 0.5,
    "cdpo": 1 / (1 + math.exp(-2)) - 0.8,
    "robust": (-0.8 / (1 + math.exp(2)) - 0.2 / (1 + math.exp(-2))) / 0.6,
    "simpo": -1 / (1 + math.exp(0.25)),
    "sigmoid_norm": -1 / (1 + math.exp(0.625)),
}
PER_TOKEN = ("ipo_mean", "simpo", "sigmoid_norm")


@pytest.mark.parametrize("name", LOSSES)
def test_value_margin_and_gradient_by_hand(name):
    def total(pair):
        loss, margin = pair_loss(name, pair, 0.5, **EXTRA)
        return jnp.sum(loss), margin

    (loss, margin), grads = jax.value_and_grad(total, has_aux=True)(PAIR)
    np.testing.assert_allclose(loss, BY_HAND[name][0], rtol=1e-6)
    np.testing.assert_allclose(margin, [BY_HAND[name][1]], rtol=1e-6)
    lengths = (4, 2) if name in PER_TOKEN else (1, 1)
    np.testing.assert_allclose(grads.chosen, [SLOPE[name] * 0.5 / lengths[0]], rtol=1e-5)
    np.testing.assert_allclose(grads.rejected, [-SLOPE[name] * 0.5 / lengths[1]], rtol=1e-5)


def at(margin, beta=0.5):
    """A pair of this margin on sums and, its responses being of one token, on means."""
    zero, one = jnp.zeros(1), jnp.ones(1)
    return PairLogProbs(jnp.array([margin / beta]), zero, zero, zero, one, one)


@pytest.mark.parametrize("name", LOSSES)
def test_below_every_target_descent_raises_the_chosen_and_lowers_the_rejected(name):
    grads = jax.grad(lambda pair: jnp.sum(pair_loss(name, pair, 0.5, **EXTRA)[0]))(at(-1.0))
    assert grads.chosen[0] < 0 < grads.rejected[0]


@pytest.mark.parametrize(
    ("name", "target"), [("ipo", 0.5), ("ipo_mean", 0.5), ("cdpo", math.log(0.8 / 0.2)), ("hinge", 1)]
)
def test_losses_with_a_target_margin_are_minimal_there(name, target):
    slope = jax.grad(lambda margin: jnp.sum(pair_loss(name, at(margin), 0.5, **EXTRA)[0]))
    assert slope(target - 0.1) < 0
    assert slope(target + 0.1) == 0 if name == "hinge" else slope(target + 0.1) > 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_policy_equal_to_its_reference(name):
    same = PAIR._replace(reference_chosen=PAIR.chosen, reference_rejected=PAIR.rejected)
    loss, margin = pair_loss(name, same, 0.5, **EXTRA)
    if name == "simpo":  # it has no reference
        np.testing.assert_array_equal(pair_loss(name, PAIR, 0.5, **EXTRA), (loss, margin))
        return
    expected = {"hinge": 1, "ipo": 1, "ipo_mean": 1}.get(name, math.log(2))
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)
    np.testing.assert_array_equal(margin, [0])


@pytest.mark.parametrize("name", ["cdpo", "robust"])
def test_without_smoothing_it_is_the_sigmoid_loss(name):
    np.testing.assert_allclose(pair_loss(name, PAIR, 0.5), pair_loss("sigmoid", PAIR, 0.5), rtol=1e-6)


def test_the_robust_loss_is_unbiased_where_the_smoothed_one_is_not():
    """If labels are swapped with probability e, the mean robust loss is the loss of the true labels."""
    swapped = PAIR._replace(
        chosen=PAIR.rejected,
        rejected=PAIR.chosen,
        reference_chosen=PAIR.reference_rejected,
        reference_rejected=PAIR.reference_chosen,
    )
    clean = pair_loss("sigmoid", PAIR, 0.5)[0]
    mean = {n: 0.8 * pair_loss(n, PAIR, 0.5, 0.2)[0] + 0.2 * pair_loss(n, swapped, 0.5, 0.2)[0] for n in LOSSES}
    np.testing.assert_allclose(mean["robust"], clean, rtol=1e-5)
    assert abs(mean["cdpo"] - clean) > 0.1


def test_losses_on_means_of_responses_of_one_token_are_those_on_sums():
    pair = PAIR._replace(chosen_length=jnp.ones(1), rejected_length=jnp.ones(1))
    for mean, total in (("ipo_mean", "ipo"), ("sigmoid_norm", "sigmoid")):
        np.testing.assert_allclose(pair_loss(mean, pair, 0.5), pair_loss(total, pair, 0.5), rtol=1e-6)


def test_simpos_gamma_is_in_units_of_the_margin():
    np.testing.assert_allclose(pair_loss("simpo", at(0.7), 0.5, gamma=0.7)[0], [math.log(2)], rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_finite_at_any_margin(name):
    far = jnp.array([1e4, -1e4])
    zero, one = jnp.zeros(2), jnp.ones(2)
    pairs = PairLogProbs(far, -far, zero, zero, one, one)
    loss, margin = pair_loss(name, pairs, 0.5, **EXTRA)
    grads = jax.grad(lambda pairs: jnp.sum(pair_loss(name, pairs, 0.5, **EXTRA)[0]))(pairs)
    np.testing.assert_allclose(margin, far)
    for x in (loss, grads.chosen, grads.rejected):
        assert np.isfinite(x).all()
    if name == "sigmoid":
        np.testing.assert_allclose(loss, [0, 1e4])


# --- against TRL ---------------------------------------------------------------------------------------------------

GOLDEN = np.load(Path(__file__).parent / "goldens" / "trl_losses.npz")
CLOSE = 1e-5  # relative; what TRL computes in float32 is itself 2e-6 from what it computes in float64
OURS = {name: ours for name, (ours, _, _) in trl.CASES.items()} | {"ipo": {"beta": trl.IPO_BETA}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The config of the golden's model, and a function from "policy" or "reference" to its parameters."""

    def load(role):
        folder = tmp_path_factory.mktemp(role)
        (folder / "config.json").write_text(json.dumps(trl.CONFIG))
        save_file(trl.weights(role), folder / "model.safetensors", {"format": "pt"})
        cfg, _ = read_config(epath.Path(folder))
        cfg = cfg.__class__(**(vars(cfg) | {"param_dtype": "float32"}))
        return cfg, hf.load(epath.Path(folder), cfg, param_shardings(param_specs(cfg), make_mesh()))

    (cfg, policy), (_, reference) = load("policy"), load("reference")
    return cfg, policy, reference


def pair_of(row):
    def side(name):
        prompt, response = row["prompt_ids"], row[name]
        return Example(prompt + response, [False] * len(prompt) + [True] * len(response))

    return dpo.Pair(side("chosen_ids"), side("rejected_ids"))


def run(tiny, tmp_path, smoothing=None, **changed):
    """Loss and metrics of pairs of ids; and the gradients by the names of a Hugging Face folder."""
    cfg, policy, reference = tiny
    pairs = [pair_of(row) for row in trl.pairs()]
    settings = {"loss": "sigmoid", "label_smoothing": 0.0, "gamma": 0.0, "dpo_weight": 1.0, "nll_weight": 0.0}
    settings |= {"replay_weight": 0.0, "epochs": 1, "batch_size": len(pairs), "grad_accum_steps": 1} | changed
    settings = SimpleNamespace(length_buckets=1, **settings)
    if smoothing is not None:
        pairs = [pair._replace(label_smoothing=float(e)) for pair, e in zip(pairs, smoothing, strict=True)]
    logprobs = dpo.reference_logprobs(Decoder(cfg), reference, pairs, 2, make_mesh())
    batch = dpo.make_batch_fn(pairs, logprobs, [], settings, 0, make_mesh(), cfg)[1](0)
    batch = jax.tree.map(lambda x: x[0], batch["arrays"]) | batch["totals"]
    loss_fn = jax.value_and_grad(dpo.loss_fn(Decoder(cfg), settings), has_aux=True)
    (loss, metrics), grads = jax.jit(loss_fn)(policy, batch, jax.random.key(0))
    hf.save(epath.Path(tmp_path), cfg, grads, "float32")
    return float(loss), metrics, load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", OURS)
def test_losses_and_gradients_equal_those_of_trl(name, tiny, tmp_path):
    loss, _, grads = run(tiny, tmp_path, loss="sigmoid" if name == "rpo" else name, **OURS[name])
    assert loss == pytest.approx(float(GOLDEN[f"{name}/loss"]), rel=CLOSE)
    expected = {n.removeprefix(f"{name}/"): x for n, x in GOLDEN.items() if n.startswith(f"{name}/")}
    del expected["loss"]
    assert grads.keys() == expected.keys()
    for weight, x in expected.items():
        assert np.linalg.norm(grads[weight] - x) <= CLOSE * np.linalg.norm(x) != 0, weight


def test_each_pair_may_have_its_own_smoothing(tiny, tmp_path):
    smoothing = np.linspace(0, 1, len(trl.pairs()))
    loss, metrics, _ = run(tiny, tmp_path, smoothing, beta=0.3)
    chosen, rejected = GOLDEN["logprobs"][0] - GOLDEN["logprobs"][1]
    margin = 0.3 * (chosen - rejected)
    expected = (1 - smoothing) * np.log1p(np.exp(-margin)) + smoothing * np.log1p(np.exp(margin))
    assert loss == pytest.approx(expected.mean(), rel=CLOSE)
    assert float(metrics["margin"]) == pytest.approx(margin.mean(), rel=CLOSE)


def test_every_loss_has_a_golden():
    assert OURS.keys() == LOSSES.keys() | {"rpo"}


def test_ipo_is_the_papers_formula_on_sums():
    chosen, rejected = GOLDEN["logprobs"][0] - GOLDEN["logprobs"][1]
    expected = np.mean((chosen - rejected - 1 / (2 * trl.IPO_BETA)) ** 2)
    np.testing.assert_allclose(GOLDEN["ipo/loss"], expected, rtol=1e-12)


def test_the_golden_pairs_are_on_both_sides_of_every_bend():
    chosen, rejected = GOLDEN["logprobs"][0] - GOLDEN["logprobs"][1]
    margins = 0.3 * (chosen - rejected)
    assert margins.max() > 1  # past hinge's bend
    assert margins.min() < 0
    assert np.abs(margins).max() < 8  # no sigmoid is flat


def test_trls_nll_is_a_mean_over_tokens_where_ours_is_over_responses(tiny, tmp_path):
    metrics = run(tiny, tmp_path, beta=0.3)[1]
    lengths = np.array([len(row["chosen_ids"]) for row in trl.pairs()])
    chosen = GOLDEN["logprobs"][0, 0]
    assert GOLDEN["sft of the batch/loss"] == pytest.approx(-chosen.sum() / lengths.sum(), rel=CLOSE)
    assert float(metrics["nll"]) == pytest.approx(-(chosen / lengths).mean(), rel=CLOSE)
    assert abs(float(metrics["nll"]) / GOLDEN["sft of the batch/loss"] - 1) > 10 * CLOSE


def test_trls_sigmoid_ignores_label_smoothing():
    assert GOLDEN["smoothed sigmoid/loss"] == GOLDEN["sigmoid/loss"]


# --- settings ------------------------------------------------------------------------------------------------------


def checked(**fields):
    c = config.get_config()
    c.dpo.update(fields)
    validate.validate(c, 1)
    return c.dpo


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_can_be_selected(name):
    assert checked(loss=name).loss == name


@pytest.mark.parametrize("name", ["cdpo", "robust"])
def test_losses_for_noise_take_label_smoothing(name):
    assert checked(loss=name, label_smoothing=0.3).label_smoothing == 0.3


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"loss": "dpo"}, ["dpo.loss", "'dpo'", *LOSSES]),
        ({"loss": "cdpo", "label_smoothing": 0.5}, ["dpo.label_smoothing", "0.5"]),
        ({"loss": "robust", "label_smoothing": -0.1}, ["dpo.label_smoothing", "-0.1"]),
        ({"loss": "robust", "label_smoothing": math.nan}, ["dpo.label_smoothing", "nan"]),
        ({"loss": "sigmoid", "label_smoothing": 0.1}, ["dpo.label_smoothing", "0.1", "'sigmoid'", "cdpo", "robust"]),
        ({"reference": "m0"}, ["dpo.reference", "'m0'", "previous", "m1"]),
        ({"loss": "simpo", "gamma": -0.5}, ["dpo.gamma", "-0.5"]),
        ({"loss": "ipo", "beta": 0.0}, ["dpo.beta", "0.0"]),
    ],
)
def test_invalid_settings_are_refused_in_one_line(fields, facts):
    with pytest.raises(ConfigError) as error:
        checked(**fields)
    assert "\n" not in str(error.value)
    for fact in facts:
        assert fact in str(error.value)

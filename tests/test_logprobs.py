"""Log-probs and losses against values computed by hand."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.train import logprobs

CFG = DecoderConfig(vocab_size=29, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)
TOKENS = np.random.default_rng(2).integers(0, 29, (3, 8)).astype(np.int32)
TARGET = np.array([[0, 0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 0]], np.float32)

# A bigram model: row = the previous token, column = the next one.
PROBS = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], np.float32)


class Bigram:
    """The part of `Decoder` that losses use; a "hidden state" is a row of unnormalised logits."""

    cfg = SimpleNamespace(vocab_size=3, dtype="float32", logit_scale=1.0, logit_softcap=None)

    def apply(self, variables, *x, method):
        if method == "hidden_states":
            return variables["params"][x[0]], None
        assert method == "lm_head"
        return jnp.eye(3)


LOGITS = np.log(PROBS) + np.array([[1.0], [-2.0], [5.0]], np.float32)  # a shift of a row changes no probability


def test_token_logprobs_of_a_bigram_model():
    tokens = np.array([[0, 1, 1, 2], [2, 2, 0, 0]])
    expected = np.log([[1, 0.25, 0.8, 0.1], [1, 0.6, 0.2, 0.5]])
    np.testing.assert_allclose(logprobs.token_logprobs(Bigram(), LOGITS, tokens), expected, atol=1e-6)


def test_sequence_logprobs_sum_only_the_targets():
    tokens = np.array([[0, 1, 1, 2], [2, 2, 0, 0]])
    target = np.array([[1, 0, 1, 1], [0, 0, 0, 1]])  # the first column has no log-prob, whatever its target is
    expected = np.log([0.8 * 0.1, 0.5])
    np.testing.assert_allclose(logprobs.sequence_logprobs(Bigram(), LOGITS, tokens, target), expected, atol=1e-6)


def test_sft_loss_is_the_mean_over_targets_not_over_rows():
    tokens = np.array([[0, 1, 1, 2], [2, 2, 0, 0]])
    target = np.array([[0, 0, 1, 1], [0, 0, 0, 1]])
    expected = -np.log(0.8 * 0.1 * 0.5) / 3
    np.testing.assert_allclose(logprobs.sft_loss(Bigram(), LOGITS, tokens, target), expected, rtol=1e-6)
    halves = [logprobs.sft_loss(Bigram(), LOGITS, tokens[r : r + 1], target[r : r + 1], 3.0) for r in (0, 1)]
    np.testing.assert_allclose(sum(halves), expected, rtol=1e-6)


def test_logits_of_targets_alone_give_the_same_loss_and_gradient(random_params):
    params, model = random_params(CFG), Decoder(CFG)
    slots = np.array([[2, 3, 4, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7], [6, 5, 0, 0, 0, 0, 0]], np.int32)
    target = TARGET.copy()
    target[:, 0] = 1  # it has no log-prob, and counts for nothing

    def loss(params, slots):
        return logprobs.sft_loss(model, params, TOKENS, jnp.asarray(target), 12.0, slots)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params, None)
    selected, selected_gradient = jax.jit(jax.value_and_grad(loss))(params, slots)
    np.testing.assert_allclose(selected, value, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), selected_gradient, gradient)


def test_token_logprobs_are_the_log_softmax_of_the_models_logits(random_params):
    params = random_params(CFG)
    logits = np.asarray(jax.jit(lambda p: Decoder(CFG).apply({"params": p}, TOKENS))(params), np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.zeros(TOKENS.shape)
    for b, t in np.ndindex(3, 7):
        expected[b, t + 1] = np.log(probs[b, t, TOKENS[b, t + 1]])
    got = jax.jit(lambda p: logprobs.token_logprobs(Decoder(CFG), p, TOKENS))(params)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_chunked_logprobs_equal_unchunked_ones_in_values_and_gradients(random_params, monkeypatch):
    params = random_params(CFG)

    def run():
        def loss(p):
            each = logprobs.sequence_logprobs(Decoder(CFG), p, TOKENS, TARGET)
            return each @ jnp.array([1.0, -2.0, 0.5]), each

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    unchunked = run()
    for length in (1, 3):  # 7 predicted tokens: without and with a remainder
        monkeypatch.setattr(logprobs, "MAX_LOGITS", length * 3 * 29)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), run(), unchunked)


def test_chunks_hold_no_more_logits_than_allowed(random_params, monkeypatch):
    monkeypatch.setattr(logprobs, "MAX_LOGITS", 2 * 3 * 29)
    program = jax.make_jaxpr(lambda p: logprobs.token_logprobs(Decoder(CFG), p, TOKENS))(random_params(CFG))
    assert "f32[3,2,29]" in str(program)
    assert "f32[3,7,29]" not in str(program)


def test_dropout_acts_only_with_a_key(random_params):
    cfg, params = replace(CFG, dropout=0.5), random_params(CFG)
    run = jax.jit(lambda p, key: logprobs.token_logprobs(Decoder(cfg), p, TOKENS, key=key))
    without = jax.jit(lambda p: logprobs.token_logprobs(Decoder(CFG), p, TOKENS))(params)
    np.testing.assert_array_equal(run(params, None), without)
    one, again, other = (np.asarray(run(params, jax.random.key(i))) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - without).max() > 0.1
    assert np.abs(one - other).max() > 0.1

"""Decoding: parity with the full forward pass, independence of company, and the distribution drawn from."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_jax.generate import sampler
from selfreward_jax.llm.llama import Llama, LlamaConfig
from selfreward_jax.train import losses

CFG = LlamaConfig(vocab_size=23, dim=16, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=24, tie_embeddings=False)
PROMPTS = [[3, 1, 4, 1, 5, 9], [2, 6], [5, 3, 5, 8, 9, 7, 9], [3]]
S, W = 8, 6  # prompt bucket, new tokens


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(CFG)


def keys_of(rows):
    return jax.random.split(jax.random.key(7), rows)


def padded(prompts):
    tokens = np.full((len(prompts), S), 11, np.int32)  # any id: padding is told by the lengths alone
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens, np.array([len(p) for p in prompts], np.int32)


def draw(params, prompts, keys, temperature=1.0, top_p=1.0, stop_ids=(), cfg=CFG, width=W):
    tokens, lengths = padded(prompts)
    logits, segment = sampler.prefill(cfg, params, tokens, lengths)
    cache = sampler.empty_cache(cfg, len(keys), width)
    # What an earlier batch left in the cache must not matter.
    cache = jax.tree.map(lambda x: x + 100.0, cache)
    temperature, top_p = np.float32(temperature), np.float32(top_p)
    out, _ = sampler.decode(cfg, params, logits, segment, lengths, cache, keys, temperature, top_p, stop_ids=stop_ids)
    return jax.device_get(out)


@partial(jax.jit, static_argnums=0)
def full_logprobs(cfg, params, tokens):
    return losses.token_logprobs(Llama(cfg), params, tokens)


@partial(jax.jit, static_argnums=0)
def full_logits(cfg, params, tokens):
    return Llama(cfg).apply({"params": params}, tokens)


@pytest.mark.parametrize(
    "option", [{}, {"qk_norm": True, "attention_bias": True, "scan_layers": True}, {"sliding_window": 3}]
)
def test_decoded_logprobs_equal_those_of_the_loss(option, random_params):
    cfg = replace(CFG, **option)
    params = random_params(cfg)
    out = draw(params, PROMPTS, keys_of(8), cfg=cfg)
    rows = np.zeros((8, S + W), np.int32)
    for b in range(8):
        row = PROMPTS[b // 2] + out.tokens[b].tolist()
        rows[b, : len(row)] = row
    expected = np.asarray(full_logprobs(cfg, params, rows))
    for b in range(8):
        n = len(PROMPTS[b // 2])
        np.testing.assert_allclose(out.logprobs[b], expected[b, n : n + W], atol=1e-5)
    assert (out.lengths == W).all()


def test_logprobs_are_of_the_model_itself_whatever_temperature_and_top_p(params):
    out = draw(params, PROMPTS, keys_of(8), temperature=0.5, top_p=0.8)
    first = jax.nn.log_softmax(sampler.prefill(CFG, params, *padded(PROMPTS))[0])
    expected = np.asarray(first)[np.arange(8) // 2, out.tokens[:, 0]]
    np.testing.assert_allclose(out.logprobs[:, 0], expected, atol=1e-5)


def test_prefill_of_padded_prompts_equals_the_full_forward(params):
    tokens, lengths = padded(PROMPTS)
    logits, segment = sampler.prefill(CFG, params, tokens, lengths)
    full = np.asarray(full_logits(CFG, params, tokens))  # causal: padding on the right is not seen
    np.testing.assert_allclose(logits, full[np.arange(4), lengths - 1], atol=1e-5)
    np.testing.assert_array_equal(segment.mask[:, 0], np.arange(S) < lengths[:, None])
    other = np.where(np.asarray(segment.mask[:, 0]), tokens, 0)
    np.testing.assert_array_equal(sampler.prefill(CFG, params, other, lengths)[0], logits)


def test_greedy_in_a_batch_equals_one_by_one_and_the_argmax_of_the_full_forward(params):
    together = draw(params, PROMPTS, keys_of(4), temperature=0.0, top_p=0.5).tokens
    for row, prompt in enumerate(PROMPTS):
        alone = draw(params, [prompt], keys_of(1), temperature=0.0).tokens[0]
        np.testing.assert_array_equal(together[row], alone)
        text = np.zeros((1, S + W), np.int32)
        text[0, : len(prompt) + W] = prompt + alone.tolist()
        best = np.asarray(full_logits(CFG, params, text))[0].argmax(-1)
        np.testing.assert_array_equal(alone, best[len(prompt) - 1 : len(prompt) + W - 1])


def test_samples_of_a_shared_prefill_equal_samples_drawn_alone(params):
    keys = keys_of(8)
    together = draw(params, PROMPTS, keys, temperature=0.8, top_p=0.9)
    for b in range(8):
        alone = draw(params, [PROMPTS[b // 2]], keys[b : b + 1], temperature=0.8, top_p=0.9)
        np.testing.assert_array_equal(together.tokens[b], alone.tokens[0])
        np.testing.assert_allclose(together.logprobs[b], alone.logprobs[0], atol=1e-5)
    assert len({tuple(row) for row in together.tokens.tolist()}) == 8


def test_a_sample_does_not_depend_on_its_company(params):
    keys = keys_of(8)
    before = draw(params, PROMPTS, keys)
    turned = draw(params, PROMPTS[::-1], keys.reshape(4, 2)[::-1].reshape(8))
    for b in range(8):
        there = (3 - b // 2) * 2 + b % 2
        np.testing.assert_array_equal(before.tokens[b], turned.tokens[there])
    company = draw(params, [PROMPTS[0], [7, 7, 7], [1], [2] * 8], keys)
    np.testing.assert_array_equal(before.tokens[:2], company.tokens[:2])


def test_a_shorter_cut_is_the_start_of_a_longer_one(params):
    long, short = (draw(params, PROMPTS, keys_of(8), width=w).tokens for w in (W, 1))
    np.testing.assert_array_equal(short, long[:, :1])


def test_a_sample_ends_at_the_first_of_several_stop_ids(params):
    stops = (4, 9, 15)
    free, stopped = (draw(params, PROMPTS, keys_of(8), stop_ids=ids) for ids in ((), stops))
    ends, cut_off = set(), 0
    for b in range(8):
        row = free.tokens[b].tolist()
        n = next((i + 1 for i, token in enumerate(row) if token in stops), W)
        ends |= {row[n - 1]} & set(stops)
        cut_off += row[n - 1] not in stops
        assert stopped.lengths[b] == n  # counts the stop id
        np.testing.assert_array_equal(stopped.tokens[b], row[:n] + [0] * (W - n))
        np.testing.assert_allclose(stopped.logprobs[b, :n], free.logprobs[b, :n], atol=1e-6)
        np.testing.assert_array_equal(stopped.logprobs[b, n:], 0)
    assert len(ends) > 1  # several of them did end a sample,
    assert cut_off  # and some samples met none


# --- the distribution: a uniform number is all the randomness there is, so a fine grid of them is exact ------------

N = 20_000
GRID = ((np.arange(N) + 0.5) / N).astype(np.float32)
LOGITS = np.array([2, 1.5, 1, 0.5, 0, -1, -3], np.float32)
sample_token, nucleus_threshold = jax.jit(sampler.sample_token), jax.jit(sampler.nucleus_threshold)


def shares(logits, temperature, top_p):
    rows = np.broadcast_to(logits, (N, len(logits)))
    drawn = sample_token(rows, GRID, np.float32(temperature), np.float32(top_p))
    return np.bincount(drawn, minlength=len(logits)) / N


@pytest.mark.parametrize("order", [np.arange(7), np.array([6, 3, 1, 5, 0, 2, 4])])
def test_nucleus_distribution_is_exact(order):
    expected = np.array([0.578305, 0.283104, 0.138591, 0, 0, 0, 0])[order]
    np.testing.assert_allclose(shares(LOGITS[order], 0.7, 0.9), expected, atol=1.5 / N)


def test_top_p_one_is_the_whole_softmax():
    expected = np.exp(LOGITS / 1.3) / np.exp(LOGITS / 1.3).sum()
    np.testing.assert_allclose(shares(LOGITS, 1.3, 1.0), expected, atol=1.5 / N)


def test_temperature_zero_is_the_argmax_whatever_the_rest():
    np.testing.assert_array_equal(shares(LOGITS[::-1].copy(), 0.0, 0.3), [0, 0, 0, 0, 0, 0, 1])


def test_tokens_equally_likely_to_the_last_kept_one_are_kept():
    np.testing.assert_allclose(
        shares(np.array([0, 1, 1, 1], np.float32), 1.0, 0.4), [0, 1 / 3, 1 / 3, 1 / 3], atol=1 / N
    )


@settings(deadline=None, max_examples=60)
@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=7, max_size=7),
    uniform=st.sampled_from([0.0, 0.25, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
)
def test_what_is_drawn_is_inside_the_nucleus_even_at_the_ends(logits, uniform, temperature, top_p):
    logits = np.array([logits], np.float32)
    token = int(sample_token(logits, np.array([uniform], np.float32), np.float32(temperature), np.float32(top_p))[0])
    scaled = logits[0].astype(np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    likelier = probs[probs > probs[token] * (1 + 1e-4)].sum()  # the slack is float32's
    assert likelier < top_p + 1e-5


@settings(deadline=None, max_examples=200)
@given(cuts=st.lists(st.integers(0, 1024), min_size=15, max_size=15), data=st.data())
def test_nucleus_threshold_equals_that_of_a_sort(cuts, data):
    # Probabilities and mass are multiples of 1/1024, so every sum is exact, also where it just reaches the mass.
    probs = np.diff([0, *sorted(cuts), 1024]) / 1024
    ranked = np.sort(probs)[::-1]
    borders = [int(x) for x in np.cumsum(ranked) * 1024]
    mass = data.draw(st.one_of(st.integers(1, 1024), st.sampled_from(borders)))
    least = ranked[np.argmax(np.cumsum(ranked) >= mass / 1024)]
    threshold = nucleus_threshold(probs[None].astype(np.float32), np.float32(mass / 1024))[0]
    assert threshold == (least if mass < 1024 else 0.0)

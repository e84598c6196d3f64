"""Decoding: parity with the full forward pass, independence of the batch, and the distribution of samples."""

import os
import re
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import sampling
from families import GEMMA, OLMO
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.sampling import sampler
from selfreward_jax.sampling.top_p import sample_token as draw_token
from selfreward_jax.train import logprobs

CFG = DecoderConfig(
    vocab_size=23, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, tie_embeddings=False
)
PROMPTS = [[3, 1, 4, 1, 5, 9], [2, 6], [5, 3, 5, 8, 9, 7, 9], [3]]
S, W = 8, 6  # prompt bucket, new tokens


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(CFG)


def keys_of(rows):
    return jax.random.split(jax.random.key(7), rows)


def padded(prompts):
    tokens = np.full((len(prompts), S), 11, np.int32)  # any id: only the lengths mark padding
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens, np.array([len(p) for p in prompts], np.int32)


def draw(params, prompts, keys, cfg=CFG, width=W, **draw_params):
    return sampling.draw(cfg, params, *padded(prompts), keys, width, **draw_params)


@partial(jax.jit, static_argnums=0)
def full_logprobs(cfg, params, tokens):
    return logprobs.token_logprobs(Decoder(cfg), params, tokens)


@partial(jax.jit, static_argnums=0)
def full_logits(cfg, params, tokens):
    return Decoder(cfg).apply({"params": params}, tokens)


@pytest.mark.parametrize(
    "option", [GEMMA, {"qk_norm": "head", "attention_bias": True, "scan_layers": True}, OLMO | {"scan_layers": True}]
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


def test_logprobs_do_not_depend_on_temperature_and_top_p(params):
    out = draw(params, PROMPTS, keys_of(8), temperature=0.5, top_p=0.8)
    first = jax.nn.log_softmax(sampler.prefill(CFG, params, *padded(PROMPTS))[0])
    expected = np.asarray(first)[np.arange(8) // 2, out.tokens[:, 0]]
    np.testing.assert_allclose(out.logprobs[:, 0], expected, atol=1e-5)


def test_prefill_of_padded_prompts_equals_the_full_forward(params):
    tokens, lengths = padded(PROMPTS)
    logits, segment = sampler.prefill(CFG, params, tokens, lengths)
    full = np.asarray(full_logits(CFG, params, tokens))  # causal: no token attends to padding on the right
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


def test_samples_of_a_shared_prefill_equal_those_of_separate_prefills(params):
    keys = keys_of(8)
    together = draw(params, PROMPTS, keys, temperature=0.8, top_p=0.9)
    for b in range(8):
        alone = draw(params, [PROMPTS[b // 2]], keys[b : b + 1], temperature=0.8, top_p=0.9)
        np.testing.assert_array_equal(together.tokens[b], alone.tokens[0])
        np.testing.assert_allclose(together.logprobs[b], alone.logprobs[0], atol=1e-5)
    assert len({tuple(row) for row in together.tokens.tolist()}) == 8


def test_a_sample_does_not_depend_on_the_batch(params):
    keys = keys_of(8)
    before = draw(params, PROMPTS, keys)
    turned = draw(params, PROMPTS[::-1], keys.reshape(4, 2)[::-1].reshape(8))
    for b in range(8):
        there = (3 - b // 2) * 2 + b % 2
        np.testing.assert_array_equal(before.tokens[b], turned.tokens[there])
    others = draw(params, [PROMPTS[0], [7, 7, 7], [1], [2] * 8], keys)
    np.testing.assert_array_equal(before.tokens[:2], others.tokens[:2])


def test_fewer_new_tokens_are_the_start_of_more(params):
    long, short = (draw(params, PROMPTS, keys_of(8), width=w).tokens for w in (W, 1))
    np.testing.assert_array_equal(short, long[:, :1])


def test_a_sample_ends_at_the_first_of_several_stop_ids(params):
    stops = (9, 15, 17, 21)
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


PREFIX = [7, 7, 3, 2, 9]


@pytest.mark.parametrize("option", [{}, GEMMA, {"scan_layers": True} | OLMO, {"sliding_window": 7}])
def test_a_shared_prefix_equals_the_prefix_in_each_prompt(option, random_params):
    cfg = replace(CFG, **option)
    params = random_params(cfg)
    tokens, lengths = padded(PROMPTS)
    prefix = sampler.read_prefix(cfg, params, np.array(PREFIX))
    full = np.concatenate([np.tile(PREFIX, (4, 1)), tokens], axis=1).astype(np.int32)
    shared, repeated = (
        sampler.prefill(cfg, params, *inputs)[0]
        for inputs in ((tokens, lengths, prefix), (full, lengths + len(PREFIX)))
    )
    np.testing.assert_allclose(shared, repeated, rtol=1e-5, atol=1e-5)
    draw_params = {"temperature": 0.8, "top_p": 0.9, "stop_ids": (4,)}
    shared = sampling.draw(cfg, params, tokens, lengths, keys_of(8), W, prefix=prefix, **draw_params)
    repeated = sampling.draw(cfg, params, full, lengths + len(PREFIX), keys_of(8), W, **draw_params)
    np.testing.assert_array_equal(shared.tokens, repeated.tokens)
    np.testing.assert_allclose(shared.logprobs, repeated.logprobs, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads what XLA compiles for a CPU")
def test_a_decode_step_copies_neither_the_weights_nor_the_cache(params):
    """In the compiled program, the matrices of a layer are sliced before the loop, and the cache is updated in place. A
    copy at every token would only cost time, so no other test would fail."""
    slots = jax.eval_shape(lambda: sampler.init_slots(CFG, 3, 16, 64))
    draw_params = sampler.DrawParams(np.float32(0.7), np.float32(0.9))
    lowered = sampler.decode.lower(CFG, params, slots, None, draw_params, np.int32(3), stop_ids=())
    options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    options |= {name: True for name in ["xla_cpu_use_fusion_emitters"] if name in os.environ["XLA_FLAGS"]}
    text = lowered.compile(options).as_text()
    entry = text[text.index("\nENTRY ") :]
    (name,) = re.findall(r" while\(.*body=%?([\w.\-]+)", entry)
    step = re.search(rf"^%?{re.escape(name)} .*?^}}", text, re.MULTILINE | re.DOTALL).group()
    keys, values, matrix = r"f32\[3,2,8,64\]", r"f32\[3,2,64,8\]", r"f32\[16,24\]"
    for shape in (keys, values, matrix):
        results = re.findall(rf"%\S+ = {shape}\S* (?!get-tuple)\S+\(", step)
        assert [x for x in results if re.search("copy|slice", x)] == []
        assert shape == matrix or len(results) == CFG.num_layers  # written once


def test_a_sample_inserted_later_is_bitwise_the_same(params):
    tokens, lengths = padded(PROMPTS)
    keys = np.asarray(jax.random.key_data(keys_of(8))).reshape(4, 2, -1)
    draw_params, stop_ids = sampler.DrawParams(np.float32(0.8), np.float32(0.9)), (4, 9)

    def inserted(slots, indices, prompts, samples):
        """Samples (prompt, number) of two prompts go to the slots `indices`."""
        prefilled = sampler.prefill(CFG, params, tokens[prompts], lengths[prompts])
        which, sample_keys = np.array([p for p, _ in samples]), np.array([keys[prompts[p], n] for p, n in samples])
        return sampler.insert(
            slots, np.array(indices), which, *prefilled, lengths[prompts], sample_keys, draw_params, stop_ids=stop_ids
        )

    def decoded(slots):
        return sampler.decode(CFG, params, slots, None, draw_params, np.int32(4), stop_ids=stop_ids)

    everything = [(0, 0), (0, 1), (1, 0), (1, 1)]
    new = partial(sampler.init_slots, CFG, 4, S, W)
    expected = jax.device_get(decoded(inserted(new(), range(4), [0, 1], everything)).samples)
    slots = decoded(inserted(new(), [2, 3, 0, 1], [2, 3], everything))
    first = jax.device_get(slots.samples)
    # The samples of prompts 0 and 1 go to two slots of prompt 3 and of prompt 2. The others have no slot: they only
    # fill the batch.
    again = jax.device_get(decoded(inserted(slots, [1, 4, 4, 2], [0, 1], everything)).samples)
    for actual, reference, unchanged in zip(again, expected, first, strict=True):
        np.testing.assert_array_equal(actual[[1, 2]], reference[[0, 3]])
        np.testing.assert_array_equal(actual[[0, 3]], unchanged[[0, 3]])


# --- the distribution ----------------------------------------------------------------------------------------------

N = 40_000
LOGITS = np.array([2, 1.5, 1, 0.5, 0, -1, -3], np.float32)
sample_token = jax.jit(draw_token)


def frequencies(logits, temperature, top_p):
    rows = np.broadcast_to(np.asarray(logits, np.float32), (N, len(logits)))
    drawn = sample_token(rows, jax.random.split(jax.random.key(3), N), np.float32(temperature), np.float32(top_p))
    return np.bincount(drawn, minlength=len(logits)) / N


def assert_frequencies(actual, expected):
    expected = np.asarray(expected)
    np.testing.assert_array_equal(actual[expected == 0], 0)
    # Five standard deviations of a fraction of N samples.
    assert (np.abs(actual - expected) <= 5 * np.sqrt(expected * (1 - expected) / N)).all(), (actual, expected)


@pytest.mark.parametrize("order", [np.arange(7), np.array([6, 3, 1, 5, 0, 2, 4])])
def test_top_p_renormalizes_the_most_likely_tokens(order):
    assert_frequencies(
        frequencies(LOGITS[order], 0.7, 0.9), np.array([0.578305, 0.283104, 0.138591, 0, 0, 0, 0])[order]
    )


def test_a_small_top_p_needs_several_rejections():
    assert_frequencies(frequencies(LOGITS, 3.0, 0.35), np.array([0.541570, 0.458430, 0, 0, 0, 0, 0]))


def test_top_p_one_is_the_full_softmax():
    assert_frequencies(frequencies(LOGITS, 1.3, 1.0), np.exp(LOGITS / 1.3) / np.exp(LOGITS / 1.3).sum())


def test_all_blocks_of_a_large_vocabulary_are_sampled():
    logits = np.full(1000, -np.inf, np.float32)  # eight blocks, the last not full
    chosen = {0: 0.1, 127: 0.2, 128: 0.3, 640: 0.15, 999: 0.25}
    logits[list(chosen)] = np.log(list(chosen.values()))
    actual = frequencies(logits, 1.0, 1.0)
    assert actual.sum() == pytest.approx(actual[list(chosen)].sum())
    assert_frequencies(actual[list(chosen)], list(chosen.values()))


def test_temperature_zero_is_the_argmax_for_any_top_p():
    np.testing.assert_array_equal(frequencies(LOGITS[::-1].copy(), 0.0, 0.3), [0, 0, 0, 0, 0, 0, 1])


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_sampling_ends_for_logits_that_are_not_finite(broken):
    logits = np.tile(LOGITS, (2, 1))
    logits[0, 2] = broken
    drawn = sample_token(logits, jax.random.split(jax.random.key(3), 2), np.float32(0.7), np.float32(0.9))
    assert 0 <= int(drawn[0]) < 7
    assert int(drawn[1]) < 3  # the other row is sampled as usual


def test_ties_with_the_last_token_of_top_p_are_included():
    assert_frequencies(frequencies([0, 1, 1, 1], 1.0, 0.4), [0, 1 / 3, 1 / 3, 1 / 3])


@jax.jit
def sample_at(logits, uniform, temperature, top_p):
    with pytest.MonkeyPatch.context() as patch:  # while it is traced
        patch.setattr(jax.random, "uniform", lambda key: uniform)
        return draw_token(logits, jax.random.split(jax.random.key(0), 1), temperature, top_p)


@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=7, max_size=7),
    uniform=st.sampled_from([0.0, 0.25, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
)
def test_sampled_tokens_are_within_top_p_also_at_the_limits(logits, uniform, temperature, top_p):
    logits = np.array([logits], np.float32)
    token = int(sample_at(*(np.float32(x) for x in (logits, uniform, temperature, top_p)))[0])
    scaled = logits[0].astype(np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    likelier = probs[probs > probs[token] * (1 + 1e-4)].sum()  # the slack is float32's
    assert likelier < top_p + 1e-5

"""Decoding: parity with the full forward pass, independence of company, and the distribution drawn from."""

import re
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import sampling
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.llm.llama import Llama, LlamaConfig
from selfreward_jax.sampling import sampler
from selfreward_jax.sampling.top_p import sample_token as draw_token
from selfreward_jax.train import logprobs

CFG = LlamaConfig(
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
    tokens = np.full((len(prompts), S), 11, np.int32)  # any id: padding is told by the lengths alone
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens, np.array([len(p) for p in prompts], np.int32)


def draw(params, prompts, keys, cfg=CFG, width=W, **how):
    return sampling.draw(cfg, params, *padded(prompts), keys, width, **how)


@partial(jax.jit, static_argnums=0)
def full_logprobs(cfg, params, tokens):
    return logprobs.token_logprobs(Llama(cfg), params, tokens)


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


@pytest.mark.parametrize("option", [{}, {"scan_layers": True}, {"sliding_window": 3}, {"sliding_window": 7}])
def test_what_follows_a_shared_beginning_is_as_if_read_with_it(option, random_params):
    cfg = replace(CFG, **option)
    params = random_params(cfg)
    tokens, lengths = padded(PROMPTS)
    prefix = sampler.read_prefix(cfg, params, np.array(PREFIX))
    whole = np.concatenate([np.tile(PREFIX, (4, 1)), tokens], axis=1).astype(np.int32)
    apart, together = (
        sampler.prefill(cfg, params, *given)[0] for given in ((tokens, lengths, prefix), (whole, lengths + len(PREFIX)))
    )
    np.testing.assert_allclose(apart, together, rtol=1e-5, atol=1e-5)
    how = {"temperature": 0.8, "top_p": 0.9, "stop_ids": (4,)}
    apart = sampling.draw(cfg, params, tokens, lengths, keys_of(8), W, prefix=prefix, **how)
    together = sampling.draw(cfg, params, whole, lengths + len(PREFIX), keys_of(8), W, **how)
    np.testing.assert_array_equal(apart.tokens, together.tokens)
    np.testing.assert_allclose(apart.logprobs, together.logprobs, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads what XLA compiles for a CPU")
def test_a_decode_step_copies_neither_the_weights_nor_what_it_has_kept(params):
    """In the compiled text: arrays of the shape of a layer's matrix are cut out before the loop, and those of the cache
    are written in place. Either was once done at every token, unseen but for the time."""
    slots = jax.eval_shape(lambda: sampler.init_slots(CFG, 3, 1, 16, 64))
    how = sampler.DrawParams(np.float32(0.7), np.float32(0.9))
    lowered = sampler.decode.lower(CFG, params, slots, None, how, np.int32(3), stop_ids=())
    text = lowered.compile({"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}).as_text()
    entry = text[text.index("\nENTRY ") :]
    (name,) = re.findall(r" while\(.*body=%?([\w.\-]+)", entry)
    step = re.search(rf"^%?{re.escape(name)} .*?^}}", text, re.MULTILINE | re.DOTALL).group()
    keys, values, matrix = r"f32\[3,2,8,64\]", r"f32\[3,2,64,8\]", r"f32\[16,24\]"
    for shape in (keys, values, matrix):
        made = re.findall(rf"%\S+ = {shape}\S* (?!get-tuple)\S+\(", step)
        assert [x for x in made if re.search("copy|slice", x)] == []
        assert shape == matrix or len(made) == CFG.num_layers  # written once


def test_a_sample_that_comes_in_later_is_the_same_to_the_bit(params):
    tokens, lengths = padded(PROMPTS)
    keys = np.asarray(jax.random.key_data(keys_of(8))).reshape(4, 2, -1)
    how, stop_ids = sampler.DrawParams(np.float32(0.8), np.float32(0.9)), (4, 9)

    def admitted(slots, places, prompts):
        read = sampler.prefill(CFG, params, tokens[prompts], lengths[prompts])
        return sampler.insert(slots, np.array(places), *read, lengths[prompts], keys[prompts], how, stop_ids=stop_ids)

    def decoded(slots):
        return sampler.decode(CFG, params, slots, None, how, np.int32(2), stop_ids=stop_ids)

    expected = jax.device_get(decoded(admitted(sampler.init_slots(CFG, 2, 2, S, W), [0, 1], [0, 1])).samples)
    slots = decoded(admitted(sampler.init_slots(CFG, 2, 2, S, W), [1, 0], [2, 3]))
    first = jax.device_get(slots.samples)
    # Prompt 0 comes into the place of prompt 3. Prompt 1 has no place: it only fills the batch.
    again = jax.device_get(decoded(admitted(slots, [0, 2], [0, 1])).samples)
    for found, there in zip(again, expected, strict=True):
        np.testing.assert_array_equal(found[:2], there[:2])
    for found, there in zip(again, first, strict=True):
        np.testing.assert_array_equal(found[2:], there[2:])  # what had ended is as it was


# --- the distribution ----------------------------------------------------------------------------------------------

N = 40_000
LOGITS = np.array([2, 1.5, 1, 0.5, 0, -1, -3], np.float32)
sample_token = jax.jit(draw_token)


def shares(logits, temperature, top_p):
    rows = np.broadcast_to(np.asarray(logits, np.float32), (N, len(logits)))
    drawn = sample_token(rows, jax.random.split(jax.random.key(3), N), np.float32(temperature), np.float32(top_p))
    return np.bincount(drawn, minlength=len(logits)) / N


def assert_shares(found, expected):
    expected = np.asarray(expected)
    np.testing.assert_array_equal(found[expected == 0], 0)
    # Five standard deviations of a share of N draws.
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / N)).all(), (found, expected)


@pytest.mark.parametrize("order", [np.arange(7), np.array([6, 3, 1, 5, 0, 2, 4])])
def test_the_nucleus_is_drawn_from_as_it_is_distributed(order):
    assert_shares(shares(LOGITS[order], 0.7, 0.9), np.array([0.578305, 0.283104, 0.138591, 0, 0, 0, 0])[order])


def test_a_small_nucleus_is_reached_by_several_refusals():
    assert_shares(shares(LOGITS, 3.0, 0.35), np.array([0.541570, 0.458430, 0, 0, 0, 0, 0]))


def test_top_p_one_is_the_whole_softmax():
    assert_shares(shares(LOGITS, 1.3, 1.0), np.exp(LOGITS / 1.3) / np.exp(LOGITS / 1.3).sum())


def test_a_large_vocabulary_is_drawn_from_over_all_its_blocks():
    logits = np.full(1000, -np.inf, np.float32)  # eight blocks, the last not full
    chosen = {0: 0.1, 127: 0.2, 128: 0.3, 640: 0.15, 999: 0.25}
    logits[list(chosen)] = np.log(list(chosen.values()))
    found = shares(logits, 1.0, 1.0)
    assert found.sum() == pytest.approx(found[list(chosen)].sum())
    assert_shares(found[list(chosen)], list(chosen.values()))


def test_temperature_zero_is_the_argmax_whatever_the_rest():
    np.testing.assert_array_equal(shares(LOGITS[::-1].copy(), 0.0, 0.3), [0, 0, 0, 0, 0, 0, 1])


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_are_no_numbers_end_it_all_the_same(broken):
    logits = np.tile(LOGITS, (2, 1))
    logits[0, 2] = broken
    drawn = sample_token(logits, jax.random.split(jax.random.key(3), 2), np.float32(0.7), np.float32(0.9))
    assert 0 <= int(drawn[0]) < 7
    assert int(drawn[1]) < 3  # the row beside it is drawn as ever


def test_tokens_equally_likely_to_the_last_kept_one_are_kept():
    assert_shares(shares([0, 1, 1, 1], 1.0, 0.4), [0, 1 / 3, 1 / 3, 1 / 3])


@jax.jit
def drawn_at(logits, uniform, temperature, top_p):
    with pytest.MonkeyPatch.context() as patch:  # while it is traced
        patch.setattr(jax.random, "uniform", lambda key: uniform)
        return draw_token(logits, jax.random.split(jax.random.key(0), 1), temperature, top_p)


@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=7, max_size=7),
    uniform=st.sampled_from([0.0, 0.25, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
)
def test_what_is_drawn_is_inside_the_nucleus_even_at_the_ends(logits, uniform, temperature, top_p):
    logits = np.array([logits], np.float32)
    token = int(drawn_at(*(np.float32(x) for x in (logits, uniform, temperature, top_p)))[0])
    scaled = logits[0].astype(np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    likelier = probs[probs > probs[token] * (1 + 1e-4)].sum()  # the slack is float32's
    assert likelier < top_p + 1e-5

"""Pairs whose prompt is processed once for both sides: the same log-probs and gradients, fewer tokens."""

import itertools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import GEMMA, OLMO
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.train import dpo, logprobs
from selfreward_jax.train.batches import padded_batch
from selfreward_jax.train.pair_layout import (
    WINDOW,
    PairLayout,
    choose_layout,
    make_schedule,
    pair_arrays,
    smallest_layout,
)

CFG = DecoderConfig(vocab_size=29, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24)


def pair(prompt, chosen, rejected):
    sides = (Example(prompt + rest, [False] * len(prompt) + [True] * len(rest)) for rest in (chosen, rejected))
    return dpo.Pair(*sides)


def random_pairs(*lengths, seed=0):
    """A pair for each (prompt, chosen, rejected) length; its sides' first tokens differ."""
    rng = np.random.default_rng(seed)
    ids = lambda n: rng.integers(3, 29, n).tolist()  # noqa: E731
    return [pair(ids(p), [1, *ids(c - 1)], [2, *ids(r - 1)]) for p, c, r in lengths]


PAIRS = random_pairs((20, 5, 9), (1, 3, 1), (33, 12, 12), (18, 1, 7))


@partial(jax.jit, static_argnums=0)
def logprobs_of(model, params, arrays):
    return dpo.pair_logprobs(model, params, arrays)


def by_side(model, params, pairs):
    """Log-probs of each side, without sharing."""
    width = max(len(e.ids) for two in pairs for e in two.sides)
    sides = []
    for number in (0, 1):
        arrays = padded_batch([two[number] for two in pairs], width)
        sides.append(logprobs.sequence_logprobs(model, params, arrays["tokens"], arrays["target"]))
    return jnp.stack(sides, axis=1)


@pytest.mark.parametrize(
    "option",
    [
        {},
        {"scan_layers": True, "remat": "full", "qk_norm": "head"},
        GEMMA,
        OLMO | {"tie_embeddings": False},
        pytest.param({"attention": "splash"}, marks=pytest.mark.slow),  # interpreted here
    ],
)
def test_shared_prompts_give_the_same_logprobs_and_gradients(option, random_params):
    cfg = replace(CFG, **option)
    model, params = Decoder(cfg), random_params(cfg)
    weights = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)

    def graded(logprobs_of):
        def weighted(p):
            each = logprobs_of(p)
            return jnp.sum(each * weights), each

        (_, each), grads = jax.jit(jax.value_and_grad(weighted, has_aux=True))(params)
        return each, grads

    expected, gradients = graded(lambda p: by_side(model, p, PAIRS))
    layouts = [PairLayout(20, 32, 32)]
    if not option:
        layouts += [
            PairLayout(33, 48, 16),
            PairLayout(1, 16, 48),
            PairLayout(0, 0, 48),
        ]
    for layout in layouts:
        arrays = pair_arrays(PAIRS, layout)
        assert arrays["chosen_tokens"].shape == (4, layout.suffix_len)
        assert ("prompt_tokens" in arrays) == bool(layout.max_shared)
        # The content of padding must not matter.
        for name in ("chosen", "rejected"):
            for row, two in enumerate(PAIRS):
                end = len(getattr(two, name).ids) - min(layout.max_shared, [20, 1, 33, 18][row])
                arrays[f"{name}_tokens"][row, end:] = 7
        actual, others = graded(partial(dpo.pair_logprobs, model, batch=arrays))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(2.0, np.abs(b).max()))  # noqa: E731
    jax.tree.map(close, others, gradients)


def test_reference_logprobs_equal_those_of_each_side(random_params):
    params = random_params(CFG)
    assert choose_layout(PAIRS, CFG).max_shared
    actual = dpo.reference_logprobs(Decoder(CFG), params, PAIRS, 3, make_mesh())
    expected = jax.jit(lambda p: by_side(Decoder(CFG), p, PAIRS))(params)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_sides_are_independent(random_params):
    params, model = random_params(CFG), Decoder(CFG)
    layout = choose_layout(PAIRS, CFG)
    arrays = pair_arrays(PAIRS, layout)
    other = arrays | {"rejected_tokens": (arrays["rejected_tokens"] + 5) % 29}
    first, second = (logprobs_of(model, params, batch) for batch in (arrays, other))
    np.testing.assert_array_equal(first[:, 0], second[:, 0])
    assert (np.abs(first[:, 1] - second[:, 1]) > 1e-3).all()


def test_the_layout_with_the_fewest_slots_is_chosen():
    # All prompts shared: 112 + 2 * 16 = 144 slots; full sides need 2 * 128.
    assert choose_layout(random_pairs((112, 16, 10), (100, 12, 16)), CFG) == PairLayout(112, 112, 16)
    # Not shared: long prompts have short responses and the other way round, 112 + 2 * 112 > 2 * 128.
    assert choose_layout(random_pairs((112, 16, 16), (16, 112, 112)), CFG) == PairLayout(0, 0, 128)
    some = random_pairs((112, 16, 10), (100, 12, 16))
    # The layout of an earlier round, if these pairs fit into it and it needs few more slots.
    for previous, chosen in (
        ((118, 120, 16), True),
        ((112, 112, 32), False),
        ((110, 112, 18), True),
        ((96, 96, 24), False),
    ):
        previous = PairLayout(*previous)
        assert (choose_layout(some, CFG, previous) == previous) == chosen
    assert choose_layout(some, CFG, PairLayout(0, 0, 64)).max_shared == 112
    # Only 64 tokens are shared: sharing 120 would need 128 + 2 * 64 slots.
    assert choose_layout(random_pairs((64, 64, 64), (120, 8, 8)), CFG) == PairLayout(64, 64, 64)
    # Nothing shared.
    assert (
        choose_layout([dpo.Pair(Example([1, 2], [False, True]), Example([3, 2], [False, True]))], CFG).max_shared == 0
    )
    # With the kernels of accelerators too; they support no window with a prefix, and then nothing is shared.
    some = random_pairs((112, 16, 10))
    for kernel in ("splash", "cudnn"):
        assert choose_layout(some, replace(CFG, attention=kernel)).max_shared == 112
        assert choose_layout(some, replace(CFG, attention=kernel, sliding_window=8)).max_shared == 0


def test_targets_are_never_shared():
    same = pair([5, 6], [7, 8, 9], [7, 8, 4])  # the responses start with the same tokens
    arrays = pair_arrays([same], PairLayout(9, 16, 16))
    assert arrays["prompt_lengths"].tolist() == [2]
    assert arrays["chosen_target"].sum() == arrays["rejected_target"].sum() == 3


@given(st.lists(st.tuples(*[st.integers(1, 200)] * 3), min_size=1, max_size=6))
def test_every_token_has_its_slot(lengths):
    pairs = random_pairs(*lengths)
    layout = choose_layout(pairs, CFG)
    assert layout.tokens <= 2 * -(-max(p + max(c, r) for p, c, r in lengths) // 16) * 16
    arrays = pair_arrays(pairs, layout)
    for row, two in enumerate(pairs):
        n = arrays["prompt_lengths"][row] if layout.max_shared else 0
        head = arrays["prompt_tokens"][row, :n].tolist() if layout.max_shared else []
        for side, e in zip(("chosen", "rejected"), two.sides, strict=True):
            rest = len(e.ids) - n
            assert head + arrays[f"{side}_tokens"][row, :rest].tolist() == e.ids
            assert arrays[f"{side}_target"][row].sum() == sum(e.target)


def settings_of(buckets, batch_size=4, epochs=2.0):
    return SimpleNamespace(batch_size=batch_size, epochs=epochs, judge_pair_share=0.25, length_buckets=buckets)


LONG_TAIL = random_pairs(*((10, int(n), int(n) + 3) for n in np.random.default_rng(5).lognormal(3.2, 0.7, 97).clip(2)))


@pytest.mark.parametrize("buckets", [1, 2, 4])
def test_each_epoch_has_each_pair_once_and_every_pair_fits(buckets):
    schedule = make_schedule(LONG_TAIL, 0, settings_of(buckets), 3, CFG)
    assert schedule.order.shape == (49, 4)  # 194 places and two of the beginning again
    counts = np.bincount(schedule.order.reshape(-1), minlength=97)
    assert sorted(set(counts.tolist())) == [2, 3]
    assert counts.sum() == 196
    assert len(schedule.layouts) <= buckets
    for pairs, layout in zip(schedule.order, schedule.of_step, strict=True):
        pair_arrays([LONG_TAIL[i] for i in pairs], schedule.layouts[layout])  # raises where a side is too long


def test_batches_of_similar_length_need_fewer_slots():
    one, four = (make_schedule(LONG_TAIL, 0, settings_of(n), 3, CFG) for n in (1, 4))
    assert four.layouts[-1] == one.layouts[0]
    assert four.tokens < 0.75 * one.tokens
    # Within a window of batches lengths are sorted, and the batches are shuffled.
    lengths = np.array([max(len(e.ids) for e in pair.sides) for pair in LONG_TAIL])[four.order[:WINDOW]]
    spans = sorted((batch.min(), batch.max()) for batch in lengths)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert lengths.max(axis=1).tolist() != sorted(lengths.max(axis=1))


@pytest.mark.parametrize("batch_size", [4, 16])
def test_a_batch_has_a_pair_once(batch_size):
    schedule = make_schedule(LONG_TAIL[:64], 0, settings_of(3, batch_size), 3, CFG)
    assert all(len(set(batch)) == batch_size for batch in schedule.order.tolist())


def test_layouts_of_the_round_before_are_used_again_where_they_fit():
    before = make_schedule(LONG_TAIL, 0, settings_of(3), 3, CFG).layouts
    fewer = [pair for i, pair in enumerate(LONG_TAIL) if i % 7]
    assert set(make_schedule(fewer, 0, settings_of(3), 8, CFG, before).layouts) <= set(before)


def test_reference_logprobs_do_not_depend_on_the_layouts(random_params):
    params, layouts = random_params(CFG), make_schedule(LONG_TAIL[:30], 0, settings_of(3), 3, CFG).layouts
    assert len(layouts) == 3
    assert len({smallest_layout(pair, layouts) for pair in LONG_TAIL[:30]}) == 3
    one, several = (
        dpo.reference_logprobs(Decoder(CFG), params, LONG_TAIL[:30], 4, make_mesh(), of) for of in ([], layouts)
    )
    np.testing.assert_allclose(several, one, rtol=1e-5, atol=1e-4)

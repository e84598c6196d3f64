"""Texts of packed rows in rows of their own: where they are, gradients, and attention beside the reference."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_parallel import cudnn_in_jax, one_device, train_step
from test_trainer import CFG, PAIRS, dpo_settings

from selfreward_jax.llm import cudnn_attention
from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.packed_texts import PackedTexts, attend_by_text, repack, unpack
from selfreward_jax.llm.self_attention import self_attention
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.train import batches, dpo, text_rows

#         a b c d e f . .   in rows of 2 and of 4 slots; the second row has one text and an empty row of 2
SLOTS = ([[[0, 1], [5, -1]], [[-1, -1], [-1, -1]]], [[[2, 3, 4, -1]], [[0, 1, 2, -1]]])
PLACES = [[0, 1, 4, 5, 6, 2, -1, -1], [4, 5, 6, -1, -1, -1, -1, -1]]
IDS = [[1, 1, 2, 2, 2, 3, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
TEXTS = PackedTexts(np.array(IDS), tuple(map(np.array, SLOTS)), np.array(PLACES))


def test_texts_get_rows_of_their_own_by_hand():
    x = np.arange(1.0, 17.0).reshape(2, 8, 1, 1)
    short, long = unpack(x, TEXTS)
    np.testing.assert_array_equal(short[..., 0, 0], [[1, 2], [6, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(long[..., 0, 0], [[3, 4, 5, 0], [9, 10, 11, 0]])
    back = repack((short, long), TEXTS)
    np.testing.assert_array_equal(back[..., 0, 0], [[1, 2, 3, 4, 5, 6, 0, 0], [9, 10, 11, 0, 0, 0, 0, 0]])


def test_the_gradients_are_those_of_the_gathers():
    """The stated gradients beside the transposes that JAX derives without them, a scatter each."""
    rng = np.random.default_rng(0)
    x, *of_rows = (rng.normal(size=(*shape, 2, 3)).astype("f") for shape in ((2, 8), (4, 2), (2, 4)))
    for stated, inputs in ((unpack, x), (repack, tuple(of_rows))):
        derived = stated.fun  # without the rule
        out, pull = jax.vjp(lambda y, f=stated: f(y, TEXTS), inputs)
        by = jax.tree.map(lambda y: rng.normal(size=y.shape).astype("f"), out)
        expected = jax.vjp(lambda y, f=derived: f(y, TEXTS), inputs)[1](by)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), pull(by), expected)
        assert np.abs(jax.tree.leaves(expected)[0]).max() > 0.1


def test_attention_sees_the_lengths_of_texts_and_padding_gets_nothing():
    seen = []

    def attend(q, k, v, lengths):
        seen.append((q.shape, np.asarray(lengths).tolist()))
        return q + 1  # also where there is no text

    x = np.ones((2, 8, 1, 1))
    out = attend_by_text(attend, x, x, x, TEXTS)
    assert seen == [((4, 2, 1, 1), [2, 1, 1, 1]), ((2, 4, 1, 1), [3, 3])]  # an empty row has one key of zeros
    np.testing.assert_array_equal(out[..., 0, 0], 2.0 * (np.array(IDS) > 0))


# --- how a batch says so -------------------------------------------------------------------------------------------


def texts_of(lengths):
    return [Example(list(range(1, n + 1)), [False] + [True] * (n - 1)) for n in lengths]


def test_rows_of_texts_by_hand():
    # The candidates are 256 and smaller ones by the root of 2: 192 (181 rounded up), 128, 96 (91), 64, 48 (46), ...
    rows = [[0, 1, 2], [3], [1, 1, 1, 1]]
    # One of four short texts has the long row, which no long text needs then.
    assert text_rows.text_rows([130, 64, 60, 256], rows, 256) == ((64, 3), (256, 1))
    assert text_rows.text_rows([130, 64, 60, 192], [[0, 1], [3]], 256) == ((80, 1), (192, 1))  # 144, 96, 80, 48, ...
    assert text_rows.text_rows([256], [[0]], 256) == ((256, 1),)
    assert text_rows.text_rows([1] * 96, [list(range(96))], 256) == ((16, 96),)  # 6 times the slots
    assert text_rows.text_rows([1] * 97, [list(range(97))], 256) == ()  # more
    # Chosen for another packing of the same texts, with room for a quarter more, and for what these rows need.
    texts = [64] * 9 + [256]
    sample = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert text_rows.text_rows(texts, [[0, 1], [9]], 256, sample) == ((64, 3), (256, 1))
    assert text_rows.text_rows(texts, [[0, 1, 2, 3, 4], [9]], 320, sample) == ((64, 4), (256, 1))


def test_rounds_have_one_layout_of_replayed_texts():
    """Chats and judgments in rows of 2,048 tokens: each round packs them in another order."""
    rng = np.random.default_rng(0)
    chats = np.clip(rng.lognormal(5.3, 0.9, 1600), 20, 2048).astype(int)
    examples = texts_of([*chats, *np.clip(rng.normal(700, 200, 800), 200, 2048).astype(int)])
    settings = dpo_settings(grad_accum_steps=1, replay_batch_size=4, replay_seq_len=2048, epochs=100)
    reference = np.zeros((len(PAIRS), 2), np.float32)
    cfg = replace(CFG, attention="cudnn")
    layouts = set()
    for seed in range(6):
        steps, batch_at = dpo.make_batch_fn(PAIRS, reference, examples, settings, seed, make_mesh(), cfg)
        assert steps > 60
        layouts.add(tuple(x.shape for x in batch_at(0)["arrays"]["replay_text_slots"]))
    assert len(layouts) == 1, layouts


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60), data=st.data())
def test_every_token_has_one_place_among_the_rows_of_texts(lengths, data):
    examples = texts_of(lengths)
    rows = batches.pack(lengths, data.draw(st.permutations(range(len(lengths)))), 300)
    of_texts = text_rows.text_rows(lengths, rows, 300)
    if not of_texts:
        return
    assert len(of_texts) <= text_rows.MAX_TEXT_LENGTHS
    batch = batches.packed_batch(examples, [*rows, []], batches.PackedLayout(300, 0, of_texts))
    assert [x.shape[1:] for x in batch["text_slots"]] == [(count, length) for length, count in of_texts]
    flat = np.concatenate([x.reshape(len(rows) + 1, -1) for x in batch["text_slots"]], axis=1)
    is_token = batch["segments"] > 0
    assert (flat >= 0).sum() == is_token.sum() == sum(lengths)
    np.testing.assert_array_equal(batch["text_places"] >= 0, is_token)
    own = np.take_along_axis(flat, np.maximum(batch["text_places"], 0), axis=1)
    np.testing.assert_array_equal(own[is_token], np.nonzero(is_token)[1])
    for slots in batch["text_slots"]:  # one text a row, from its first token
        starts = slots[..., 0]
        row, number = np.nonzero(starts >= 0)
        assert (batch["positions"][row, starts[row, number]] == 0).all()
        for r, n in zip(row, number, strict=True):
            used = slots[r, n][slots[r, n] >= 0]
            assert len(set(batch["segments"][r, used])) == 1
            assert (np.diff(used) == 1).all()


# --- in attention, and in a training step --------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_by_text_equals_the_reference(window, scale, monkeypatch):
    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn_in_jax)
    lengths, rows = [25, 70, 45, 3, 150], [[0, 1, 2], [4], [3, 3], []]
    layout = batches.PackedLayout(150, 0, text_rows.text_rows(lengths, rows, 150))
    assert len(layout.text_rows) > 1
    batch = batches.packed_batch(texts_of(lengths), rows, layout)
    texts = PackedTexts(*(batch[name] for name in ("segments", "text_slots", "text_places")))
    rng = np.random.default_rng(0)
    qkv = [rng.normal(size=(4, 150, n, 64)).astype("f") for n in (4, 2, 2)]
    is_token = (batch["segments"] > 0)[:, :, None, None]
    by = rng.normal(size=qkv[0].shape).astype("f") * is_token

    @partial(jax.jit, static_argnames="impl")
    def run(qkv, segments, impl):
        def loss(qkv):
            out = self_attention(impl, *qkv, segments, window, scale)
            return jnp.sum(out * by), out

        grads, out = jax.grad(loss, has_aux=True)(qkv)
        return jnp.where(is_token, out, 0), grads

    expected = run(qkv, batch["segments"], "reference")
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), run(qkv, texts, "cudnn"), expected)
    # The other kernels take the ids of the same argument.
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), run(qkv, texts, "xla"), expected)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("loss", ["sft", "dpo of shared prompts"])
def test_a_training_step_by_text_is_that_of_packed_rows(loss, scan_layers, monkeypatch):
    """The loss, its metrics and all gradients; the packed texts of DPO are those of replay."""
    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn_in_jax)
    monkeypatch.setattr(text_rows, "TEXT_STEP", 4)
    taken = []
    monkeypatch.setattr(cudnn_attention, "attend_by_text", lambda *args: taken.append(1) or attend_by_text(*args))
    options = {"scan_layers": scan_layers, "remat": "full"}
    expected = train_step(loss, one_device(), 2, **options)
    assert not taken
    actual = train_step(loss, one_device(), 2, attention="cudnn", **options)
    assert taken
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), actual, expected)

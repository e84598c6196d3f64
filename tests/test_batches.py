"""Data order, and packed and padded batches."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.llm.chat import Example
from selfreward_jax.parallel.sharding import round_up
from selfreward_jax.train import batches

SEED = st.integers(0, 2**32 - 1)


@given(rows=st.integers(1, 40), seed=SEED)
def test_every_epoch_is_a_permutation(rows, seed):
    got = batches.epoch_permutation(rows, seed, 3).reshape(3, rows)
    np.testing.assert_array_equal(np.sort(got, axis=1), np.tile(np.arange(rows), (3, 1)))


@given(rows=st.integers(1, 40), seed=SEED, quarters=st.integers(1, 12))
def test_a_fraction_of_an_epoch_is_its_prefix(rows, seed, quarters):
    got = batches.epoch_permutation(rows, seed, quarters / 4)
    assert len(got) == round(rows * quarters / 4)
    np.testing.assert_array_equal(got, batches.epoch_permutation(rows, seed, 3)[: len(got)])


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    first, second = batches.epoch_permutation(50, 7, 2).reshape(2, 50)
    np.testing.assert_array_equal(batches.epoch_permutation(50, 7, 1), first)
    assert (first != second).any()
    assert (batches.epoch_permutation(50, 8, 1) != first).any()


WIDTH = 16


@given(lengths=st.lists(st.integers(1, WIDTH), min_size=1, max_size=150), data=st.data())
def test_pack_uses_every_text_once_and_never_overflows(lengths, data):
    sequence = data.draw(st.permutations(range(len(lengths)))) * 2  # two epochs
    rows = batches.pack(lengths, sequence, WIDTH)
    assert Counter(i for row in rows for i in row) == Counter(sequence)
    used = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < n <= WIDTH for n in used)
    # A new row starts only with a text that fits into none of the 64 rows before it.
    for r in range(len(rows)):
        assert all(used[before] + lengths[rows[r][0]] > WIDTH for before in range(max(0, r - 64), r))


def test_pack_takes_texts_in_order():
    #                            text   0  1  2  3  4      of 6: 0 2 | 1 4 | 3
    assert batches.pack([4, 5, 2, 6, 1], [0, 1, 2, 3, 4], 6) == [[0, 2], [1, 4], [3]]
    assert batches.pack([4, 5, 2, 6, 1], [3, 4, 2, 1, 0], 6) == [[3], [4, 2], [1], [0]]
    # 64 rows stay open, so the 65th row back gets no more texts, although one would fit.
    rows = batches.pack([1] + [6] * 64 + [1], range(66), 6)
    assert rows[0] == [0]
    assert rows[-1] == [65]
    assert batches.pack([1] + [6] * 63 + [1], range(65), 6)[0] == [0, 64]


EXAMPLES = [
    Example([11, 12, 13], [False, True, True]),
    Example([21, 22], [False, True]),
    Example([31, 32, 33, 34], [False, False, False, True]),
]


def test_packed_batch_arrays():
    batch = batches.packed_batch(EXAMPLES, [[1, 0], [2], []], batches.PackedLayout(6))
    expected = {
        "tokens": [[21, 22, 11, 12, 13, 0], [31, 32, 33, 34, 0, 0], [0] * 6],
        "target": [[0, 1, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0], [0] * 6],
        "positions": [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0], [0] * 6],
        "segments": [[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0], [0] * 6],
    }
    assert batch.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_array_equal(batch[name], rows, name)


def test_slots_are_those_of_the_targets():
    batch = batches.packed_batch(EXAMPLES, [[1, 0], [2], []], batches.PackedLayout(6, num_targets=4))
    np.testing.assert_array_equal(batch["slots"], [[1, 3, 4, 0], [3, 0, 0, 0], [0] * 4])


def test_targets_are_selected_where_logits_are_large(monkeypatch):
    monkeypatch.setattr(batches, "SLOT_STEP", 2)
    monkeypatch.setattr(batches, "MIN_SELECTED", 6 * 100)
    assert batches.target_slots(EXAMPLES, [[1, 0], [2], []], 6, 101) == 4  # three targets in the first row
    assert batches.target_slots(EXAMPLES, [[1, 0], [2], []], 6, 100) == 0
    assert batches.target_slots(EXAMPLES, [[1, 0]], 5, 200) == 4
    assert batches.target_slots(EXAMPLES, [[1, 0]], 4, 200) == 0  # nearly all of them


def test_padded_batch_arrays():
    batch = batches.padded_batch(EXAMPLES[:2], 4)
    np.testing.assert_array_equal(batch["tokens"], [[11, 12, 13, 0], [21, 22, 0, 0]])
    np.testing.assert_array_equal(batch["target"], [[0, 1, 1, 0], [0, 1, 0, 0]])


@given(n=st.integers(0, 1000), multiple=st.integers(1, 64))
def test_round_up_is_the_smallest_sufficient_multiple(n, multiple):
    up = round_up(n, multiple)
    assert up % multiple == 0
    assert 0 <= up - n < multiple

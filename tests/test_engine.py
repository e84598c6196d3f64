"""The engine: what comes back, in which order, and that no batch changes a row."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.llm.chat import Chat, builtin_template
from selfreward_jax.llm.llama import LlamaConfig
from selfreward_jax.llm.tokenizer import ASSISTANT, BOS, END, EOS, USER
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.sampling import batching, sampler
from selfreward_jax.sampling.engine import Engine, Request, SamplingParams, sample_keys


class Letters:
    """A tokenizer of the letters a to h."""

    special_tokens = {piece: i for i, piece in enumerate((BOS, EOS, USER, ASSISTANT, END))}
    vocab_size = 13

    def encode(self, text, preceded_by="control"):
        return [5 + "abcdefgh".index(letter) for letter in text]

    def decode(self, ids):
        return "".join("abcdefgh"[i - 5] for i in ids if i >= 5)


CHAT = Chat(Letters(), builtin_template("control"), BOS, EOS, [1])
CFG = LlamaConfig(
    vocab_size=13, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, tie_embeddings=False
)
HOW = SamplingParams(num_samples=2, temperature=1.0, top_p=0.95, max_new_tokens=8)
KEY = jax.random.key(5)
# Lengths in no order, and more prompts than the two places of four rows.
REQUESTS = [Request(f"r{i}", prompt) for i, prompt in enumerate(["abcde", "a", "hgfedcba", "bc", "ddd"])]


@pytest.fixture(scope="module")
def make_engine(random_params):
    params = random_params(CFG, seed=2)  # some samples stop and some are cut off
    return lambda rows=4, max_length=24: Engine(
        CFG, params, CHAT, make_mesh(), max_concurrent=rows, max_length=max_length
    )


@pytest.fixture(scope="module")
def completions(make_engine):
    return make_engine().generate(REQUESTS, HOW, KEY)


def test_completions_come_in_the_order_of_requests_and_samples(completions):
    assert [(c.id, c.sample) for c in completions] == [(r.id, s) for r in REQUESTS for s in (0, 1)]


def test_a_completion_holds_what_was_drawn_up_to_its_stop(completions):
    stops = set(CHAT.stop_ids)
    for c in completions:
        assert len(c.ids) == len(c.logprobs) <= HOW.max_new_tokens
        assert all(p < 0 for p in c.logprobs)
        assert not stops & set(c.ids[:-1])
        assert c.finished == (c.ids[-1] in stops)
        assert c.finished or len(c.ids) == HOW.max_new_tokens
        assert c.text == Letters().decode(c.ids)
    assert {c.finished for c in completions} == {True, False}  # both kinds were looked at


def test_what_is_done_is_left_out_and_changes_no_other(make_engine, completions):
    engine, kept = make_engine(), {(c.id, c.sample): c for c in completions}
    everything = [r.id for r in REQUESTS]
    for done in ([], ["r1"], ["r4", "r0"], ["r2", "r3", "r1"], everything):
        batches = list(engine.stream(REQUESTS, HOW, KEY, done=done))
        came = [(c.id, c.sample) for batch in batches for c in batch]
        assert sorted(came) == [(i, s) for i in everything if i not in done for s in (0, 1)]
        for batch in batches:  # all samples of a request together
            assert [c.id for c in batch[::2]] == [c.id for c in batch[1::2]]
        for c in (c for batch in batches for c in batch):
            assert c == kept[c.id, c.sample]  # to the bit, log-probs too: whenever it came in, whoever was at work


def test_completions_come_before_all_are_drawn(make_engine):
    many = [Request(f"r{i}", "abc"[: 1 + i % 3]) for i in range(16)]
    assert len(list(make_engine().stream(many, HOW, KEY))) > 3


@pytest.mark.parametrize("window", [None, 9])
def test_what_all_prompts_begin_with_is_read_once_and_changes_nothing(window, random_params, monkeypatch):
    cfg = dataclasses.replace(CFG, sliding_window=window)
    params, rubric = random_params(cfg, seed=2), "abcdefgh" * 6
    requests = [Request(r.id, rubric + r.prompt) for r in REQUESTS]
    found, read = [], []
    monkeypatch.setattr(sampler, "read_prefix", lambda *a, of=sampler.read_prefix: read.append(len(a[2])) or of(*a))
    for shared in (batching.MIN_SHARED_PREFIX, 1000):
        monkeypatch.setattr(batching, "SHARED", shared)
        engine = Engine(cfg, params, CHAT, make_mesh(), max_concurrent=4, max_length=80)
        for _ in range(2):
            found.append(engine.generate(requests, HOW, KEY))
    assert read == [48]  # of 50: once for both calls
    for other in found[1:]:
        assert [c.ids for c in other] == [c.ids for c in found[0]]
        for a, b in zip(other, found[0], strict=True):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_lengths_are_few_and_no_more_than_half_as_long_again():
    assert sorted({batching.padded_length(n) for n in range(1, 700)}) == [
        16,
        32,
        48,
        64,
        96,
        128,
        192,
        256,
        384,
        512,
        640,
        768,
    ]
    assert all(0 <= batching.padded_length(n) - n < max(16, n / 2) for n in range(1, 5000))


def test_windows_are_of_like_length_and_long_enough():
    lengths = [5, 300, 17, 16, 40, 33, 3, 20]
    # Below 17, below 33, below 49, and 300 padded to 384; each with at least two.
    assert batching.bucket_by_length(lengths, 2) == [([6, 0, 3], 16), ([2, 7], 32), ([5, 4], 48), ([1], 384)]
    assert batching.bucket_by_length(lengths, 3) == [([6, 0, 3], 16), ([2, 7, 5, 4], 48), ([1], 384)]
    assert batching.bucket_by_length(lengths, 100) == [([6, 0, 3, 2, 7, 5, 4, 1], 384)]
    assert batching.bucket_by_length([], 3) == []


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=80), max_size=6), st.integers(0, 70))
def test_the_beginning_that_prompts_share(rests, length):
    ids = [[7] * length + rest for rest in rests]
    shared = batching.common_prefix_len(ids)
    assert shared % 16 == 0
    assert all(x[:shared] == ids[0][:shared] and len(x) > shared for x in ids)
    if len(ids) > 1 and length > batching.MIN_SHARED_PREFIX:
        assert shared >= (length - 1) // 16 * 16
    if len(ids) < 2 or length == 0:
        assert shared == 0 or len({tuple(x[:16]) for x in ids}) == 1


def test_places_are_as_many_as_rows_have_room_for_and_few_for_few_prompts():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert [batching.num_prompt_slots(n, 256, 4, mesh) for n in (1, 2, 3, 33, 64, 65, 1000)] == [
        1,
        2,
        4,
        64,
        64,
        64,
        64,
    ]
    assert batching.num_prompt_slots(1000, 3, 4, mesh) == 1


def test_prompts_are_read_together_but_not_too_many_tokens():
    shape = make_mesh(devices=jax.devices()[:1]).shape
    of_one = lambda platform: SimpleNamespace(shape=shape, devices=np.array([SimpleNamespace(platform=platform)]))  # noqa: E731
    cpu, mesh = of_one("cpu"), of_one("tpu")
    assert [batching.prefill_batch_size(1000, 256, length, cpu) for length in (16, 128, 1024, 10_000)] == [32, 8, 1, 1]
    assert batching.prefill_batch_size(64, 64, 128, cpu) == 8
    assert [batching.prefill_batch_size(1000, places, 128, mesh) for places in (1, 15, 16, 64)] == [1, 1, 2, 8]
    assert batching.prefill_batch_size(64, 64, 128, mesh) == 64  # there is a place for each
    assert batching.prefill_batch_size(64, 64, 1024, mesh) == batching.prefill_batch_size(1000, 256, 1024, mesh) == 8
    assert batching.prefill_batch_size(1000, 256, 10_000, mesh) == 1


def test_a_row_depends_on_its_id_and_key_and_not_on_its_company(make_engine, completions):
    kept = {(c.id, c.sample): c for c in completions}
    for rows, requests in ((8, REQUESTS[::-1]), (4, REQUESTS[3:4])):
        for c in make_engine(rows).generate(requests, HOW, KEY):
            assert c.ids == kept[c.id, c.sample].ids
            np.testing.assert_allclose(c.logprobs, kept[c.id, c.sample].logprobs, atol=1e-5)
    renamed = [Request(f"other{r.id}", r.prompt) for r in REQUESTS]
    for changed in (
        make_engine().generate(renamed, HOW, KEY),
        make_engine().generate(REQUESTS, HOW, jax.random.key(6)),
    ):
        assert [c.ids for c in changed] != [c.ids for c in completions]


def test_more_samples_begin_with_the_fewer(make_engine, completions):
    more = make_engine().generate(REQUESTS[:1], HOW._replace(num_samples=4), KEY)
    assert [c.ids for c in more[:2]] == [c.ids for c in completions[:2]]


def test_every_row_and_sample_has_its_own_key():
    keys = np.asarray(jax.random.key_data(sample_keys(KEY, ["a", "b", "c"], 3)))
    assert len({tuple(k) for k in keys.tolist()}) == 9
    np.testing.assert_array_equal(jax.random.key_data(sample_keys(KEY, ["c"], 3)), keys[6:])


def test_repeated_ids_are_refused(make_engine):
    with pytest.raises(ValueError, match=r"\bids?\b"):
        make_engine().generate([*REQUESTS, REQUESTS[0]], HOW, KEY)


def test_a_prompt_too_long_is_refused_before_any_work_and_one_that_just_fits_is_not(make_engine):
    longest = len(CHAT.prompt_ids(REQUESTS[2].prompt)) + HOW.max_new_tokens  # 12 + 8
    with pytest.raises(ValueError, match=r"\br2\b.*\b12\b.*\b8\b.*\b19\b"):
        next(make_engine(max_length=longest - 1).stream(REQUESTS, HOW, KEY))
    assert len(make_engine(max_length=longest).generate(REQUESTS[2:3], HOW, KEY)) == 2


def test_no_requests_no_completions(make_engine):
    assert make_engine().generate([], HOW, KEY) == []

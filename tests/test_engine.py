"""The engine: its completions, their order, and that the batch does not change a row."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.llm.chat import Chat, builtin_template
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.tokenizer import ASSISTANT, BOS, END, EOS, USER
from selfreward_jax.method.responses import generate_responses
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.parallel.preemption import Stopped
from selfreward_jax.sampling import batching, sampler
from selfreward_jax.sampling.engine import Engine, NonFiniteLogitsError, Request, SamplingParams
from selfreward_jax.sampling.keys import sample_keys
from selfreward_jax.stages.sampling import drop_long_prompts


class Letters:
    """A tokenizer of the letters a to h."""

    special_tokens = {piece: i for i, piece in enumerate((BOS, EOS, USER, ASSISTANT, END))}
    vocab_size = 13

    def encode(self, text, preceded_by="control"):
        return [5 + "abcdefgh".index(letter) for letter in text]

    def decode(self, ids):
        return "".join("abcdefgh"[i - 5] for i in ids if i >= 5)


CHAT = Chat(Letters(), builtin_template("control"), BOS, EOS, [1])
CFG = DecoderConfig(
    vocab_size=13, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, tie_embeddings=False
)
PARAMS = SamplingParams(num_samples=2, temperature=1.0, top_p=0.95, max_new_tokens=8)
KEY = jax.random.key(5)
# Lengths in no order, and more prompts than the two slots of four rows.
REQUESTS = [Request(f"r{i}", prompt) for i, prompt in enumerate(["abcde", "a", "hgfedcba", "bc", "ddd"])]


@pytest.fixture(scope="module")
def make_engine(random_params):
    params = random_params(CFG, seed=2)  # some samples stop and some are cut off
    return lambda rows=4, max_length=24: Engine(
        CFG, params, CHAT, make_mesh(), max_concurrent=rows, max_length=max_length
    )


@pytest.fixture(scope="module")
def completions(make_engine):
    return make_engine().generate(REQUESTS, PARAMS, KEY)


def test_completions_are_in_the_order_of_requests_and_samples(completions):
    assert [(c.id, c.sample) for c in completions] == [(r.id, s) for r in REQUESTS for s in (0, 1)]


def test_a_completion_ends_at_its_stop_id_or_is_cut_off(completions):
    stops = set(CHAT.stop_ids)
    for c in completions:
        assert len(c.ids) == len(c.logprobs) <= PARAMS.max_new_tokens
        assert all(p < 0 for p in c.logprobs)
        assert not stops & set(c.ids[:-1])
        assert c.finished == (c.ids[-1] in stops)
        assert c.finished or len(c.ids) == PARAMS.max_new_tokens
        assert c.text == Letters().decode(c.ids)
    assert {c.finished for c in completions} == {True, False}  # there are both kinds


def test_completed_requests_are_skipped_and_change_no_other(make_engine, completions):
    engine, expected = make_engine(), {(c.id, c.sample): c for c in completions}
    everything = [r.id for r in REQUESTS]
    for done in ([], ["r1"], ["r4", "r0"], ["r2", "r3", "r1"], everything):
        batches = list(engine.stream(REQUESTS, PARAMS, KEY, done=done))
        ids = [(c.id, c.sample) for batch in batches for c in batch]
        assert sorted(ids) == [(i, s) for i in everything if i not in done for s in (0, 1)]
        for batch in batches:  # all samples of a request together
            assert [c.id for c in batch[::2]] == [c.id for c in batch[1::2]]
        for c in (c for batch in batches for c in batch):
            assert c == expected[c.id, c.sample]  # bitwise, log-probs too, whatever else is in the batch


def test_completions_are_streamed_before_all_are_sampled(make_engine):
    many = [Request(f"r{i}", "abc"[: 1 + i % 3]) for i in range(16)]
    assert len(list(make_engine().stream(many, PARAMS, KEY))) > 3


@pytest.mark.parametrize("window", [None, 9])
def test_a_shared_prefix_is_prefilled_once_and_changes_nothing(window, random_params, monkeypatch):
    cfg = dataclasses.replace(CFG, sliding_window=window)
    params, rubric = random_params(cfg, seed=2), "abcdefgh" * 6
    requests = [Request(r.id, rubric + r.prompt) for r in REQUESTS]
    results, prefix_lengths = [], []
    read_prefix = sampler.read_prefix
    monkeypatch.setattr(sampler, "read_prefix", lambda *a: prefix_lengths.append(len(a[2])) or read_prefix(*a))
    for shared in (batching.MIN_SHARED_PREFIX, 1000):
        monkeypatch.setattr(batching, "MIN_SHARED_PREFIX", shared)
        engine = Engine(cfg, params, CHAT, make_mesh(), max_concurrent=4, max_length=80)
        for _ in range(2):
            results.append(engine.generate(requests, PARAMS, KEY))
    assert prefix_lengths == [48]  # of 50: once for both calls
    for other in results[1:]:
        assert [c.ids for c in other] == [c.ids for c in results[0]]
        for a, b in zip(other, results[0], strict=True):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_padded_lengths_are_few_and_at_most_half_longer():
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


def test_buckets_have_similar_lengths_and_the_minimum_size():
    lengths = [5, 300, 17, 16, 40, 33, 3, 20]
    # Below 17, below 33, below 49, and 300 padded to 384; each with at least two.
    assert batching.bucket_by_length(lengths, 2) == [([6, 0, 3], 16), ([2, 7], 32), ([5, 4], 48), ([1], 384)]
    assert batching.bucket_by_length(lengths, 3) == [([6, 0, 3], 16), ([2, 7, 5, 4], 48), ([1], 384)]
    assert batching.bucket_by_length(lengths, 100) == [([6, 0, 3, 2, 7, 5, 4, 1], 384)]
    assert batching.bucket_by_length([], 3) == []


def test_prompts_of_a_rare_length_are_prefilled_with_the_next_longer_ones():
    lengths = [300, 5, 16, 20, 40, 33, 3]  # padded to 384, 16, 16, 32, 48, 48, 16
    assert batching.prefill_lengths(lengths, lambda _: 2) == [384, 16, 16, 48, 48, 48, 16]
    assert batching.prefill_lengths(lengths, lambda _: 4) == [384, 32, 32, 32, 48, 48, 32]
    assert batching.prefill_lengths(lengths, lambda n: 100 // n) == [384, 32, 32, 32, 48, 48, 32]
    assert batching.prefill_lengths([3] * 7 + [4000], lambda _: 8) == [16] * 7 + [4096]  # far longer ones cost more
    assert batching.prefill_lengths([], lambda _: 2) == []


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=80), max_size=6), st.integers(0, 70))
def test_common_prefix_len(rests, length):
    ids = [[7] * length + rest for rest in rests]
    shared = batching.common_prefix_len(ids)
    assert shared % 16 == 0
    assert all(x[:shared] == ids[0][:shared] and len(x) > shared for x in ids)
    if len(ids) > 1 and length > batching.MIN_SHARED_PREFIX:
        assert shared >= (length - 1) // 16 * 16
    if len(ids) < 2 or length == 0:
        assert shared == 0 or len({tuple(x[:16]) for x in ids}) == 1


def test_there_are_not_many_more_slots_than_samples():
    assert [batching.num_slots(n, 256, 1) for n in (1, 2, 3, 33, 255, 256, 257, 4000)] == [1, 2, 4, 64] + [256] * 4
    assert [batching.num_slots(n, 30, 8) for n in (1, 9, 1000)] == [8, 16, 32]


def test_slots_are_refilled_in_sixteenths_and_prefill_limits_the_tokens():
    shape = make_mesh(devices=jax.devices()[:1]).shape
    mesh_of = lambda platform: SimpleNamespace(shape=shape, devices=np.array([SimpleNamespace(platform=platform)]))  # noqa: E731
    cpu, tpu = mesh_of("cpu"), mesh_of("tpu")

    def sizes(slots, num_samples, all_at_once, mesh, length):  # samples inserted, prompts prefilled together
        return tuple(
            f(slots, num_samples, all_at_once, mesh, length)
            for f in (batching.insert_size, batching.prefill_batch_size)
        )

    assert [sizes(256, 4, False, cpu, n) for n in (16, 128, 1024, 10_000)] == [(16, 8), (16, 8), (4, 1), (4, 1)]
    assert [sizes(n, 4, False, tpu, 128) for n in (4, 32, 64, 1024)] == [(1, 1), (2, 1), (4, 2), (64, 32)]
    assert sizes(256, 4, True, tpu, 128) == (256, 64)  # there is a slot for each
    assert sizes(256, 4, True, tpu, 1024) == (32, 8)
    assert sizes(1, 1, True, cpu, 16) == (1, 1)


def test_a_row_depends_on_its_id_and_key_and_not_on_the_batch(make_engine, completions):
    expected = {(c.id, c.sample): c for c in completions}
    for rows, requests in ((8, REQUESTS[::-1]), (4, REQUESTS[3:4])):
        for c in make_engine(rows).generate(requests, PARAMS, KEY):
            assert c.ids == expected[c.id, c.sample].ids
            np.testing.assert_allclose(c.logprobs, expected[c.id, c.sample].logprobs, atol=1e-5)
    renamed = [Request(f"other{r.id}", r.prompt) for r in REQUESTS]
    for changed in (
        make_engine().generate(renamed, PARAMS, KEY),
        make_engine().generate(REQUESTS, PARAMS, jax.random.key(6)),
    ):
        assert [c.ids for c in changed] != [c.ids for c in completions]


def test_more_samples_start_with_the_same_ones(make_engine, completions):
    more = make_engine().generate(REQUESTS[:1], PARAMS._replace(num_samples=4), KEY)
    assert [c.ids for c in more[:2]] == [c.ids for c in completions[:2]]


def test_every_row_and_sample_has_its_own_key():
    keys = np.asarray(jax.random.key_data(sample_keys(KEY, ["a", "b", "c"], 3)))
    assert len({tuple(k) for k in keys.tolist()}) == 9
    np.testing.assert_array_equal(jax.random.key_data(sample_keys(KEY, ["c"], 3)), keys[6:])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error_of_the_row(value, random_params):
    """One of the eight letters has such a logit, wherever the model reads the letter h."""
    params = random_params(CFG, seed=2)
    params["embed"] = params["embed"].at[12].set(value)
    engine = Engine(CFG, params, CHAT, make_mesh(), max_concurrent=4, max_length=24)
    with pytest.raises(NonFiniteLogitsError, match=r"\brow r2\b.*\b0\b"):  # "hgfedcba"
        engine.generate(REQUESTS[2:3], PARAMS._replace(num_samples=1), KEY)
    with pytest.raises(NonFiniteLogitsError, match=r"\bquery 1\b"):
        engine.next_logprobs([[5, 6], [5, 12]], [[6, 7]] * 2)


def test_responses_are_sampled_under_the_system_text_of_their_prompt(make_engine):
    engine = make_engine()
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|assistant|>' if m.role == 'assistant' else '<|user|>' }}"
        "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    engine.chat = Chat(Letters(), template, BOS, EOS, [1])
    rows = [{"id": "p", "prompt": "ab\n\ncd", "system": "ab"}, {"id": "q", "prompt": "cd"}]
    made = {row["id"]: row for batch in generate_responses(engine, rows, PARAMS, KEY) for row in batch}
    messages = [("system", "ab"), ("user", "cd")]
    expected = engine.generate([Request("p", messages), Request("q", "cd")], PARAMS, KEY)
    assert [r["text"] for i in "pq" for r in made[i]["responses"]] == [c.text for c in expected]
    assert made["p"]["prompt"] == rows[0]["prompt"]
    engine.max_length = len(engine.encode(messages)) + 8
    assert drop_long_prompts(engine, rows, 8, "") == rows
    engine.max_length -= 1
    assert drop_long_prompts(engine, rows, 8, "") == rows[1:]


def test_repeated_ids_are_refused(make_engine):
    with pytest.raises(ValueError, match=r"\bids?\b"):
        make_engine().generate([*REQUESTS, REQUESTS[0]], PARAMS, KEY)


def test_a_prompt_is_refused_before_any_work_only_if_it_does_not_fit(make_engine):
    longest = len(CHAT.prompt_ids(REQUESTS[2].prompt)) + PARAMS.max_new_tokens  # 12 + 8
    with pytest.raises(ValueError, match=r"\br2\b.*\b12\b.*\b8\b.*\b19\b"):
        next(make_engine(max_length=longest - 1).stream(REQUESTS, PARAMS, KEY))
    assert len(make_engine(max_length=longest).generate(REQUESTS[2:3], PARAMS, KEY)) == 2


def test_a_whole_call_that_is_stopped_gives_nothing(make_engine):
    engine = make_engine()
    engine.should_stop = lambda: True
    assert list(engine.stream(REQUESTS, PARAMS, KEY)) == []
    with pytest.raises(Stopped):
        engine.generate(REQUESTS, PARAMS, KEY)


def test_no_requests_no_completions(make_engine):
    assert make_engine().generate([], PARAMS, KEY) == []

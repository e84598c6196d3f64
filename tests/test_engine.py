"""The engine: what comes back, in which order, and that no batch changes a row."""

import jax
import numpy as np
import pytest

from selfreward_jax.generate.engine import Engine, Request, Sampling, sample_keys
from selfreward_jax.llm.chat import Chat, our_template
from selfreward_jax.llm.llama import LlamaConfig
from selfreward_jax.llm.tokenizer import ASSISTANT, BOS, END, EOS, USER
from selfreward_jax.parallel.mesh import make_mesh


class Letters:
    """A tokenizer of the letters a to h."""

    controls = {piece: i for i, piece in enumerate((BOS, EOS, USER, ASSISTANT, END))}
    vocab_size = 13

    def encode(self, text, follows="control"):
        return [5 + "abcdefgh".index(letter) for letter in text]

    def decode(self, ids):
        return "".join("abcdefgh"[i - 5] for i in ids if i >= 5)


CHAT = Chat(Letters(), our_template("control"), BOS, EOS, [1])
CFG = LlamaConfig(vocab_size=13, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=24, tie_embeddings=False)
HOW = Sampling(samples=2, temperature=1.0, top_p=0.95, max_new=8)
KEY = jax.random.key(5)
# Lengths in no order: with two prompts a batch, the batches by length are (r1, r3), (r4, r0) and (r2).
REQUESTS = [Request(f"r{i}", prompt) for i, prompt in enumerate(["abcde", "a", "hgfedcba", "bc", "ddd"])]
BATCHES = [{"r1", "r3"}, {"r4", "r0"}, {"r2"}]


@pytest.fixture(scope="module")
def make_engine(random_params):
    params = random_params(CFG, seed=2)  # some samples stop and some are cut off
    return lambda rows=4, max_length=24: Engine(CFG, params, CHAT, make_mesh(), rows=rows, max_length=max_length)


@pytest.fixture(scope="module")
def completions(make_engine):
    return make_engine().generate(REQUESTS, HOW, KEY)


def test_completions_come_in_the_order_of_requests_and_samples(completions):
    assert [(c.id, c.sample) for c in completions] == [(r.id, s) for r in REQUESTS for s in (0, 1)]


def test_a_completion_holds_what_was_drawn_up_to_its_stop(completions):
    stops = set(CHAT.stop_ids)
    for c in completions:
        assert len(c.ids) == len(c.logprobs) <= HOW.max_new
        assert all(p < 0 for p in c.logprobs)
        assert not stops & set(c.ids[:-1])
        assert c.finished == (c.ids[-1] in stops)
        assert c.finished or len(c.ids) == HOW.max_new
        assert c.text == Letters().decode(c.ids)
    assert {c.finished for c in completions} == {True, False}  # both kinds were looked at


def test_done_leaves_out_whole_batches_and_changes_no_other(make_engine, completions):
    engine = make_engine()
    assert [{c.id for c in batch} for batch in engine.stream(REQUESTS, HOW, KEY)] == BATCHES
    # The second batch is done; of the first only one row is, so it is made again as a whole.
    left = list(engine.stream(REQUESTS, HOW, KEY, done={"r4", "r0", "r1"}))
    assert [{c.id for c in batch} for batch in left] == [BATCHES[0], BATCHES[2]]
    kept = {(c.id, c.sample): c for c in completions}
    for c in (c for batch in left for c in batch):
        assert c == kept[c.id, c.sample]  # to the bit, log-probs too
    assert list(engine.stream(REQUESTS, HOW, KEY, done=[r.id for r in REQUESTS])) == []


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
    more = make_engine().generate(REQUESTS[:1], HOW._replace(samples=4), KEY)
    assert [c.ids for c in more[:2]] == [c.ids for c in completions[:2]]


def test_every_row_and_sample_has_its_own_key():
    keys = np.asarray(jax.random.key_data(sample_keys(KEY, ["a", "b", "c"], 3)))
    assert len({tuple(k) for k in keys.tolist()}) == 9
    np.testing.assert_array_equal(jax.random.key_data(sample_keys(KEY, ["c"], 3)), keys[6:])


def test_repeated_ids_are_refused(make_engine):
    with pytest.raises(ValueError, match="ids repeat"):
        make_engine().generate([*REQUESTS, REQUESTS[0]], HOW, KEY)


def test_a_prompt_too_long_is_refused_before_any_work_and_one_that_just_fits_is_not(make_engine):
    longest = len(CHAT.prompt_ids(REQUESTS[2].prompt)) + HOW.max_new  # 12 + 8
    with pytest.raises(ValueError, match=r"prompt r2 has 12 tokens; with 8 new ones it passes .* 19"):
        next(make_engine(max_length=longest - 1).stream(REQUESTS, HOW, KEY))
    assert len(make_engine(max_length=longest).generate(REQUESTS[2:3], HOW, KEY)) == 2


def test_no_requests_no_completions(make_engine):
    assert make_engine().generate([], HOW, KEY) == []

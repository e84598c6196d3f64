"""The expected score against a weighted mean of the model's own logits."""

import math

import jax
import numpy as np
import pytest

from selfreward_jax.llm.chat import Chat, builtin_template
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.tokenizer import BOS, EOS, SentencePiece, train_sentencepiece
from selfreward_jax.method.expected_score import expected_scores
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.sampling.engine import Engine

TEXTS = [f"Judge this. Good reasons, bad reasons: {n}.\nScore: {n} Choice: {c}" for n in "012345" for c in "ABCDE"]


@pytest.fixture(scope="module")
def engine(random_params):
    chat = Chat(SentencePiece(train_sentencepiece(TEXTS, 80, False)), builtin_template("control"), BOS, EOS)
    cfg = DecoderConfig(
        vocab_size=chat.tokenizer.vocab_size, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24
    )
    return Engine(cfg, random_params(cfg), chat, make_mesh(), max_concurrent=2, max_length=128)


def by_hand(engine, prompt, texts, values):
    """The weighted mean from the full forward pass: the first id by which the texts differ, of each of them."""
    ids = [engine.chat.example(prompt, text).ids for text in texts]
    prefix_len = next(i for i in range(99) if len({tuple(x[: i + 1]) for x in ids}) > 1)
    stacked = jax.tree.map(lambda *layers: np.stack(layers), *engine.params["layers"])
    forward = jax.jit(lambda p, x: Decoder(engine.cfg).apply({"params": p}, x))
    logits = np.asarray(forward({**engine.params, "layers": stacked}, np.array([ids[0][:prefix_len]])), np.float64)[
        0, -1
    ]
    weights = np.exp([logits[x[prefix_len]] for x in ids])
    return float(weights @ np.array(values) / weights.sum())


def test_it_is_the_mean_over_the_scores_tokens(engine):
    judgments = [
        ("Judge this.", "Good reasons.\nScore: 4"),
        ("Judge this. bad", "Score: 0"),
        ("this", "bad.\nScore: 2"),
    ]
    scores = expected_scores(engine, judgments, "points")
    for (prompt, text), value in zip(judgments, scores, strict=True):
        texts = [text[:-1] + n for n in "012345"]
        assert value == pytest.approx(by_hand(engine, prompt, texts, range(6)), abs=1e-5)
    assert len(set(scores)) == 3


def test_the_sampled_score_does_not_matter(engine):
    one, other = expected_scores(engine, [("this", "bad.\nScore: 2"), ("this", "bad.\nScore: 5")], "points")
    assert one == pytest.approx(other, abs=1e-5)


def test_a_choice_has_the_value_of_its_letter(engine):
    (score,) = expected_scores(engine, [("this", "Good reasons.\nChoice: D")], "choice")
    texts = [f"Good reasons.\nChoice: {c}" for c in "ABCDE"]
    assert score == pytest.approx(by_hand(engine, "this", texts, range(1, 6)), abs=1e-5)
    assert 1 < score < 5


def test_a_judgment_without_a_score_has_no_expected_score(engine):
    judgments = [("this", "bad"), ("this", "Score: 4"), ("this", "Score: 9")]
    first, second, third = expected_scores(engine, judgments, "points")
    assert (first, third) == (None, None)
    assert second is not None
    assert expected_scores(engine, [], "points") == []


def test_a_certain_model_gives_its_own_score(engine, monkeypatch):
    certain = [0.0 if n == 3 else -math.inf for n in range(6)]
    monkeypatch.setattr(engine, "next_logprobs", lambda contexts, candidates, batch_size: [certain] * len(contexts))
    assert expected_scores(engine, [("this", "Score: 1")], "points") == [3.0]

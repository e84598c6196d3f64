"""The embedded world: its generator and its oracle, written independently, agree; and win rates by its oracle.

Everything is derived from the world's own functions and words, so that its wording may change.
"""

import re
from collections import Counter
from random import Random

import pytest

from selfreward_jax import config
from selfreward_jax.evaluate import oracle as measure
from selfreward_jax.method import round_checks
from selfreward_jax.method.judge_parsing import parse_choice, parse_score
from selfreward_jax.method.prompt_generation import rejection_reason
from selfreward_jax.worlds.toy import generator, oracle
from selfreward_jax.worlds.toy.vocabulary import TOPICS


def total(prompt, response):
    return sum(oracle.points(prompt, response).values())


def test_oracle_and_generator_agree_on_every_judged_row():
    rows = generator.eft_rows(3000, Random("judged"))
    for row in rows:
        assert total(row["prompt"], row["response"]) == row["score"], row
    # Agreement is meaningful only if every score, and every point won and lost, occurs, also without the answers that
    # have no content and so lose all points at once.
    rows = [row for row in rows if row["response"] not in (*generator.DEGENERATE_RESPONSES, row["prompt"])]
    assert {row["score"] for row in rows} == set(range(len(oracle.CRITERIA) + 1))
    points = [oracle.points(row["prompt"], row["response"]) for row in rows]
    for name in oracle.CRITERIA:
        assert {p[name] for p in points} == {True, False}, name


def test_some_judged_answers_are_degenerate_and_the_others_do_not_depend_on_them(monkeypatch):
    rows = generator.eft_rows(320, Random("judged"))
    empty = [row for row in rows if row["response"] in (*generator.DEGENERATE_RESPONSES, row["prompt"])]
    assert len(empty) == len(rows) / generator.DEGENERATE_EVERY
    assert {row["response"] for row in empty} >= set(generator.DEGENERATE_RESPONSES)
    assert any(row["response"] == row["prompt"] for row in empty)
    assert {row["score"] for row in empty} == {0}
    monkeypatch.setattr(generator, "DEGENERATE_EVERY", 1000)
    without = generator.eft_rows(320, Random("judged"))
    assert [row for row in rows if row not in empty] == [row for row in without if row in rows]
    # Some probes of a round's judge are not in its training data.
    probes = {row["response"] for row in round_checks.probes([{"id": "x", "prompt": "?"}], "points")}
    assert probes - {*generator.DEGENERATE_RESPONSES, "?"} == {":", "Score: 5"}


def test_oracle_and_generator_agree_on_every_ranked_answer():
    for row in generator.ranked_rows(300, 4, Random("ranked")):
        assert len(row["answers"]) == 4
        for a in row["answers"]:
            assert total(row["prompt"], a["response"]) == a["score"], (row["prompt"], a)


def test_a_judgment_ends_with_its_score():
    for row in generator.eft_rows(300, Random("judged")):
        assert parse_score(row["judgment"]) == row["score"]


def test_a_choice_ends_with_its_grade():
    """The lowest of five is for one point and for none."""
    for row in generator.eft_rows(300, Random("judged"), "choice"):
        assert parse_choice(row["judgment"]) == max(1, row["score"])


def test_every_request_can_be_parsed_and_passes_the_prompt_filter():
    settings = config.default_config().prompts
    for text in generator.prompts(1000, Random("requests")):
        assert set(oracle.points(text, "")) == set(oracle.CRITERIA)  # no ValueError
        assert rejection_reason(text, settings) is None, text


def test_a_text_without_the_form_of_an_answer_earns_nothing():
    (prompt,) = generator.prompts(1, Random(0))
    for response in "", prompt, "Score: 5", "yes":
        assert total(prompt, response) == 0, response


def test_a_prompt_that_is_no_request_of_this_world_is_refused():
    with pytest.raises(ValueError, match="capital of France"):
        oracle.points("What is the capital of France?", "Paris.")


def test_instructions_are_of_mixed_quality():
    points = [oracle.points(row["prompt"], row["response"]) for row in generator.ift_rows(1000, Random("ift"))]
    for name in oracle.CRITERIA:  # each fault is often there and often absent
        assert 0.2 < sum(p[name] for p in points) / len(points) < 0.95, name
    assert 0 < sum(all(p.values()) for p in points) < len(points) / 2


def test_no_word_has_two_topics():
    words = Counter(word for _, words in TOPICS.values() for word in words.split())
    assert max(words.values()) == 1
    plurals = [plural for plural, _ in TOPICS.values()]
    assert len(set(plurals)) == len(plurals)


def test_documents_name_words_of_the_world():
    words = {word for _, words in TOPICS.values() for word in words.split()}
    for text in generator.documents(100, Random("documents")):
        assert words & set(re.findall(r"\w+", text)), text


@pytest.mark.parametrize("make", [generator.ift_rows, generator.eft_rows, generator.prompts, generator.documents])
def test_rows_are_a_function_of_the_stream(make):
    assert make(20, Random(1)) == make(20, Random(1))
    assert make(20, Random(1)) != make(20, Random(2))
    assert make(20, Random(1))[:5] == make(5, Random(1))


# --- win rates ----------------------------------------------------------------------------------------------


@pytest.fixture
def starred(monkeypatch):
    """An oracle that gives a point for each star, so that the outcome of a matchup can be read from its answers."""
    monkeypatch.setattr(
        oracle, "points", lambda prompt, text: {c: i < text.count("*") for i, c in enumerate(oracle.CRITERIA)}
    )


def answers(*stars):
    return [{"prompt": f"p{i}", "responses": [{"text": "*" * n} for n in row]} for i, row in enumerate(stars)]


@pytest.mark.usefixtures("starred")
def test_more_points_win():
    ours, theirs = answers([3, 2], [5, 0], [1, 1]), answers([2, 2], [4, 1], [0, 0])
    assert measure.verdicts(ours, theirs, "toy") == [[1, 0], [1, -1], [1, 1]]


@pytest.mark.usefixtures("starred")
def test_answers_to_other_prompts_are_refused():
    with pytest.raises(ValueError, match=r"\bprompts\b"):
        measure.verdicts(answers([1], [2]), answers([1], [2])[::-1], "toy")


@pytest.mark.usefixtures("starred")
def test_metrics_by_hand():
    maximum = len(oracle.CRITERIA)
    metrics = measure.metrics(answers([maximum, 0], [maximum, 1]), "toy")
    assert metrics["mean"] == pytest.approx((2 * maximum + 1) / 4)
    assert metrics["perfect"] == 0.5
    assert list(metrics["criteria"].values()) == pytest.approx([0.75] + [0.5] * (maximum - 1))

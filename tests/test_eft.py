"""EFT from a baseline's judgments: which rankings agree with the human order, and which rows the cap drops."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.data.eft import agrees, build_eft, cap_top_score


@pytest.mark.parametrize(
    ("human", "judged", "strict", "weak"),
    [
        ([1, 2, 3], [0, 3, 5], True, True),
        ([1, 2, 3], [5, 3, 0], False, False),
        ([1, 2, 3], [0, 3, 3], False, True),  # a judge's tie
        ([1, 2, 3], [3, 3, 3], False, False),  # ties alone order nothing
        ([1, 2, 2], [0, 3, 5], True, True),  # the human's tie is ignored
        ([1, 2, 2], [3, 2, 5], False, False),
        ([2, 2], [1, 5], False, False),  # nothing to order
        ([0.5, 0.25], [4.5, 4.0], True, True),
    ],
)
def test_agreement_with_the_human_order(human, judged, strict, weak):
    assert agrees(human, judged, "strict") is strict
    assert agrees(human, judged, "weak") is weak


SCORES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=5)


@given(SCORES)
def test_strict_agreement_is_weak_agreement_too(scores):
    human, judged = zip(*scores, strict=True)
    assert agrees(human, judged, "weak") or not agrees(human, judged, "strict")
    assert agrees(human, human, "strict") == (len(set(human)) > 1)


def ranked(name, *scores):
    answers = [{"id": f"{name}/{i}", "response": f"{name} answer {i}", "score": s} for i, s in enumerate(scores)]
    return {"prompt": name, "answers": answers}


def judged(**votes):
    """`p=[[4, None], [2, 1]]`: the votes on p/0 and p/1."""
    return [
        {"id": f"{name}/{i}", "votes": [{"text": f"judged as {s}", "score": s} for s in scores]}
        for name, answers in votes.items()
        for i, scores in enumerate(answers)
    ]


def build(prompts, judgments, agreement="strict", max_share=1.0):
    return build_eft(prompts, judgments, agreement, max_share, Random(0))


def test_all_judgments_of_the_first_ranking_that_agrees_are_kept():
    # Rankings, one a column: 2 > 4 (wrong), 4 > 1 (right), 5 > 0 (right too, but later).
    rows, counts = build([ranked("p", 5, 1)], judged(p=[[2, 4, 5], [4, 1, 0]]))
    assert [(r["response"], r["judgment"], r["score"]) for r in rows] == [
        ("p answer 0", "judged as 4", 4),
        ("p answer 1", "judged as 1", 1),
    ]
    assert all(r["prompt"] == "p" for r in rows)
    assert (counts["prompts"], counts["answers"], counts["judgments"], counts["readable"]) == (1, 2, 6, 6)
    assert (counts["agree"], counts["disagree"], counts["no_ranking"], counts["kept"]) == (1, 0, 0, 2)


def test_an_unparseable_judgment_is_dropped_from_its_ranking_only():
    rows, counts = build([ranked("p", 5, 3, 1)], judged(p=[[4], [None], [2]]))
    assert [r["response"] for r in rows] == ["p answer 0", "p answer 2"]
    assert counts["readable"] == 2
    none, counts = build([ranked("q", 5, 1)], judged(q=[[4], [None]]))
    assert (none, counts["no_ranking"]) == ([], 1)


def test_every_prompt_is_counted_once():
    prompts = [ranked("p", 5, 1), ranked("q", 5, 1), ranked("r", 5, 1), ranked("s", 5, 1)]
    _, counts = build(prompts, judged(p=[[4], [1]], q=[[1], [4]], r=[[3], [3]]))
    assert (counts["agree"], counts["disagree"], counts["no_ranking"]) == (1, 2, 1)
    assert counts["prompts"] == 4


def rows_of(*scores):
    return [{"score": s, "index": i} for i, s in enumerate(scores)]


def test_only_the_most_common_score_is_capped():
    rows = rows_of(*[4] * 80, *[5] * 12, *[1] * 8)
    kept = cap_top_score(rows, 0.5, Random(0))
    assert Counter(r["score"] for r in kept) == {4: 20, 5: 12, 1: 8}
    assert [r["index"] for r in kept] == sorted(r["index"] for r in kept)
    assert kept == cap_top_score(rows, 0.5, Random(0))
    assert kept != cap_top_score(rows, 0.5, Random(1))


@pytest.mark.parametrize("max_share", [0.0, 0.4, 1.0])
def test_rows_without_a_majority_score_are_kept(max_share):
    assert cap_top_score([], max_share, Random(0)) == []
    alone = rows_of(3, 3, 3)
    assert cap_top_score(alone, max_share, Random(0)) == alone  # one score for all: there are no others to balance
    even = rows_of(1, 2, 3, 4, 5)
    assert len(cap_top_score(even, max_share, Random(0))) == (4 if max_share == 0 else 5)


@given(st.lists(st.integers(0, 5), max_size=60), st.floats(0.05, 0.95))
def test_the_most_common_score_has_at_most_its_share(scores, max_share):
    kept = cap_top_score(rows_of(*scores), max_share, Random(0))
    if len(set(scores)) > 1:
        top_score = Counter(scores).most_common(1)[0][0]
        assert sum(r["score"] == top_score for r in kept) <= max_share * len(kept) + 1e-9
        assert [r["score"] for r in kept if r["score"] != top_score] == [s for s in scores if s != top_score]

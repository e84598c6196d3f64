"""Preference pairs: which response is chosen, which is rejected, and that every prompt is counted once."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.method.pairs import build_pairs, join_scores, length_controlled, two_sigma, with_anchors


def prompt(*scored, name="p"):
    return {"id": name, "prompt": "a request", "candidates": [{"response": r, "score": s} for r, s in scored]}


@pytest.mark.parametrize(
    ("scored", "outcome"),
    [
        ([("a", 3.0), ("b", 5.0), ("c", 1.0), ("d", 4.0)], ("b", "c")),
        ([("a", 2.0), ("b", 5.0), ("c", 5.0), ("d", 2.0)], ("b", "a")),  # of equals the first counts
        ([("a", None), ("b", 4.0), ("c", 3.0)], ("b", "c")),  # without a vote: neither best nor worst
        ([("a", 0.0), ("b", None), ("c", 1.0)], ("c", "a")),  # a zero is a score
        ([("a", 3.0), ("b", 3.0), ("c", None)], "tied"),
        ([("a", sum([1.1, 3.3, 2.2]) / 3), ("b", sum([1.1, 2.2, 3.3]) / 3), ("c", 2.2)], "tied"),
        ([("a", sum([1.1, 2.2, 3.3]) / 3), ("b", sum([1.1, 3.3, 2.2]) / 3), ("c", 1.0)], ("a", "c")),
        ([("a", 3.0), ("b", None)], "unscored"),
        ([("a", None), ("b", None)], "unscored"),
        ([("a", 3.0)], "unscored"),
        ([], "unscored"),
        ([("a", 3.0), ("a", 2.0)], "same_text"),
    ],
)
def test_outcome_of_one_prompt(scored, outcome):
    pairs, counts = build_pairs([prompt(*scored)])
    assert sum(counts.values()) == 1
    if isinstance(outcome, str):
        assert pairs == []
        assert counts[outcome] == 1
    else:
        assert counts["pairs"] == 1
        assert (pairs[0]["chosen"], pairs[0]["rejected"]) == outcome


CANDIDATES = st.lists(
    st.fixed_dictionaries({"response": st.sampled_from("abcde"), "score": st.none() | st.sampled_from([0.0, 2.5, 5.0])})
)


@given(st.lists(CANDIDATES))
def test_pairs_are_strictly_ordered_extreme_and_all_prompts_are_counted(prompts):
    rows = [{"id": str(i), "prompt": f"request {i}", "candidates": c} for i, c in enumerate(prompts)]
    pairs, counts = build_pairs(rows)
    assert sum(counts.values()) == len(prompts)
    assert counts["pairs"] == len(pairs)
    for pair in pairs:
        row = rows[int(pair["id"])]
        scores = [c["score"] for c in row["candidates"] if c["score"] is not None]
        assert pair["prompt"] == row["prompt"]
        assert pair["chosen_score"] == max(scores) > min(scores) == pair["rejected_score"]
        assert {"response": pair["chosen"], "score": pair["chosen_score"]} in row["candidates"]
        assert {"response": pair["rejected"], "score": pair["rejected_score"]} in row["candidates"]
        assert pair["chosen"] != pair["rejected"]
    for row in rows:
        scores = {c["score"] for c in row["candidates"]} - {None}
        if len(scores) < 2:  # nothing to prefer
            assert row["id"] not in {pair["id"] for pair in pairs}


def test_join_scores_gives_each_answer_its_own_score():
    answers = [
        {"id": f"{p}/{i}", "prompt_id": p, "prompt": f"request {p}", "response": f"{p}{i}"} for p in "xy" for i in "01"
    ]
    judgments = [{"id": "y/1", "score": 2.0}, {"id": "x/0", "score": None}, {"id": "x/1", "score": 4.0}]
    x, y = join_scores(answers, judgments)
    assert (x["id"], x["prompt"]) == ("x", "request x")
    assert x["candidates"] == [{"response": "x0", "score": None}, {"response": "x1", "score": 4.0}]
    assert y["candidates"] == [
        {"response": "y0", "score": None},
        {"response": "y1", "score": 2.0},
    ]  # y/0 was not judged


def test_join_scores_keeps_every_answer():
    answers = [{"id": str(i), "prompt_id": str(i % 3), "prompt": "", "response": str(i)} for i in range(10)]
    joined = Counter(c["response"] for row in join_scores(answers, []) for c in row["candidates"])
    assert joined == Counter(map(str, range(10)))


def answers(*scored):
    return [{"response": "x" * length, "score": score} for score, length in scored]


def test_length_control_of_the_worked_example():
    # S_max 5, S_min 2, rho .32: good from 4.04, poor up to 2.96.
    best, worst = length_controlled(answers((5.0, 1900), (4.2, 1500), (3.5, 1200), (2.5, 2400), (2.0, 1800)), 0.32)
    assert (best["score"], len(best["response"])) == (4.2, 1500)
    assert (worst["score"], len(worst["response"])) == (2.5, 2400)


def test_length_control_includes_scores_at_the_limit():
    best, worst = length_controlled(answers((5.0, 9), (4.5, 8), (0.5, 7), (0.0, 6)), 0.1)
    assert (best["score"], worst["score"]) == (4.5, 0.5)
    best, worst = length_controlled(answers((3.3, 9), (3.0, 8), (0.3, 7), (0.0, 6)), 1 / 11)
    assert (best["score"], worst["score"]) == (3.0, 0.3)


def test_rho_0_ignores_length_even_among_equals():
    pairs, _ = build_pairs([prompt(("long good", 5.0), ("good", 5.0), ("bad", 1.0), ("long bad", 1.0))])
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == ("long good", "bad")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=2, max_size=6), st.floats(0.01, 0.49))
def test_length_control_never_reverses_a_pair(scored, rho):
    texts = [(f"{i}" * length, float(score)) for i, (score, length) in enumerate(scored)]
    pairs, counts = build_pairs([prompt(*texts)], rho)
    assert sum(counts.values()) == 1
    for pair in pairs:
        assert pair["chosen_score"] > pair["rejected_score"]


def anchored(own, anchors):
    return prompt(*own) | {"anchors": [{"response": r, "score": s} for r, s in anchors]}


@pytest.mark.parametrize(
    ("own", "anchors", "outcome"),
    [
        ([("a", 2.0), ("b", 5.0)], [("x", 3.0), ("y", 1.0)], ("b", "y")),
        ([("a", 5.0)], [("x", 4.0)], ("a", "x")),  # one response of each side is enough
        ([("a", 3.0), ("b", 0.0)], [("x", 3.0), ("y", 4.0)], "tied"),
        ([("a", 2.0), ("b", 1.0)], [("x", 3.0)], "tied"),  # M1's worst is better than the best
        ([("a", 2.0), ("b", 1.0)], [("x", None)], "unscored"),
        ([("a", 2.0), ("b", 1.0)], [], "unscored"),
        ([("a", None)], [("x", 1.0)], "unscored"),
        ([("a", 2.0)], [("a", 1.0)], "same_text"),
    ],
)
def test_the_worst_anchor_is_rejected_where_the_best_response_is_better(own, anchors, outcome):
    pairs, counts = build_pairs([anchored(own, anchors)], rejected="anchor")
    if isinstance(outcome, str):
        assert (pairs, counts[outcome]) == ([], 1)
    else:
        assert (pairs[0]["chosen"], pairs[0]["rejected"]) == outcome


def test_without_anchors_the_worst_response_is_rejected():
    pairs, _ = build_pairs([prompt(("a", 1.0), ("b", 2.0))], rejected="anchor")
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == ("b", "a")


def test_anchors_are_joined_by_prompt():
    rows = with_anchors([prompt(("a", 1.0), name="p"), prompt(("b", 1.0), name="q")], [prompt(("x", 0.0), name="q")])
    assert [row["anchors"] for row in rows] == [[], [{"response": "x", "score": 0.0}]]


def test_two_sigma_passes_over_an_outlier():
    # 18 of 4, one of 2, one of 0: mean 3.7, standard deviation .9539, target 1.792: 2 is nearest, and not the minimum.
    scored = [("good", 4.0)] * 18 + [("poor", 2.0), ("outlier", 0.0)]
    assert two_sigma(prompt(*scored)["candidates"])["response"] == "poor"
    pairs, _ = build_pairs([prompt(*scored)], rejected="two_sigma")
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == ("good", "poor")


@given(st.lists(st.integers(0, 5), min_size=2, max_size=5))
def test_two_sigma_of_a_few_is_the_minimum(scores):
    rows = [prompt(*((f"{i}", float(s)) for i, s in enumerate(scores)))]
    assert build_pairs(rows, rejected="two_sigma") == build_pairs(rows)


@given(st.lists(st.floats(0, 5), min_size=2, max_size=40))
def test_two_sigma_never_rejects_a_response_as_good_as_the_best(scores):
    rows = [prompt(*((f"{i}", s) for i, s in enumerate(scores)))]
    assert build_pairs(rows, rejected="two_sigma")[1]["tied"] == build_pairs(rows)[1]["tied"]


@pytest.mark.parametrize(("gap", "outcome"), [(0.0, "pairs"), (1.0, "pairs"), (1.1, "close")])
def test_pairs_with_close_scores_are_left_out(gap, outcome):
    rows = [prompt(("a", sum([1.1, 3.3, 2.2]) / 3), ("b", sum([2.1, 3.2, 4.3]) / 3))]  # 2.2 and 3.2, but for rounding
    assert build_pairs(rows, min_gap=gap)[1][outcome] == 1

"""Responses compared two by two: who meets whom, wins and length gates by hand, scores, and pairs of judgments."""

import itertools
from random import Random

import pytest

from selfreward_jax.method import comparisons
from selfreward_jax.method.comparisons import length_credit, who_meets
from selfreward_jax.worlds.comparison import Judged, comparison_row


def test_all_pairs_or_a_ring():
    assert who_meets(4) == list(itertools.combinations(range(4), 2))
    assert who_meets(5, 2) == [(0, 1), (0, 4), (1, 2), (2, 3), (3, 4)]
    assert who_meets(3, 2) == [(0, 1), (0, 2), (1, 2)]
    assert who_meets(1) == who_meets(0) == who_meets(1, 2) == []
    for count, opponents in itertools.product(range(2, 9), (2, 4)):
        met = [name for pair in who_meets(count, opponents) for name in pair]
        assert {met.count(i) for i in range(count)} == {min(opponents, count - 1)}


@pytest.mark.parametrize(
    ("winner", "loser", "gate", "credit"),
    [
        (100, 50, "none", 1.0),
        (100, 90, "window", 1.0),
        (120, 100, "window", 0.0),  # the limits are outside
        (80, 100, "window", 0.0),
        (119, 100, "window", 1.0),
        (200, 100, "scale", 0.5),
        (50, 100, "scale", 1.0),
        (0, 10, "scale", 1.0),
    ],
)
def test_what_a_win_is_worth(winner, loser, gate, credit):
    assert length_credit("x" * winner, "y" * loser, gate) == credit


def vote(side, text="", finished=True):
    return {"text": text or f"Better: {side}", "finished": finished, "preference": side}


def row(name, first, second):
    """A comparison: preferences with the first response as A, and with the second as A."""
    return {"id": name, "orders": [[vote(s) for s in first], [vote(s) for s in second]], "tokens": 0}


TEXTS = {"m2/0/0": "x" * 10, "m2/0/1": "y" * 10, "m2/0/2": "z" * 20}


def test_the_score_is_the_share_of_wins():
    rows = [
        row("m2/0/0-1", "aa", ["b", "b"]),  # 0 wins twice
        row("m2/0/0-2", ["a", "a"], ["b", "a"]),  # once, and once the orders disagree
        row("m2/0/1-2", ["b", None], ["a", "b"]),  # 2 wins once, and one vote cannot be read
    ]
    judged = {r["id"]: r for r in comparisons.judgments(comparisons.compared(rows, TEXTS))}
    assert [v["score"] for v in judged["m2/0/0"]["votes"]] == [5, 5, 5, 0]
    assert judged["m2/0/0"]["score"] == pytest.approx(5 * 3 / 4)
    assert judged["m2/0/1"]["score"] == 0.0
    assert [v["score"] for v in judged["m2/0/2"]["votes"]] == [0, 0, 5, None]
    assert judged["m2/0/2"]["score"] == pytest.approx(5 / 3)
    few = comparisons.judgments(comparisons.compared(rows, TEXTS), min_votes=4)
    assert {r["id"]: r["score"] is None for r in few} == {"m2/0/0": False, "m2/0/1": True, "m2/0/2": True}
    scaled = {r["id"]: r for r in comparisons.judgments(comparisons.compared(rows, TEXTS, "scale"))}
    assert [v["score"] for v in scaled["m2/0/2"]["votes"]] == [0, 0, 2.5, None]  # 20 characters against 10


def test_a_judgment_shows_its_response_first():
    rows = [{"id": "m2/0/0-1", "orders": [[vote("a", "first")], [vote("b", "second")]], "tokens": 0}]
    judged = {r["id"]: r for r in comparisons.judgments(comparisons.compared(rows, TEXTS))}
    assert [judged[f"m2/0/{i}"]["votes"][0]["text"] for i in (0, 1)] == ["first", "second"]


def responses(count):
    return [{"id": f"m2/0/{i}", "prompt_id": "m2/0", "prompt": "P", "response": f"R{i}"} for i in range(count)]


def test_matchups_keep_the_numbers_of_the_samples():
    met = comparisons.matchups([responses(4)[0], responses(4)[3]])  # two of the four were cut off
    assert [(m.id, m.ours, m.theirs) for m in met] == [("m2/0/0-3", "R0", "R3")]


def test_pairs_of_judgments_by_a_small_table():
    by_id = {r["id"]: r for r in responses(3)}
    rows = [
        {
            "id": "m2/0/0-1",
            "orders": [
                [vote("b", "wrong"), vote("a", "right"), vote("a", "right too")],
                [vote("b", "right"), vote("b", "right too")],  # all agree: no pair
            ],
            "tokens": 0,
        },
        {
            "id": "m2/0/0-2",
            "orders": [[vote("a", "x"), vote(None, "unreadable")], [vote("tie", "tie"), vote("b", "right")]],
            "tokens": 0,
        },
        {"id": "m2/0/1-2", "orders": [[vote("a"), vote("b")], [vote("a"), vote("b")]], "tokens": 0},  # equal scores
    ]
    scores = {"m2/0/0": 4.0, "m2/0/1": 1.0, "m2/0/2": 1.0}
    pairs = comparisons.judge_pairs(rows, by_id, scores, "{prompt}|{first}|{second}")
    assert [(p["id"], p["prompt"], p["chosen"], p["rejected"]) for p in pairs] == [
        ("m2/0/0-1/0", "P|R0|R1", "right", "wrong"),
        ("m2/0/0-2/0", "P|R0|R2", "x", "unreadable"),
        ("m2/0/0-2/1", "P|R2|R0", "right", "tie"),
    ]
    rounding = {"m2/0/0": 0.1 + 0.2, "m2/0/1": 0.3, "m2/0/2": 0.3}
    assert comparisons.judge_pairs(rows, by_id, rounding, "{prompt}") == []
    cut_off = [{"id": "m2/0/0-1", "orders": [[vote("a", "x"), vote(None, "y", finished=False)], []], "tokens": 0}]
    assert comparisons.judge_pairs(cut_off, by_id, scores, "{prompt}") == []


def test_a_written_comparison_names_the_better_answer():
    good, poor = Judged("good", "All fit: 4.\nScore: 4", 4), Judged("poor", "One sentence. Score: 1", 1)
    rows = [comparison_row("P", (good, poor), Random(seed)) for seed in range(8)]
    assert {r["first"] for r in rows} == {"good", "poor"}
    for r in rows:
        first = "A" if r["first"] == "good" else "B"
        assert r["judgment"].splitlines()[-1] == f"Better: {first}"
        assert r["score"] == (1 if first == "A" else -1)
        assert f"{first}. All fit: 4.\n" in r["judgment"]
    assert comparison_row("P", (good, good), Random(0))["judgment"].endswith("\nBetter: tie")

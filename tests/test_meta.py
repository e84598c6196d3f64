"""Pairs of judgments by a meta-judge, and the seeds that teach it."""

from random import Random

import pytest

from selfreward_jax.method import meta
from selfreward_jax.method.judge_parsing import parse_score
from selfreward_jax.worlds.toy import generator


def judgment(name, *scores, variance):
    votes = [{"text": f"{name} vote {i}: {s}", "finished": True, "score": s} for i, s in enumerate(scores)]
    return {"id": name, "variance": variance, "votes": votes}


RESPONSES = {
    f"m2/{p}/{i}": {"id": f"m2/{p}/{i}", "prompt_id": f"m2/{p}", "prompt": f"P{p}", "response": f"R{p}{i}"}
    for p in (0, 1)
    for i in (0, 1)
}


def test_the_response_whose_votes_differ_most_is_compared():
    rows = [
        judgment("m2/0/0", 1, 2, 3, variance=0.5),
        judgment("m2/0/1", 1, 5, 3, variance=2.0),
        judgment("m2/1/0", 2, 2, 2, variance=0.0),
        judgment("m2/1/1", 4, None, 4, variance=0.0),
    ]
    (one,) = meta.most_doubtful(rows, RESPONSES)
    assert (one.id, one.prompt, one.response, list(one.votes)) == ("m2/0/1", "P0", "R01", [0, 1, 2])
    assert [m.id for m in meta.matchups([one])] == ["m2/0/1/0-1", "m2/0/1/0-2", "m2/0/1/1-2"]


def test_a_vote_that_was_cut_off_and_equal_texts_are_not_compared():
    row = judgment("m2/0/0", 1, 2, 3, variance=1.0)
    row["votes"][0]["finished"] = False
    row["votes"][2]["text"] = row["votes"][1]["text"]
    (one,) = meta.most_doubtful([row], RESPONSES)
    assert list(one.votes) == [1, 2]
    assert meta.matchups([one]) == []


def test_both_orders_are_shown():
    (one,) = meta.most_doubtful([judgment("m2/0/0", 1, 2, variance=0.25)], RESPONSES)
    (matchup,) = meta.matchups([one])
    assert matchup.prompts("{prompt}|{response}|{first}|{second}") == (
        "P0|R00|m2/0/0 vote 0: 1|m2/0/0 vote 1: 2",
        "P0|R00|m2/0/0 vote 1: 2|m2/0/0 vote 0: 1",
    )


def test_a_response_with_one_whole_judgment_gives_way_to_another():
    cut, whole = judgment("m2/0/0", 1, 5, variance=4.0), judgment("m2/0/1", 2, 3, variance=0.25)
    cut["votes"][0]["finished"] = False
    assert [one.id for one in meta.most_doubtful([cut, whole], RESPONSES)] == ["m2/0/1"]
    cut["votes"][1]["finished"] = False
    assert meta.most_doubtful([cut], RESPONSES) == []
    doubtful = judgment("m2/0/0", 1, 5, 5, variance=3.6)  # the vote that differs was cut off
    doubtful["votes"][0]["finished"] = False
    assert [one.id for one in meta.most_doubtful([doubtful, whole], RESPONSES)] == ["m2/0/1"]


def test_a_judgment_without_a_score_may_be_rejected_but_not_chosen():
    judged = meta.most_doubtful([judgment("m2/0/0", 1, 5, None, variance=4.0)], RESPONSES)
    wins_all = [verdict("m2/0/0/0-1", "a", "b"), verdict("m2/0/0/0-2", "b", "a"), verdict("m2/0/0/1-2", "b", "a")]
    (pair,) = meta.judge_pairs(judged, wins_all, "{prompt}")
    assert (pair["chosen"], pair["rejected"]) == ("m2/0/0 vote 0: 1", "m2/0/0 vote 1: 5")
    loses_all = [verdict("m2/0/0/0-1", "a", "b"), verdict("m2/0/0/0-2", "a", "b"), verdict("m2/0/0/1-2", "a", "b")]
    (pair,) = meta.judge_pairs(judged, loses_all, "{prompt}")
    assert (pair["chosen"], pair["rejected"]) == ("m2/0/0 vote 0: 1", "m2/0/0 vote 2: None")


def verdict(name, ours_first, theirs_first):
    return {"id": name, "verdict": 0, "read": [ours_first, theirs_first], "texts": ["", ""], "tokens": 0}


def test_the_best_judgment_is_chosen_and_the_worst_rejected():
    judged = meta.most_doubtful([judgment("m2/0/0", 1, 2, 3, variance=0.7)], RESPONSES)
    verdicts = [
        verdict("m2/0/0/0-1", "b", "a"),  # 1 beats 0
        verdict("m2/0/0/0-2", "a", "b"),  # 0 beats 2
        verdict("m2/0/0/1-2", "a", None),  # 1 beats 2 once
    ]
    (pair,) = meta.judge_pairs(judged, verdicts, "Judge {response} to {prompt}.")
    assert (pair["id"], pair["prompt"]) == ("m2/0/0", "Judge R00 to P0.")
    assert (pair["chosen"], pair["rejected"]) == ("m2/0/0 vote 1: 2", "m2/0/0 vote 2: 3")
    assert pair["chosen_score"] > 0 > pair["rejected_score"]
    assert meta.judge_pairs(judged, verdicts, "", max_length=5) == []


def test_places_are_weighed_over_the_round():
    """All wins of the first response are in the first place, which of the round wins three of four."""
    rows = [judgment("m2/0/0", 1, 2, variance=0.25), judgment("m2/1/0", 1, 2, variance=0.25)]
    judged = meta.most_doubtful(rows, RESPONSES)
    verdicts = [verdict("m2/0/0/0-1", "a", "tie"), verdict("m2/1/0/0-1", "a", "a")]
    assert meta.judge_pairs(judged, verdicts, "") == []  # whatever is first wins: nothing is known
    verdicts.append(verdict("m2/1/0/0-1", "b", "tie"))
    (pair, other) = meta.judge_pairs(judged, verdicts, "")
    assert (pair["id"], pair["chosen"]) == ("m2/0/0", "m2/0/0 vote 0: 1")
    assert (other["id"], other["chosen"]) == ("m2/1/0", "m2/1/0 vote 1: 2")


@pytest.mark.parametrize("both", [("tie", "tie"), ("a", "a"), (None, None)])
def test_without_a_winner_there_is_no_pair(both):
    judged = meta.most_doubtful([judgment("m2/0/0", 1, 2, variance=0.25)], RESPONSES)
    assert meta.judge_pairs(judged, [verdict("m2/0/0/0-1", *both)], "") == []
    assert meta.judge_pairs(judged, [], "") == []


def test_seeds_prefer_the_judgment_with_the_right_points():
    rows = generator.meta_rows(200, Random(5))
    assert {row["score"] for row in rows} == {-1, 0, 1}
    for row in rows:
        assert row["first"] != row["second"] or row["score"] == 0
        a, b = parse_score(row["first"]), parse_score(row["second"])
        numbers = [float(word.rstrip(",.")) for word in row["judgment"].splitlines()[-2].split() if word[0].isdigit()]
        true = numbers[-1]
        assert numbers[-4:] == [a, true, b, true]
        better = {1: "A", -1: "B", 0: "tie"}[(a == true) - (b == true)]
        assert row["judgment"].endswith(f"\nBetter: {better}")

"""Agreement of two scorings: tau-b by hand and against scipy, which responses count, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from selfreward_jax import config
from selfreward_jax.config import ConfigError, validate
from selfreward_jax.method.label_agreement import of_scores, of_votes, tau_b


@pytest.mark.parametrize(
    ("scored", "tau"),
    [
        ([(1, 1), (2, 2), (3, 3)], 1.0),
        ([(1, 3), (2, 2), (3, 1)], -1.0),
        ([(1, 1), (2, 3), (3, 2)], 1 / 3),  # two pairs alike, one reversed
        ([(1, 1), (2, 2), (2, 3)], 2 / math.sqrt(2 * 3)),  # one pair is tied on one side
        ([(1, 5), (2, 5), (3, 5)], 0.0),  # a constant side says nothing
        ([(1, 5)], 0.0),
        ([], 0.0),
    ],
)
def test_tau_b_by_hand(scored, tau):
    assert tau_b(scored) == pytest.approx(tau)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8))
def test_tau_b_is_that_of_scipy(scored):
    expected = stats.kendalltau(*zip(*scored, strict=True)).statistic if len(scored) > 1 else math.nan
    assert tau_b(scored) == pytest.approx(0.0 if math.isnan(expected) else expected)


def judgment(name, *scores):
    return {"id": name, "votes": [{"text": "", "finished": True, "score": s} for s in scores]}


def test_the_votes_are_halved():
    rows = [judgment("m2/7/0", 1, 5, 3), judgment("m2/7/1", 4, 1, 4)]  # 2 and 5, 4 and 1
    rows += [judgment("m2/8/0", 1, 1), judgment("m2/8/1", 2, 2), judgment("m2/8/2", 3, None)]  # the last has one half
    assert of_votes(rows) == {"m2/7": -1.0, "m2/8": 1.0}


def test_expected_scores_count_where_votes_have_them():
    rows = [judgment("m2/7/0", 3, 3), judgment("m2/7/1", 3, 3)]
    for row, numbers in zip(rows, ((2.5, 2.6), (3.5, 3.4)), strict=True):
        for vote, number in zip(row["votes"], numbers, strict=True):
            vote["expected"] = number
    assert of_votes(rows) == {"m2/7": 1.0}


def test_a_response_counts_if_both_have_scored_it():
    now = {"m3/1/0": 1.0, "m3/1/1": 2.0, "m3/1/2": 0.0, "m3/2/0": 1.0, "m3/3/0": None}
    before = {"m3/1/0": 3.0, "m3/1/1": 4.0, "m3/1/2": None}
    assert of_scores(now, before) == {"m3/1": 1.0, "m3/2": 0.0, "m3/3": 0.0}


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"pairs.agreement": "votes", "dpo.loss": "hinge"}, ["pairs.agreement", "'votes'", "'hinge'"]),
        ({"pairs.agreement": "votes", "judge.num_samples": 1}, ["judge.num_samples", "1"]),
        (
            {"pairs.agreement": "judges", "dpo.loss": "cdpo", "dpo.label_smoothing": 0.1},
            ["dpo.label_smoothing", "0.1", "'judges'"],
        ),
        (
            {"pairs.rejected": "anchor", "pairs.length_control_rho": 0.2},
            ["pairs.length_control_rho", "0.2", "'anchor'"],
        ),
    ],
)
def test_settings_that_exclude_each_other(settings, facts):
    c = config.get_config()
    c.update_from_flattened_dict(settings)
    with pytest.raises(ConfigError) as error:
        validate.validate(c, 1)
    assert all(fact in str(error.value) for fact in facts)

"""Win rates and their intervals, and the pairwise judge in both orders."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from selfreward_jax.evaluate.head_to_head import sign, win_rates
from selfreward_jax.method.pairwise import Matchup, both_orders, make_matchups, resolve_orders, verdicts_by_prompt


def test_win_rates_by_hand():
    rates = win_rates([[1, 0], [1, -1], [1, 1]])
    assert (rates["win"], rates["tie"], rates["lose"]) == pytest.approx((4 / 6, 1 / 6, 1 / 6))
    assert rates["margin"] == pytest.approx(0.5)
    # Margins of the prompts: 1/2, 0, 1; their variance is 1/4.
    assert rates["error"] == pytest.approx((1 / 4 / 3) ** 0.5)


def test_win_rates_are_reversed_with_the_sides():
    rng = Random(0)
    verdicts = [[rng.choice([-1, 0, 0, 1]) for _ in range(3)] for _ in range(40)]
    one, other = win_rates(verdicts), win_rates([[-v for v in row] for row in verdicts])
    assert (one["win"], one["tie"], one["lose"]) == (other["lose"], other["tie"], other["win"])
    assert one["error"] == pytest.approx(other["error"])
    assert one["interval"]["win"] == other["interval"]["lose"]
    assert one["interval"]["margin"] == pytest.approx([-x for x in reversed(other["interval"]["margin"])])


def test_a_model_ties_with_itself():
    rates = win_rates([[0, 0]] * 5)
    assert (rates["win"], rates["tie"], rates["lose"], rates["error"]) == (0, 1, 0, 0)
    assert rates["interval"]["tie"] == [1, 1]
    assert win_rates([[1]])["error"] == 0  # one prompt has no spread


def test_the_interval_equals_the_bootstrap_of_scipy_over_prompts():
    rng = np.random.default_rng(3)
    verdicts = [rng.choice([-1, 0, 1], size=2, p=[0.2, 0.3, 0.5]).tolist() for _ in range(150)]
    margins = np.array(verdicts).mean(1)
    expected = stats.bootstrap((margins,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
    assert win_rates(verdicts)["interval"]["margin"] == pytest.approx([expected.low, expected.high], abs=0.01)


@pytest.mark.parametrize(
    ("ours_first", "theirs_first", "verdict"),
    [
        ("a", "b", 1),
        ("b", "a", -1),
        ("a", "a", 0),  # always the first one
        ("b", "b", 0),
        ("tie", "tie", 0),
        ("a", "tie", 0),
        ("a", None, 0),
        (None, "a", 0),
        (None, None, 0),
    ],
)
def test_both_orders_must_agree(ours_first, theirs_first, verdict):
    assert resolve_orders(ours_first, theirs_first) == verdict


def test_the_second_prompt_has_the_answers_in_reverse_order():
    one, other = both_orders("{prompt}|{first}|{second}", Matchup("g", "p", "{second}", "theirs"))
    assert (one, other) == ("p|{second}|theirs", "p|theirs|{second}")


def rows(**responses):
    return [{"id": p, "prompt": p, "responses": [{"text": t} for t in texts]} for p, texts in responses.items()]


def test_matchups_pair_samples_on_the_prompts_of_both_models():
    matchups = make_matchups(rows(p=["a", "b"], q=["c", "d"], r=["e"]), rows(q=["C"], p=["A", "B"]))
    assert [(m.id, m.ours, m.theirs) for m in matchups] == [("p/0", "a", "A"), ("p/1", "b", "B"), ("q/0", "c", "C")]
    assert verdicts_by_prompt(matchups, [1, -1, 0]) == [[1, -1], [0]]


@given(st.floats(-5, 5))
def test_sign(x):
    assert sign(x) == (0 if abs(x) < 1e-9 else np.sign(x))

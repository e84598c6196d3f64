"""Elo by logistic regression: orders and values by hand, cycles, ties, and the weight of a place."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from selfreward_jax.method.elo import POINTS, elo, position_weights, weighted_wins


def test_two_players_with_odds_of_ten_to_one_are_400_points_apart():
    first, second = elo(np.array([[0, 10], [1, 0]]), ridge=1e-7)
    assert first - second == pytest.approx(400, rel=1e-5)
    assert first + second == pytest.approx(0, abs=1e-3)


def test_consistent_wins_give_their_order():
    wins = np.triu(np.ones((4, 4)), 1)
    ratings = elo(wins)
    assert list(np.argsort(-ratings)) == [0, 1, 2, 3]
    assert np.isfinite(ratings).all()
    assert elo(wins[::-1, ::-1]) == pytest.approx(ratings[::-1])


def test_a_cycle_is_a_tie():
    assert elo(np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])) == pytest.approx([0, 0, 0])


def test_without_wins_all_are_equal():
    assert elo(np.zeros((3, 3))).tolist() == [0, 0, 0]
    assert elo(np.zeros((0, 0))).tolist() == []


def test_the_diagonal_does_not_count():
    wins = np.array([[7, 2], [1, 5]])
    assert elo(wins) == pytest.approx(elo(np.array([[0, 2], [1, 0]])))


@given(st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=4, max_size=4))
def test_it_is_the_maximum(table):
    wins = np.array(table, float)
    np.fill_diagonal(wins, 0)

    def loss(r):
        return np.sum(wins * np.logaddexp(0, r[None, :] - r[:, None])) + 0.05 * np.sum(r**2)

    found = elo(wins, ridge=0.1) / POINTS
    assert loss(found) <= minimize(loss, np.zeros(4)).fun + 1e-8


def test_a_place_that_wins_more_counts_less():
    assert position_weights(3, 1) == (0.25, 0.75)
    assert position_weights(0, 0) == (0.5, 0.5)
    assert position_weights(2, 0) == (0.0, 1.0)  # a judge that always takes the first place says nothing
    games = [(0, 1, "a"), (1, 0, "a"), (0, 1, "a"), (1, 0, "b"), (0, 1, "tie"), (1, 0, None)]
    wins = weighted_wins(2, games, (0.25, 0.75))
    assert wins.tolist() == [[0, 0.25 + 0.25 + 0.75], [0.25, 0]]


def test_a_judge_that_prefers_a_place_gives_equal_ratings():
    games = [(i, j, "a") for i in range(3) for j in range(3) if i != j]
    assert elo(weighted_wins(3, games, (0.25, 0.75))) == pytest.approx([0, 0, 0])
    assert math.isclose(POINTS * math.log(10), 400)

"""Elo ratings from a table of wins, by logistic regression with a ridge (as in Meta-Rewarding, arXiv 2407.19594)."""

import math
from collections.abc import Sequence

import numpy as np

POINTS = 400 / math.log(10)  # Elo's scale: 400 points are odds of ten to one
MAX_STEP = 2.0  # of Newton's method, in log-odds; so that far-off starts do not overshoot


def elo(wins: np.ndarray, ridge: float = 0.01, iterations: int = 100) -> np.ndarray:
    """The ratings that make the wins likeliest (Bradley and Terry's model), with mean 0.

    Maximizes sum_ij wins_ij log sigmoid(r_i - r_j) - ridge/2 sum_i r_i^2, by Newton's method. The ridge keeps the
    rating of a player that always wins finite.

    Args:
      wins: [N, N], how often row i beat column j; weights are fine. The diagonal does not count.
      ridge: strength of the pull towards 0.
      iterations: at most so many steps.

    Returns:
      Ratings [N], float64, in Elo points.
    """
    wins = np.array(wins, float)
    np.fill_diagonal(wins, 0.0)
    games, ratings = wins + wins.T, np.zeros(len(wins))
    for _ in range(iterations):
        expected = 1 / (1 + np.exp(ratings[None, :] - ratings[:, None]))
        gradient = (wins - games * expected).sum(1) - ridge * ratings
        information = games * expected * (1 - expected)
        hessian = np.diag(information.sum(1) + ridge) - information
        step = np.clip(np.linalg.solve(hessian, gradient), -MAX_STEP, MAX_STEP)
        ratings += step
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    return POINTS * ratings


def position_weights(first_wins: float, second_wins: float) -> tuple[float, float]:
    """The weight of a win in the first and in the second place: each is what the other place wins. So a judge that
    prefers a place gains it nothing. Both are 1/2 where nobody won."""
    total = first_wins + second_wins
    return (second_wins / total, first_wins / total) if total else (0.5, 0.5)


def weighted_wins(count: int, games: Sequence[tuple[int, int, str | None]], weights: tuple[float, float]) -> np.ndarray:
    """The table of wins of `elo`, each weighted by its place.

    Args:
      count: N.
      games: (shown first, shown second, who won: "a" the first, "b" the second, else nobody).
      weights: of a win in the first and in the second place; see `position_weights`.

    Returns:
      wins [N, N].
    """
    of_first, of_second = weights
    wins = np.zeros((count, count))
    for first, second, outcome in games:
        if outcome == "a":
            wins[first, second] += of_first
        elif outcome == "b":
            wins[second, first] += of_second
    return wins

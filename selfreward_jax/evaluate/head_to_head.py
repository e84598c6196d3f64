"""Head to head: what verdicts on two models' answers to the same prompts come to."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from selfreward_jax.evaluate import bootstrap


def win_rates(verdicts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Wins, ties and losses.

    Args:
      verdicts: for each prompt, one verdict a sample: 1 win, 0 tie, -1 loss.

    Returns:
      `win`, `tie`, `lose` as fractions of all verdicts and `margin`, win - lose; `error`, the standard error of
      the margin over prompts; `interval`, the 95 % interval of each of the four.
    """
    parts = np.array([[v.count(1), v.count(0), v.count(-1), len(v)] for v in map(list, verdicts)], float)
    found: dict[str, Any] = {name: float(value) for name, value in _shares(parts.sum(0)).items()}
    each = (parts[:, 0] - parts[:, 2]) / parts[:, 3]
    found["error"] = float(each.std(ddof=min(1, len(each) - 1)) / np.sqrt(len(each)))
    return found | {"interval": bootstrap.intervals(parts, _shares)}


def _shares(sums: np.ndarray) -> dict[str, np.ndarray]:
    win, tie, lose, games = np.moveaxis(sums, -1, 0)
    return {"win": win / games, "tie": tie / games, "lose": lose / games, "margin": (win - lose) / games}


def sign(difference: float) -> int:
    """1, 0 or -1."""
    return (difference > 0) - (difference < 0)

"""Win rates: the verdicts on two models' responses to the same prompts, summarized."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from selfreward_jax.evaluate import bootstrap


def win_rates(verdicts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Wins, ties and losses.

    Args:
      verdicts: for each prompt, one verdict per sample: 1 win, 0 tie, -1 loss.

    Returns:
      `win`, `tie`, `lose` as fractions of all verdicts; `margin`, win - lose; `error`, the standard error of the margin
      over prompts; `interval`, the 95 % confidence interval of each of the four fractions.
    """
    counts = np.array([[v.count(1), v.count(0), v.count(-1), len(v)] for v in map(list, verdicts)], float)
    rates: dict[str, Any] = {name: float(value) for name, value in _fractions(counts.sum(0)).items()}
    margins = (counts[:, 0] - counts[:, 2]) / counts[:, 3]  # of each prompt
    rates["error"] = float(margins.std(ddof=min(1, len(margins) - 1)) / np.sqrt(len(margins)))
    return rates | {"interval": bootstrap.confidence_intervals(counts, _fractions)}


def _fractions(sums: np.ndarray) -> dict[str, np.ndarray]:
    win, tie, lose, total = np.moveaxis(sums, -1, 0)
    return {"win": win / total, "tie": tie / total, "lose": lose / total, "margin": (win - lose) / total}


def sign(difference: float) -> int:
    """1, 0 or -1. Less than 1e-9 is the rounding of two means, and no difference."""
    return (difference >= 1e-9) - (difference <= -1e-9)

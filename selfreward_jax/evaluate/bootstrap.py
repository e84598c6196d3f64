"""Percentile bootstrap: how far a figure would move if other instructions had been drawn."""

from collections.abc import Callable

import numpy as np

DRAWS = 2000


def intervals(
    parts: np.ndarray, figures: Callable[[np.ndarray], dict[str, np.ndarray]], seed: int = 0
) -> dict[str, list[float] | None]:
    """95 % intervals of figures that are functions of sums over instructions.

    Args:
      parts: what each instruction adds, [instructions, columns].
      figures: from sums [..., columns] to named figures [...]; nan where there is nothing to divide by.
      seed: of the draws.

    Returns:
      [low, high] for each figure: the middle 95 % of `DRAWS` draws of as many instructions, with replacement. None
      where most draws have no figure.
    """
    rows = len(parts)
    if not rows:
        return dict.fromkeys(figures(np.zeros(parts.shape[1])), None)
    drawn = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=DRAWS)
    return {name: _middle(values) for name, values in figures(drawn.astype(float) @ parts).items()}


def _middle(values: np.ndarray) -> list[float] | None:
    numbers = values[np.isfinite(values)]
    if 2 * len(numbers) < len(values):
        return None
    return [float(v) for v in np.percentile(numbers, [2.5, 97.5])]

"""Percentile bootstrap: how far a metric would move with another sample of instructions."""

from collections.abc import Callable

import numpy as np

NUM_RESAMPLES = 2000


def confidence_intervals(
    prompt_stats: np.ndarray, metrics_fn: Callable[[np.ndarray], dict[str, np.ndarray]], seed: int = 0
) -> dict[str, list[float] | None]:
    """95 % confidence intervals of metrics that are functions of sums over instructions.

    Args:
      prompt_stats: what each instruction contributes, [instructions, columns].
      metrics_fn: from sums [..., columns] to named metrics [...]; nan where the denominator is zero.
      seed: of the resampling.

    Returns:
      [low, high] for each metric: the middle 95 % over `NUM_RESAMPLES` resamples. A resample has as many instructions
      as there are, drawn with replacement. None where the metric is undefined in most resamples.
    """
    count = len(prompt_stats)
    if not count:
        return dict.fromkeys(metrics_fn(np.zeros(prompt_stats.shape[1])), None)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=NUM_RESAMPLES)
    return {name: _middle(values) for name, values in metrics_fn(weights.astype(float) @ prompt_stats).items()}


def _middle(values: np.ndarray) -> list[float] | None:
    finite = values[np.isfinite(values)]
    if 2 * len(finite) < len(values):
        return None
    return [float(v) for v in np.percentile(finite, [2.5, 97.5])]

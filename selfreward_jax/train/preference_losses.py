"""Losses over a pair: the chosen (c) and the rejected (r) response to one prompt.

Below, log p is the sum of a response's token log-probs, |y| its length in tokens, h(y) = log p(y) - log p_reference(y),
and m the margin, always beta times a difference of chosen and rejected:

    name           margin m: beta times             loss                               TRL 1.16 calls it
    sigmoid        h(c) - h(r)                      -log sigmoid(m)                    sigmoid
    hinge          h(c) - h(r)                      max(0, 1 - m)                      hinge
    ipo            h(c) - h(r)                      ((m - 1/2) / beta)^2               -
    ipo_mean       h(c)/|c| - h(r)/|r|              ((m - 1/2) / beta)^2               ipo
    cdpo           h(c) - h(r)                      (1 - e) L(m) + e L(-m)             - (aot, of a batch of one pair)
    robust         h(c) - h(r)                      ((1 - e) L(m) - e L(-m)) / (1-2e)  robust
    simpo          log p(c)/|c| - log p(r)/|r|      -log sigmoid(m - gamma)            simpo, of its CPO trainer
    sigmoid_norm   h(c)/|c| - h(r)/|r|              -log sigmoid(m)                    sigmoid_norm

with L(m) = -log sigmoid(m) and e = label_smoothing, the assumed fraction of swapped pairs.

Names with several meanings:
- IPO's paper sums over tokens; TRL's `ipo` averages, as its documentation says the authors did. Here
  they have two names.
- `cdpo` and `robust` handle the same label noise. cdpo has its minimum at a finite margin, log((1 - e) / e). robust is
  an unbiased estimate of the clean loss and can be negative. TRL's `sigmoid` once supported label smoothing, as in
  cdpo; 1.16 ignores it silently.
- `hinge` is RSO's, on log-ratios. SLiC-HF's own hinge has no reference.
- gamma is the SimPO paper's, in units of the margin, and TRL's simpo_gamma. The paper's code sets gamma / beta.
- RPO is sigmoid with dpo.nll_weight > 0: see `dpo.loss_fn`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class PairLogProbs(NamedTuple):
    """Log-probs and lengths of B pairs; each float32 [B].

    chosen, rejected: sequence log-probs under the policy, sums over the response's tokens.
    reference_chosen, reference_rejected: the same under the reference.
    chosen_length, rejected_length: tokens of the responses.
    """

    chosen: jax.Array
    rejected: jax.Array
    reference_chosen: jax.Array
    reference_rejected: jax.Array
    chosen_length: jax.Array
    rejected_length: jax.Array


Losses = tuple[jax.Array, jax.Array]  # losses [B] and margins [B]


def _difference(x: PairLogProbs) -> jax.Array:
    """Chosen minus rejected log-ratio [B]."""
    return (x.chosen - x.reference_chosen) - (x.rejected - x.reference_rejected)


def _mean_difference(x: PairLogProbs) -> jax.Array:
    """The same of log-ratios per token [B]."""
    chosen = (x.chosen - x.reference_chosen) / x.chosen_length
    return chosen - (x.rejected - x.reference_rejected) / x.rejected_length


def sigmoid(x: PairLogProbs, beta: float) -> Losses:
    """DPO (arXiv 2305.18290, eq. 7): -log sigmoid(m). With the policy equal to the reference every loss is log 2."""
    margin = beta * _difference(x)
    return -jax.nn.log_sigmoid(margin), margin


def hinge(x: PairLogProbs, beta: float) -> Losses:
    """max(0, 1 - m): SLiC's hinge (arXiv 2305.10425) on log-ratios, as in RSO (arXiv 2309.06657)."""
    margin = beta * _difference(x)
    return jax.nn.relu(1 - margin), margin


def ipo(x: PairLogProbs, beta: float) -> Losses:
    """IPO (arXiv 2310.12036, eq. 17): (h(c) - h(r) - 1 / (2 beta))^2; its tau is beta."""
    difference = _difference(x)
    return jnp.square(difference - 0.5 / beta), beta * difference


def ipo_mean(x: PairLogProbs, beta: float) -> Losses:
    """IPO on log-ratios per token: TRL's `ipo`."""
    difference = _mean_difference(x)
    return jnp.square(difference - 0.5 / beta), beta * difference


def cdpo(x: PairLogProbs, beta: float, label_smoothing: jax.typing.ArrayLike) -> Losses:
    """Conservative DPO (E. Mitchell, "A note on DPO with noisy preferences", 2023, eq. 3): cross-entropy with the
    label 1 - e instead of 1. Its minimum is at m = log((1 - e) / e)."""
    _, margin = sigmoid(x, beta)
    original, swapped = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
    return (1 - label_smoothing) * original + label_smoothing * swapped, margin


def robust(x: PairLogProbs, beta: float, label_smoothing: float) -> Losses:
    """rDPO (arXiv 2403.00409): ((1 - e) L(m) - e L(-m)) / (1 - 2e), whose mean over labels swapped with probability
    e is the DPO loss of the true labels. It has no lower bound."""
    _, margin = sigmoid(x, beta)
    original, swapped = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
    return ((1 - label_smoothing) * original - label_smoothing * swapped) / (1 - 2 * label_smoothing), margin


def simpo(x: PairLogProbs, beta: float, gamma: float) -> Losses:
    """SimPO (arXiv 2405.14734, eq. 6): -log sigmoid(m - gamma) of log-probs per token, without a reference. A mean is
    small compared with a sum: the paper's beta is 2 to 10, not 0.1. The margin returned is m, before gamma."""
    margin = beta * (x.chosen / x.chosen_length - x.rejected / x.rejected_length)
    return -jax.nn.log_sigmoid(margin - gamma), margin


def sigmoid_norm(x: PairLogProbs, beta: float) -> Losses:
    """Length-normalized DPO (Tulu 3, arXiv 2411.15124): DPO on log-ratios per token. Its beta there is 5."""
    margin = beta * _mean_difference(x)
    return -jax.nn.log_sigmoid(margin), margin


LOSSES: dict[str, Callable[..., Losses]] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "ipo_mean": ipo_mean,
    "cdpo": cdpo,
    "robust": robust,
    "simpo": simpo,
    "sigmoid_norm": sigmoid_norm,
}


def pair_loss(
    name: str, x: PairLogProbs, beta: float, label_smoothing: jax.typing.ArrayLike = 0.0, gamma: float = 0.0
) -> Losses:
    """Losses [B] and margins [B] of the loss `name`. Losses without label_smoothing or gamma ignore them.

    Args:
      name: one of LOSSES.
      x: the pairs.
      beta: strength of the regularization towards the reference; for simpo, the scale of the reward.
      label_smoothing: for cdpo and robust, in [0, 0.5); for cdpo also a number [B] for each pair, in [0, 1].
      gamma: for simpo, the target margin.
    """
    match name:
        case "cdpo" | "robust":
            return LOSSES[name](x, beta, label_smoothing)
        case "simpo":
            return simpo(x, beta, gamma)
        case _:
            return LOSSES[name](x, beta)

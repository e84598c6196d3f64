"""Log-probabilities and losses. Letters as in llm/llama.py."""

from typing import Any

import jax
import jax.numpy as jnp

from selfreward_jax.llm.llama import Llama, Params
from selfreward_jax.parallel.sharding import ROWS, devices_in_use, keep

# Most float32 logits that a device holds at once; longer sequences are taken in chunks of T, recomputed going back.
LOGITS_AT_ONCE = 1 << 25


def token_logprobs(model: Llama, params: Params, tokens_BT: jax.Array, **inputs: Any) -> jax.Array:
    """log p(tokens[b, t] | tokens[b, :t]) as float32 [B, T]; column 0, which nothing predicts, is 0.

    Args:
      model, params: the model.
      tokens_BT: token ids.
      **inputs: positions_BT, segments_BT and key, as in `Llama.hidden`.
    """
    # Cast before use, so that what devices gather of a weight is no wider than what they compute with.
    params = jax.tree.map(lambda x: x.astype(model.cfg.dtype), params)
    hidden_BTD, _ = model.apply({"params": params}, tokens_BT, method="hidden", **inputs)
    states, targets = hidden_BTD[:, :-1], tokens_BT[:, 1:]
    B, T, D = states.shape

    def chunk(x: tuple[jax.Array, jax.Array]) -> jax.Array:
        states = keep(x[0], ROWS, None, None)
        logits = keep(model.apply({"params": params}, states, method="unembed"), ROWS, None, "tensor")
        taken = jnp.take_along_axis(logits, x[1][..., None], axis=-1)[..., 0]
        return taken - jax.nn.logsumexp(logits, axis=-1)

    length = max(1, LOGITS_AT_ONCE * devices_in_use() // (B * model.cfg.vocab_size))
    if length >= T:
        logprobs = chunk((states, targets))
    else:
        count = -(-T // length)
        pad = count * length - T
        states = jnp.pad(states, ((0, 0), (0, pad), (0, 0)))
        targets = jnp.pad(targets, ((0, 0), (0, pad)))
        states = states.reshape(B, count, length, D).swapaxes(0, 1)
        targets = targets.reshape(B, count, length).swapaxes(0, 1)
        chunks = jax.lax.map(jax.checkpoint(chunk), (states, targets))
        logprobs = chunks.swapaxes(0, 1).reshape(B, count * length)[:, :T]
    return jnp.pad(logprobs, ((0, 0), (1, 0)))


def sequence_logprobs(
    model: Llama, params: Params, tokens_BT: jax.Array, target_BT: jax.Array, **inputs: Any
) -> jax.Array:
    """Sum of the log-probs of the target tokens of each row, float32 [B].

    A sum, not a mean: it is the log-probability of the response (DPO, arXiv 2305.18290, eq. 7).

    Args:
      model, params: the model.
      tokens_BT: token ids, prompt and response.
      target_BT: 1 or True where a token belongs to the response.
      **inputs: as in `token_logprobs`.
    """
    return jnp.sum(token_logprobs(model, params, tokens_BT, **inputs) * target_BT, axis=-1)


def sft_loss(
    model: Llama,
    params: Params,
    tokens_BT: jax.Array,
    target_BT: jax.Array,
    total: jax.Array | None = None,
    **inputs: Any,
) -> jax.Array:
    """Mean negative log-prob of the target tokens (nats per token), a float32 scalar.

    Args:
      model, params: the model.
      tokens_BT: token ids.
      target_BT: 1 or True where a token carries loss.
      total: what to divide by; the number of targets if not given. A microbatch passes the targets of its
        whole batch, so that microbatches add up to the batch's loss.
      **inputs: as in `token_logprobs`.
    """
    total = jnp.sum(target_BT) if total is None else total
    return -jnp.sum(sequence_logprobs(model, params, tokens_BT, target_BT, **inputs)) / total

"""Log-probabilities and losses. Letters as in llm/llama.py."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from selfreward_jax.llm.attention import KVSegment, window_mask
from selfreward_jax.llm.llama import Llama, Params
from selfreward_jax.parallel.sharding import BATCH_AXES, devices_in_use

# Most float32 logits that a device holds at once; longer sequences are taken in chunks of T, recomputed going back.
MAX_LOGITS = 1 << 25


def token_logprobs(model: Llama, params: Params, tokens_BT: jax.Array, **inputs: Any) -> jax.Array:
    """log p(tokens[b, t] | tokens[b, :t]) as float32 [B, T]; column 0, which nothing predicts, is 0.

    Args:
      model, params: the model.
      tokens_BT: token ids.
      **inputs: positions_BT, segments_BT and key, as in `Llama.hidden`.
    """
    params = _cast(model, params)
    hidden_BTD, _ = model.apply({"params": params}, tokens_BT, method="hidden_states", **inputs)
    return jnp.pad(_predicted(model, params, hidden_BTD[:, :-1], tokens_BT[:, 1:]), ((0, 0), (1, 0)))


def token_logprobs_and_greedy(model: Llama, params: Params, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`token_logprobs`, and whether each token is the one with the highest logit, [B, T]; True in column 0."""
    params = _cast(model, params)
    hidden_BTD, _ = model.apply({"params": params}, tokens_BT, method="hidden_states")
    logprobs, greedy = _predicted(model, params, hidden_BTD[:, :-1], tokens_BT[:, 1:], greedy=True)
    first = ((0, 0), (1, 0))
    return jnp.pad(logprobs, first), jnp.pad(greedy, first, constant_values=True)


def prefix_shared_logprobs(
    model: Llama,
    params: Params,
    prompt_PS: jax.Array,
    lengths_P: jax.Array,
    tokens_BT: jax.Array,
    key: jax.Array | None = None,
) -> jax.Array:
    """log p(tokens[b, t] | prompt of b, tokens[b, :t]) as float32 [B, T]. Each prompt is read once for the B / P
    consecutive rows that go on from it, and the head sees no other positions than those that predict these.

    Args:
      model, params: the model.
      prompt_PS: token ids, padded on the right.
      lengths_P: of the prompts, at least 1.
      tokens_BT: what follows, padded on the right.
      key: dropout key; None switches dropout off.
    """
    params, (P, S), (B, T) = _cast(model, params), prompt_PS.shape, tokens_BT.shape
    prompt_key, key = (None, None) if key is None else jax.random.split(key)
    last_P1D, kv = model.apply(
        {"params": params}, prompt_PS, last_index_B=lengths_P - 1, method="hidden_states", key=prompt_key
    )
    of_row = lambda x: jnp.repeat(x, B // P, axis=0)  # noqa: E731
    positions_BT = of_row(lengths_P)[:, None] + jnp.arange(T)
    slots_1S = jnp.arange(S)[None]
    mask = (slots_1S < lengths_P[:, None])[:, None]
    if model.cfg.sliding_window is not None:
        mask = of_row(mask) & window_mask(model.cfg.sliding_window, positions_BT, slots_1S)
    hidden_BTD, _ = model.apply(
        {"params": params},
        tokens_BT,
        positions_BT=positions_BT,
        past=[KVSegment(*kv, mask)],
        method="hidden_states",
        key=key,
    )
    states = jnp.concatenate([of_row(last_P1D), hidden_BTD[:, :-1]], axis=1)
    return _predicted(model, params, states, tokens_BT)


def _cast(model: Llama, params: Params) -> Params:
    """Before use, so that what devices gather of a weight is no wider than what they compute with."""
    return jax.tree.map(lambda x: x.astype(model.cfg.dtype), params)


def _predicted(model: Llama, params: Params, states_BTD: jax.Array, targets_BT: jax.Array, greedy: bool = False) -> Any:
    """log p(target | state) [B, T], float32; with `greedy` also whether the target has the highest logit [B, T]."""
    given = model.apply({"params": params}, method="lm_head"), states_BTD, targets_BT
    if devices_in_use() == 1:
        return _of_targets(*given, greedy=greedy)
    # By hand over the mesh: left alone, XLA adds up the whole matrix's gradient over all devices for each chunk of
    # tokens, and not once in the end.
    split = (PartitionSpec(None, "tensor"), PartitionSpec(BATCH_AXES), PartitionSpec(BATCH_AXES))
    of_device = partial(_of_targets, axis="tensor", greedy=greedy)
    return jax.shard_map(of_device, in_specs=split, out_specs=PartitionSpec(BATCH_AXES))(*given)


def _of_targets(
    head_DV: jax.Array, states_BTD: jax.Array, targets_BT: jax.Array, axis: str | None = None, greedy: bool = False
) -> Any:
    """As `_predicted`; the vocabulary is split over the mesh axis `axis`, if it is given."""
    B, T, D = states_BTD.shape
    V = head_DV.shape[1]  # of this device
    first = 0 if axis is None else jax.lax.axis_index(axis) * V
    over_all = lambda x: x if axis is None else jax.lax.psum(x, axis)  # noqa: E731

    def chunk(x: tuple[jax.Array, jax.Array]) -> Any:
        logits = jnp.matmul(x[0], head_DV, preferred_element_type=jnp.float32)
        top = jax.lax.stop_gradient(logits.max(-1))
        top = top if axis is None else jax.lax.pmax(top, axis)
        total = over_all(jnp.exp(logits - top[..., None]).sum(-1))
        target = x[1] - first
        taken = jnp.take_along_axis(logits, jnp.clip(target, 0, V - 1)[..., None], axis=-1)[..., 0]
        taken = over_all(jnp.where((target >= 0) & (target < V), taken, 0.0))
        logprobs = taken - (top + jnp.log(total))
        return (logprobs, taken >= top) if greedy else logprobs

    length = max(1, MAX_LOGITS // (B * V))
    if length >= T:
        return chunk((states_BTD, targets_BT))
    count = -(-T // length)
    pad = count * length - T
    states = jnp.pad(states_BTD, ((0, 0), (0, pad), (0, 0))).reshape(B, count, length, D).swapaxes(0, 1)
    targets = jnp.pad(targets_BT, ((0, 0), (0, pad))).reshape(B, count, length).swapaxes(0, 1)
    chunks = jax.lax.map(jax.checkpoint(chunk), (states, targets))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, count * length)[:, :T], chunks)


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

"""Log-probs of tokens and the SFT loss. Dimension letters as in llm/decoder.py."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from selfreward_jax.llm.attention import KVSegment
from selfreward_jax.llm.chat import Example
from selfreward_jax.llm.decoder import Decoder, logits_of
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params
from selfreward_jax.parallel.arrays import fetch, put
from selfreward_jax.parallel.sharding import BATCH_AXES, batch_divisor, batch_sharding, devices_in_use, round_up
from selfreward_jax.train.batches import padded_batch

# The most float32 logits that a device holds at once. Longer sequences are split into chunks of T; the backward pass
# recomputes the logits of each chunk.
MAX_LOGITS = 1 << 25
LENGTH_STEP = 64  # lengths of single texts are rounded up to a multiple of it, so that few programs are compiled


def token_logprobs(model: Decoder, params: Params, tokens_BT: jax.Array, **inputs: Any) -> jax.Array:
    """log p(tokens[b, t] | tokens[b, :t]), float32 [B, T]; column 0, which has no prediction, is 0.

    Args:
      model, params: the model.
      tokens_BT: token ids.
      **inputs: positions_BT, segment_ids_BT and key, as in `Decoder.hidden_states`.
    """
    params = _cast(model, params)
    hidden_BTD, _ = model.apply({"params": params}, tokens_BT, method="hidden_states", **inputs)
    return jnp.pad(_next_token_logprobs(model, params, hidden_BTD[:, :-1], tokens_BT[:, 1:]), ((0, 0), (1, 0)))


def logprobs_at(model: Decoder, params: Params, tokens_BT: jax.Array, slots_BS: jax.Array, **inputs: Any) -> jax.Array:
    """`token_logprobs` at the slots of each row, float32 [B, S]: no others need logits. At slot 0 it is of no use."""
    params = _cast(model, params)
    hidden_BTD, _ = model.apply({"params": params}, tokens_BT, method="hidden_states", **inputs)
    before_BS = jnp.maximum(slots_BS - 1, 0)
    states_BSD = jnp.take_along_axis(hidden_BTD, before_BS[..., None], axis=1)
    return _next_token_logprobs(model, params, states_BSD, jnp.take_along_axis(tokens_BT, slots_BS, axis=1))


def token_logprobs_and_greedy(model: Decoder, params: Params, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`token_logprobs`, and whether each token is the one with the highest logit, [B, T]; True in column 0."""
    params = _cast(model, params)
    hidden_BTD, _ = model.apply({"params": params}, tokens_BT, method="hidden_states")
    logprobs, greedy = _next_token_logprobs(model, params, hidden_BTD[:, :-1], tokens_BT[:, 1:], greedy=True)
    column_0 = ((0, 0), (1, 0))
    return jnp.pad(logprobs, column_0), jnp.pad(greedy, column_0, constant_values=True)


def prefix_shared_logprobs(
    model: Decoder,
    params: Params,
    prompt_PS: jax.Array,
    lengths_P: jax.Array,
    tokens_BT: jax.Array,
    key: jax.Array | None = None,
) -> jax.Array:
    """log p(tokens[b, t] | prompt of b, tokens[b, :t]), float32 [B, T].

    Each prompt is processed once for the B / P consecutive rows that continue it. Logits are computed only at the
    positions that predict `tokens_BT`.

    Args:
      model, params: the model.
      prompt_PS: token ids, padded on the right.
      lengths_P: lengths of the prompts, at least 1.
      tokens_BT: the continuations, padded on the right.
      key: dropout key; None disables dropout.
    """
    params, (P, S), (B, T) = _cast(model, params), prompt_PS.shape, tokens_BT.shape
    prompt_key, key = (None, None) if key is None else jax.random.split(key)
    last_P1D, kv = model.apply(
        {"params": params}, prompt_PS, last_index_B=lengths_P - 1, method="hidden_states", key=prompt_key
    )
    per_row = lambda x: jnp.repeat(x, B // P, axis=0)  # noqa: E731
    positions_BT = per_row(lengths_P)[:, None] + jnp.arange(T)
    slots_1S = jnp.arange(S)[None]
    mask = (slots_1S < lengths_P[:, None])[:, None]
    hidden_BTD, _ = model.apply(
        {"params": params},
        tokens_BT,
        positions_BT=positions_BT,
        past=[KVSegment(*kv, mask, slots_1S)],
        method="hidden_states",
        key=key,
    )
    states = jnp.concatenate([per_row(last_P1D), hidden_BTD[:, :-1]], axis=1)
    return _next_token_logprobs(model, params, states, tokens_BT)


def _cast(model: Decoder, params: Params) -> Params:
    """Casts before use, so that devices gather weights in the compute dtype."""
    return jax.tree.map(lambda x: x.astype(model.cfg.dtype), params)


def _next_token_logprobs(
    model: Decoder, params: Params, states_BTD: jax.Array, targets_BT: jax.Array, greedy: bool = False
) -> Any:
    """log p(target | state) [B, T], float32; with `greedy` also whether the target has the highest logit [B, T]."""
    inputs = model.apply({"params": params}, method="lm_head"), states_BTD, targets_BT
    if devices_in_use() == 1:
        return _target_logprobs(model.cfg, *inputs, greedy=greedy)
    # With shard_map: otherwise XLA sums the gradient of the full matrix over all devices for each chunk of tokens, and
    # not once at the end.
    in_specs = (PartitionSpec(None, "tensor"), PartitionSpec(BATCH_AXES), PartitionSpec(BATCH_AXES))
    local_logprobs = partial(_target_logprobs, model.cfg, axis="tensor", greedy=greedy)
    return jax.shard_map(local_logprobs, in_specs=in_specs, out_specs=PartitionSpec(BATCH_AXES))(*inputs)


def _target_logprobs(
    cfg: DecoderConfig,
    head_DV: jax.Array,
    states_BTD: jax.Array,
    targets_BT: jax.Array,
    axis: str | None = None,
    greedy: bool = False,
) -> Any:
    """As `_next_token_logprobs`. If `axis` is given, the vocabulary is sharded over this mesh axis."""
    B, T, D = states_BTD.shape
    V = head_DV.shape[1]  # on this device
    first_id = 0 if axis is None else jax.lax.axis_index(axis) * V
    sum_shards = lambda x: x if axis is None else jax.lax.psum(x, axis)  # noqa: E731

    def chunk(x: tuple[jax.Array, jax.Array]) -> Any:
        logits = logits_of(cfg, x[0], head_DV)
        top = jax.lax.stop_gradient(logits.max(-1))
        top = top if axis is None else jax.lax.pmax(top, axis)
        total = sum_shards(jnp.exp(logits - top[..., None]).sum(-1))
        target = x[1] - first_id
        target_logits = jnp.take_along_axis(logits, jnp.clip(target, 0, V - 1)[..., None], axis=-1)[..., 0]
        target_logits = sum_shards(jnp.where((target >= 0) & (target < V), target_logits, 0.0))
        logprobs = target_logits - (top + jnp.log(total))
        return (logprobs, target_logits >= top) if greedy else logprobs

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
    model: Decoder, params: Params, tokens_BT: jax.Array, target_BT: jax.Array, **inputs: Any
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


def example_logprobs(
    cfg: DecoderConfig, params: Params, examples: Sequence[Example], mesh: Mesh, batch_size: int = 8
) -> np.ndarray:
    """Sum of the log-probs of the target tokens of each text, float32 [examples].

    Each text is padded for its own length, and every batch has the same number of rows. So the result for a text does
    not depend on the others.

    Args:
      cfg, params: the model; its parameters are sharded for training.
      examples: the texts.
      mesh: the training mesh.
      batch_size: texts in one forward pass; rounded up to what the mesh divides.
    """
    rows = round_up(batch_size, batch_divisor(mesh))
    lengths = [round_up(len(e.ids), LENGTH_STEP) for e in examples]
    sums = np.zeros(len(examples), np.float32)
    for length in sorted(set(lengths)):
        same_length = [i for i, n in enumerate(lengths) if n == length]
        for start in range(0, len(same_length), rows):
            members = same_length[start : start + rows]
            texts = [examples[i] for i in members] + [Example([], [])] * (rows - len(members))
            batch = padded_batch(texts, length)
            tokens_BT, target_BT = (put(batch[name], batch_sharding(mesh, 2)) for name in ("tokens", "target"))
            with jax.set_mesh(mesh):
                sums[members] = fetch(_sequence_logprobs(cfg, params, tokens_BT, target_BT))[: len(members)]
    return sums


@partial(jax.jit, static_argnames="cfg")
def _sequence_logprobs(cfg: DecoderConfig, params: Params, tokens_BT: jax.Array, target_BT: jax.Array) -> jax.Array:
    return sequence_logprobs(Decoder(cfg), params, tokens_BT, target_BT)


def token_logits(cfg: DecoderConfig, params: Params, tokens_BT: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Logits of the next token at each position, float32 [B, T, V], on the host.

    Args:
      cfg, params: the model; its parameters are sharded for training.
      tokens_BT: token ids, int32. B need not be divisible by the mesh.
      mesh: the training mesh.
    """
    B = len(tokens_BT)
    padded_BT = np.pad(tokens_BT, ((0, round_up(B, batch_divisor(mesh)) - B), (0, 0)))
    with jax.set_mesh(mesh):
        return fetch(_logits(cfg, params, put(padded_BT, batch_sharding(mesh, 2))))[:B]


@partial(jax.jit, static_argnames="cfg")
def _logits(cfg: DecoderConfig, params: Params, tokens_BT: jax.Array) -> jax.Array:
    return Decoder(cfg).apply({"params": params}, tokens_BT)


def sft_loss(
    model: Decoder,
    params: Params,
    tokens_BT: jax.Array,
    target_BT: jax.Array,
    total: jax.Array | None = None,
    slots_BS: jax.Array | None = None,
    **inputs: Any,
) -> jax.Array:
    """Mean negative log-prob of the target tokens (nats per token), a float32 scalar.

    Args:
      model, params: the model.
      tokens_BT: token ids.
      target_BT: 1 or True where a token carries loss.
      total: the divisor; by default the number of targets. A microbatch passes the number of targets of the full
        batch, so that the losses of microbatches sum to the loss of the batch.
      slots_BS: the slots of the targets, padded with 0: logits are computed there alone. By default everywhere.
      **inputs: as in `token_logprobs`.
    """
    total = jnp.sum(target_BT) if total is None else total
    if slots_BS is None:
        return -jnp.sum(sequence_logprobs(model, params, tokens_BT, target_BT, **inputs)) / total
    weights_BS = jnp.take_along_axis(target_BT.at[:, 0].set(0), slots_BS, axis=1)
    return -jnp.sum(logprobs_at(model, params, tokens_BT, slots_BS, **inputs) * weights_BS) / total

"""The jitted sampler: it prefills prompts and draws their samples in slots, which are refilled as they become free.

There are P prompt slots, each with G rows, one for each sample: B = P * G rows. The keys and values that the rows
attend to, for P = 2, G = 2, a prefix of 3 tokens that all prompts share, S = 5 more tokens of each prompt, and W = 4
new tokens:

    prefix, one row for all     prompts, one row for each slot     own cache, one row for each sample
      r r r                       p0  a b c . .                      p0 s0   x x x .
                                  p1  d e f g .                      p0 s1   x x x .
        '.' is padding                                               p1 s0   x . . .   <- inserted later
                                                                     p1 s1   x . . .

A prompt is prefilled once for all of its samples, and the prefix once for all prompts. Each row writes to the cache
column of its own length. Random numbers depend only on the sample's own key and the token's position. So a sample does
not depend on the other rows of the batch, or on when it was inserted.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from selfreward_jax.llm.attention import KVSegment
from selfreward_jax.llm.decoder import Decoder, unstack_layers
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params
from selfreward_jax.parallel.sharding import BATCH_AXES, constrain
from selfreward_jax.sampling.top_p import sample_token

# Keys and values of all layers, in the form that `Decoder.hidden_states` returns.
Cache = tuple[Any, Any]


class Samples(NamedTuple):
    """tokens [B, W] (after the stop id: zeros), their log-probs under the model itself [B, W] (temperature 1,
    no top-p; zero after the stop id), and lengths [B], counting the stop id."""

    tokens: jax.Array
    logprobs: jax.Array
    lengths: jax.Array


class Slots(NamedTuple):
    """The state that decoding reads and writes; its buffers are donated from call to call.

    cache: keys and values of the new tokens, a row for each sample.
    prompt: keys and values of each slot's prompt, without the prefix.
    lengths_P: tokens of these prompts.
    keys_B2: the data of a random key for each sample.
    done_B: whether a row's sample has ended, or the row is still empty.
    """

    cache: Cache
    prompt: KVSegment
    lengths_P: jax.Array
    keys_B2: jax.Array
    samples: Samples
    done_B: jax.Array


class DrawParams(NamedTuple):
    """Temperature (0 is greedy; otherwise applied before top-p, as in Hugging Face and vLLM) and top_p in (0, 1].

    With top_p 1 every token can be drawn. Both are traced values: a new value needs no new program.
    """

    temperature: Any
    top_p: Any


@partial(jax.jit, static_argnames=("cfg", "num_slots", "num_samples", "prompt_len", "max_new_tokens"))
def init_slots(cfg: DecoderConfig, num_slots: int, num_samples: int, prompt_len: int, max_new_tokens: int) -> Slots:
    """Empty slots for `num_slots` prompts of at most `prompt_len` tokens.

    Each slot has `num_samples` rows of at most `max_new_tokens` new tokens.
    """
    P, B, W = num_slots, num_slots * num_samples, max_new_tokens
    ids = jnp.zeros((B, W), jnp.int32)
    prompt = KVSegment(*_init_cache(cfg, P, prompt_len), jnp.ones((P, 1, prompt_len), bool))
    samples = Samples(ids, ids.astype(jnp.float32), jnp.ones(B, jnp.int32))
    key_data = jax.random.key_data(jax.random.split(jax.random.key(0), B))
    done = jnp.ones(B, bool)
    return constrain_all(Slots(_init_cache(cfg, B, W), prompt, jnp.ones(P, jnp.int32), key_data, samples, done))


def _init_cache(cfg: DecoderConfig, rows: int, length: int) -> Cache:
    """Keys [rows, K, H, length] and values [rows, K, length, H] of every layer, all zero."""
    K, H = cfg.num_kv_heads, cfg.head_dim

    def layers(*shape: int) -> Any:
        if cfg.scan_layers:
            return jnp.zeros((cfg.num_layers, *shape), cfg.dtype)
        return tuple(jnp.zeros(shape, cfg.dtype) for _ in range(cfg.num_layers))

    return layers(rows, K, H, length), layers(rows, K, length, H)


def constrain_all(tree: Any) -> Any:
    """Shards the rows of all arrays, and also the heads of keys and values, over the mesh."""
    return jax.tree.map(lambda x: constrain(x, *partition_spec(x.ndim)), tree)


def partition_spec(ndim: int) -> PartitionSpec:
    """The sharding of an array of the sampler, by its number of dimensions.

    4: keys or values. 5: keys or values with the layers stacked in the first axis. Fewer: an array with rows first.
    """
    if ndim < 4:
        return PartitionSpec(BATCH_AXES, *(None,) * (ndim - 1))
    return PartitionSpec(*(None,) * (ndim - 4), BATCH_AXES, "tensor", None, None)


@partial(jax.jit, static_argnames="cfg")
def read_prefix(cfg: DecoderConfig, params: Params, tokens_S: jax.Array) -> KVSegment:
    """Keys and values of a prefix that prompts share: one row, sharded over heads and otherwise replicated."""
    _, kv = Decoder(cfg).apply({"params": params}, tokens_S[None], method="hidden_states")
    k, v = jax.tree.map(lambda x: constrain(x, *(None,) * (x.ndim - 3), "tensor", None, None), kv)
    return KVSegment(k, v, jnp.ones((1, 1, tokens_S.shape[0]), bool), _arange_1S(tokens_S.shape[0]))


def _arange_1S(length: int) -> jax.Array:
    return jnp.arange(length)[None]


@partial(jax.jit, static_argnames="cfg")
def prefill(
    cfg: DecoderConfig, params: Params, tokens_RS: jax.Array, lengths_R: jax.Array, prefix: KVSegment | None = None
) -> tuple[jax.Array, KVSegment]:
    """Prefills R prompts, padded on the right; with a prefix, the rest of each prompt after it.

    Returns the logits [R, V] of the token after each prompt, and the prompts' keys and values.
    """
    model, (R, S) = Decoder(cfg), tokens_RS.shape
    positions_1S = _arange_1S(S) + (0 if prefix is None else prefix.mask.shape[-1])
    hidden, kv = model.apply(
        {"params": params},
        tokens_RS,
        positions_BT=jnp.broadcast_to(positions_1S, (R, S)),
        past=[] if prefix is None else [prefix],
        last_index_B=lengths_R - 1,
        method="hidden_states",
    )
    mask = jnp.arange(S)[None, None, :] < lengths_R[:, None, None]
    return model.apply({"params": params}, hidden[:, 0], method="unembed"), KVSegment(*constrain_all(kv), mask)


@partial(jax.jit, static_argnames="stop_ids", donate_argnames="slots")
def insert(
    slots: Slots,
    slot_index_R: jax.Array,
    logits_RV: jax.Array,
    prompt: KVSegment,
    lengths_R: jax.Array,
    keys_R: jax.Array,
    draw: DrawParams,
    *,
    stop_ids: tuple[int, ...],
) -> Slots:
    """Inserts R prompts into slots, and draws the first token of each of their samples.

    Args:
      slots: the state. The samples of the slots in `slot_index_R` have ended.
      slot_index_R: slot indices below P, each at most once; P for a row that only fills the batch.
      logits_RV, prompt: the results of `prefill`.
      lengths_R: of the prompts, without the prefix.
      keys_R: the data of G keys for each prompt, [R, G, 2].
      draw: temperature and top-p.
      stop_ids: ids that end a sample.
    """
    G, W = keys_R.shape[1], slots.samples.tokens.shape[1]
    rows = (slot_index_R[:, None] * G + jnp.arange(G)).reshape(-1)
    keys = keys_R.reshape(rows.shape[0], -1)
    first, logprob = _draw(jnp.repeat(logits_RV, G, axis=0), keys, jnp.zeros_like(rows), draw)
    pad_to_W = lambda x: jnp.pad(x[:, None], ((0, 0), (0, W - 1)))  # noqa: E731
    samples = Samples(pad_to_W(first), pad_to_W(logprob), jnp.ones_like(rows))

    def put(old: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
        target = old.at[:, index] if old.ndim == 5 else old.at[index]
        return target.set(new, mode="drop", unique_indices=True)

    put_rows, put_slots = (partial(jax.tree.map, partial(put, index=index)) for index in (rows, slot_index_R))
    return constrain_all(
        Slots(
            cache=slots.cache,
            prompt=put_slots(slots.prompt, prompt),
            lengths_P=put_slots(slots.lengths_P, lengths_R),
            keys_B2=put_rows(slots.keys_B2, keys),
            samples=put_rows(slots.samples, samples),
            done_B=put_rows(slots.done_B, _is_done(first, jnp.ones_like(rows), W, stop_ids)),
        )
    )


@partial(jax.jit, static_argnames=("cfg", "stop_ids"), donate_argnames="slots")
def decode(
    cfg: DecoderConfig,
    params: Params,
    slots: Slots,
    prefix: KVSegment | None,
    draw: DrawParams,
    min_free: jax.Array,
    *,
    stop_ids: tuple[int, ...],
) -> Slots:
    """Decodes until at least `min_free` slots are free: empty, or with all samples ended.

    Args:
      cfg, params: the model.
      slots: the state, from `insert`.
      prefix: from `read_prefix`, the same as in `prefill`; its length is part of every position.
      draw: temperature and top-p.
      min_free: at most P.
      stop_ids: ids that end a sample.
    """
    model = Decoder(cfg)
    B, W = slots.samples.tokens.shape
    P = slots.lengths_P.shape[0]
    prefix_len = 0 if prefix is None else prefix.mask.shape[-1]
    first_position_B1 = prefix_len + jnp.repeat(slots.lengths_P, B // P)[:, None]
    own_positions_BW = first_position_B1 + _arange_1S(W)
    prompt = slots.prompt._replace(positions=prefix_len + _arange_1S(slots.prompt.mask.shape[-1]))
    layers = None if cfg.scan_layers else unstack_layers(cfg, params["layers"])

    def step(state: tuple[Cache, Samples, jax.Array]) -> tuple[Cache, Samples, jax.Array]:
        cache, samples, done_B = state
        # The input is each row's last token. Its keys and values go to the cache column of the token's index.
        last_B = samples.lengths - 1
        last_B1 = last_B[:, None]
        own = KVSegment(*cache, (_arange_1S(W) < last_B1)[:, None], own_positions_BW)
        past = [prompt, own] if prefix is None else [prefix, prompt, own]
        positions_B1 = first_position_B1 + last_B1
        token_B1 = jnp.take_along_axis(samples.tokens, last_B1, axis=1)
        hidden, (k, v) = model.apply(
            {"params": params}, token_B1, positions_BT=positions_B1, past=past, layers=layers, method="hidden_states"
        )
        # This equals `last_B`. Its dependence on a value read from the cache lets XLA write in place, without a copy.
        column_B = jnp.minimum(last_B, jnp.where(jnp.isinf(hidden[:, 0, 0]), W, W - 1))
        cache = constrain_all(
            (update_cache(cache[0], k, column_B, axis=-1), update_cache(cache[1], v, column_B, axis=-2))
        )
        logits_BV = model.apply({"params": params}, hidden[:, 0], method="unembed")
        token_B, logprob_B = _draw(logits_BV, slots.keys_B2, samples.lengths, draw)
        return (
            cache,
            _append(samples, token_B, logprob_B, ~done_B),
            done_B | _is_done(token_B, samples.lengths + 1, W, stop_ids),
        )

    def too_few_free(state: tuple[Cache, Samples, jax.Array]) -> jax.Array:
        return state[2].reshape(P, -1).all(1).sum() < min_free

    cache, samples, done_B = jax.lax.while_loop(too_few_free, step, (slots.cache, slots.samples, slots.done_B))
    return slots._replace(cache=cache, samples=samples, done_B=done_B)


def _draw(
    logits_BV: jax.Array, keys_B2: jax.Array, position_B: jax.Array, draw: DrawParams
) -> tuple[jax.Array, jax.Array]:
    """Tokens [B], and their log-probs under the model itself (temperature 1, no top-p)."""
    keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys_B2), position_B)
    token_B = sample_token(logits_BV, keys_B, draw.temperature, draw.top_p)
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
    return token_B, chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def _is_done(token_B: jax.Array, lengths_B: jax.Array, max_new_tokens: int, stop_ids: tuple[int, ...]) -> jax.Array:
    stops = jnp.asarray(stop_ids, jnp.int32)
    return (token_B[:, None] == stops).any(1) | (lengths_B == max_new_tokens)


def _append(samples: Samples, token_B: jax.Array, logprob_B: jax.Array, active_B: jax.Array) -> Samples:
    """The samples with one more token in the active rows."""
    index_B = jnp.where(active_B, samples.lengths, samples.tokens.shape[1])  # out of range: nothing is written
    put = lambda row, index, x: row.at[index].set(x, mode="drop")  # noqa: E731
    return Samples(
        jax.vmap(put)(samples.tokens, index_B, token_B),
        jax.vmap(put)(samples.logprobs, index_B, logprob_B),
        samples.lengths + active_B,
    )


def update_cache(cache: Any, new: Any, index_B: jax.Array, axis: int) -> Any:
    """Keys or values with `new`, one token for each row, written at `index_B` of `axis` (negative: from the end)."""

    def update(old: jax.Array, x: jax.Array) -> jax.Array:
        update_row = partial(jax.lax.dynamic_update_slice_in_dim, axis=old.ndim - 1 + axis)
        return jax.vmap(update_row, in_axes=(old.ndim - 4, old.ndim - 4, 0), out_axes=old.ndim - 4)(old, x, index_B)

    return jax.tree.map(update, cache, new)

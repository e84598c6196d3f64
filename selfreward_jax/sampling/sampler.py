"""The jitted sampler: it prefills prompts and draws their samples in slots, which are refilled one by one.

There are B slots, each with one sample. The keys and values that they attend to, for B = 4, a prefix of 3 tokens that
all prompts share, S = 5 more tokens of each prompt, and W = 4 new tokens:

    prefix, one row for all     prompts, one row for each slot     own cache, one row for each slot
      r r r                       a b c . .                          x x x .   prompt 0, sample 1
                                  d e f g .                          x . . .   prompt 1, sample 0, inserted later
        '.' is padding            a b c . .                          x x x x   prompt 0, sample 0
                                  d e f g .                          x x . .   prompt 1, sample 1

A prompt is prefilled once for all of its samples, and the prefix once for all prompts. A slot is free as soon as its
own sample has ended. Each slot writes to the cache column of its own length. Random numbers depend only on the sample's
own key and the token's position. So a sample does not depend on the other slots, or on when it was inserted.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from selfreward_jax.llm.attention import KVSegment
from selfreward_jax.llm.decoder import Decoder, unstack_layers
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params
from selfreward_jax.parallel.sharding import BATCH_AXES, constrain, free_axes
from selfreward_jax.sampling.kv_cache import (
    Cache,
    as_segment,
    from_segment,
    init_cache,
    prompt_layout,
    token_layout,
    write,
)
from selfreward_jax.sampling.top_p import sample_token


class Samples(NamedTuple):
    """tokens [B, W] (after the stop id: zeros), their log-probs under the model itself [B, W] (temperature 1,
    no top-p; zero after the stop id), and lengths [B], counting the stop id."""

    tokens: jax.Array
    logprobs: jax.Array
    lengths: jax.Array


class Slots(NamedTuple):
    """The state that decoding reads and writes; its buffers are donated from call to call.

    cache: keys and values of the new tokens (kv_cache.py).
    prompt: keys and values of the prompts, without the prefix.
    lengths_B: tokens of these prompts.
    keys_B2: the data of a random key for each sample.
    samples: what is drawn.
    done_B: whether a slot is free: its sample has ended, or it never had one.
    steps_B: tokens that were decoded while the slot existed, whether it was free or not.
    """

    cache: Cache
    prompt: KVSegment
    lengths_B: jax.Array
    keys_B2: jax.Array
    samples: Samples
    done_B: jax.Array
    steps_B: jax.Array


class DrawParams(NamedTuple):
    """Temperature (0 is greedy; otherwise applied before top-p, as in Hugging Face and vLLM) and top_p in (0, 1].

    With top_p 1 every token can be drawn. Both are traced values: a new value needs no new program.
    """

    temperature: Any
    top_p: Any


@partial(jax.jit, static_argnames=("cfg", "num_slots", "prompt_len", "max_new_tokens"))
def init_slots(cfg: DecoderConfig, num_slots: int, prompt_len: int, max_new_tokens: int) -> Slots:
    """`num_slots` free slots for prompts of at most `prompt_len` tokens and `max_new_tokens` new ones."""
    B, W = num_slots, max_new_tokens
    ids, ones = jnp.zeros((B, W), jnp.int32), jnp.ones(B, jnp.int32)
    prompt = KVSegment(*init_cache(cfg, B, prompt_len, prompt_layout(cfg)), jnp.ones((B, 1, prompt_len), bool))
    samples = Samples(ids, ids.astype(jnp.float32), ones)
    key_data = jax.random.key_data(jax.random.split(jax.random.key(0), B))
    cache = init_cache(cfg, B, W, token_layout(cfg))
    return constrain_all(Slots(cache, prompt, ones, key_data, samples, ones.astype(bool), jnp.zeros_like(ones)))


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


def sampling_config(cfg: DecoderConfig, platform: str) -> DecoderConfig:
    """The model's configuration for sampling on devices of a platform.

    A GPU gets a program of all layers, also where training scans them: an H100 took 8.5 instead of 20.6 ms for a token
    of an 8B model. It compiles in seconds, where a training step would take minutes.
    """
    return dataclasses.replace(cfg, scan_layers=False) if platform == "gpu" else cfg


def unstack_params(cfg: DecoderConfig, params: Params) -> Params:
    """Parameters in the form that decodes fastest: each layer's weights on their own, unless layers are scanned.

    The functions below take both forms. Weights are taken out of `params`, one by one: so the memory never holds two
    copies of all of them, if nothing else refers to them.
    """
    if cfg.scan_layers or not isinstance(params["layers"], dict):
        return params
    stacked, layers = params["layers"], [{} for _ in range(cfg.num_layers)]
    for name in list(stacked):
        for layer, weight in zip(layers, _split(stacked.pop(name), cfg.num_layers), strict=True):
            layer[name] = weight
    return {**params, "layers": layers}


def _split(stack: jax.Array, num_layers: int) -> list[jax.Array]:
    return jax.block_until_ready(_split_fn(stack.sharding, num_layers)(stack))


@cache
def _split_fn(sharding: Sharding, num_layers: int) -> Any:
    """The jitted function that splits one stack, and keeps how it is sharded."""
    split = lambda x: [part[0] for part in jax.lax.split(x, [1] * num_layers)]  # noqa: E731
    return jax.jit(split, out_shardings=[without_layer_axis(sharding)] * num_layers)


def without_layer_axis(sharding: Sharding) -> Sharding:
    """The sharding of one layer of a stack with this sharding."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


class _Model(NamedTuple):
    """A decoder with its parameters, applied method by method."""

    decoder: Decoder
    variables: Params
    layers: Sequence[dict[str, jax.Array]] | None

    def hidden_states(self, tokens_BT: jax.Array, **inputs: Any) -> tuple[jax.Array, Cache]:
        return self.decoder.apply(self.variables, tokens_BT, layers=self.layers, method="hidden_states", **inputs)

    def unembed(self, x_BD: jax.Array) -> jax.Array:
        return self.decoder.apply(self.variables, x_BD, method="unembed")


def _model(cfg: DecoderConfig, params: Params) -> _Model:
    """Where layers are not scanned, they are unstacked before any loop."""
    if cfg.scan_layers:
        return _Model(Decoder(cfg), {"params": params}, None)
    layers = params["layers"]
    layers = unstack_layers(cfg, layers) if isinstance(layers, dict) else layers
    return _Model(Decoder(cfg, False), {"params": {n: w for n, w in params.items() if n != "layers"}}, layers)


@partial(jax.jit, static_argnames="cfg")
def read_prefix(cfg: DecoderConfig, params: Params, tokens_S: jax.Array) -> KVSegment:
    """Keys and values of a prefix that prompts share: one row, sharded over heads and otherwise replicated."""
    _, kv = _model(cfg, params).hidden_states(tokens_S[None])
    k, v = jax.tree.map(lambda x: constrain(x, *(None,) * (x.ndim - 3), "tensor", None, None), kv)
    return KVSegment(k, v, jnp.ones((1, 1, tokens_S.shape[0]), bool), _arange_1S(tokens_S.shape[0]))


def _arange_1S(length: int) -> jax.Array:
    return jnp.arange(length)[None]


@partial(jax.jit, static_argnames="cfg")
def prefill(
    cfg: DecoderConfig, params: Params, tokens_RS: jax.Array, lengths_R: jax.Array, prefix: KVSegment | None = None
) -> tuple[jax.Array, KVSegment]:
    """Prefills R prompts, padded on the right; with a prefix, the rest of each prompt after it.

    Returns the logits [R, V] of the token after each prompt, and the prompts' keys and values as slots hold them.
    """
    model, (R, S) = _model(cfg, params), tokens_RS.shape
    positions_1S = _arange_1S(S) + (0 if prefix is None else prefix.mask.shape[-1])
    hidden, kv = model.hidden_states(
        tokens_RS,
        positions_BT=jnp.broadcast_to(positions_1S, (R, S)),
        past=[] if prefix is None else [prefix],
        last_index_B=lengths_R - 1,
    )
    mask = jnp.arange(S)[None, None, :] < lengths_R[:, None, None]
    kv = from_segment(kv, prompt_layout(cfg))
    return model.unembed(hidden[:, 0]), KVSegment(*constrain_all(kv), mask)


@partial(jax.jit, static_argnames="stop_ids", donate_argnames="slots")
def insert(
    slots: Slots,
    slot_index_I: jax.Array,
    prompt_index_I: jax.Array,
    logits_RV: jax.Array,
    prompt: KVSegment,
    lengths_R: jax.Array,
    keys_I2: jax.Array,
    draw: DrawParams,
    *,
    stop_ids: tuple[int, ...],
) -> Slots:
    """Inserts I samples of R prompts into free slots, and draws the first token of each.

    Args:
      slots: the state.
      slot_index_I: indices of free slots, below B and each at most once; B for an entry that only fills the batch.
      prompt_index_I: which of the R prompts each sample is of.
      logits_RV, prompt: the results of `prefill`, for prompts of at most as many tokens as the slots have room for.
      lengths_R: of the prompts, without the prefix.
      keys_I2: the data of each sample's key.
      draw: temperature and top-p.
      stop_ids: ids that end a sample.
    """
    W, ones_I = slots.samples.tokens.shape[1], jnp.ones_like(slot_index_I)
    first, logprob = _draw(logits_RV[prompt_index_I], keys_I2, jnp.zeros_like(slot_index_I), draw)
    pad_to_W = lambda x: jnp.pad(x[:, None], ((0, 0), (0, W - 1)))  # noqa: E731

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        target = old.at[:, slot_index_I] if old.ndim == 5 else old.at[slot_index_I]
        return target.set(new, mode="drop", unique_indices=True)

    def put_of_prompt(old: jax.Array, new: jax.Array) -> jax.Array:
        rows = old.ndim - 4 if old.ndim > 3 else 0
        sizes = zip(old.shape, new.shape, strict=True)
        new = jnp.pad(new, [(0, 0 if axis == rows else size - n) for axis, (size, n) in enumerate(sizes)])
        return put(old, jnp.take(new, prompt_index_I, axis=rows))

    return constrain_all(
        slots._replace(
            prompt=jax.tree.map(put_of_prompt, slots.prompt, prompt),
            lengths_B=put_of_prompt(slots.lengths_B, lengths_R),
            keys_B2=put(slots.keys_B2, keys_I2),
            samples=jax.tree.map(put, slots.samples, Samples(pad_to_W(first), pad_to_W(logprob), ones_I)),
            done_B=put(slots.done_B, _is_done(first, ones_I, W, stop_ids)),
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
    """Decodes until at least `min_free` slots are free.

    Each replica of the mesh decodes by itself, until its share of `min_free` is free: for a token nothing is sent over
    the slow network between replicas.

    Args:
      cfg, params: the model.
      slots: the state, from `insert`.
      prefix: from `read_prefix`, the same as in `prefill`; its length is part of every position.
      draw: temperature and top-p.
      min_free: at most B.
      stop_ids: ids that end a sample.
    """
    run = partial(_decode, cfg, stop_ids=stop_ids)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["replica"] == 1:
        return run(params, slots, prefix, draw, min_free)
    rows = jax.tree.map(lambda x: PartitionSpec(*(None,) * max(0, x.ndim - 4), "replica"), slots)
    everywhere = jax.tree.map(lambda _: PartitionSpec(), (params, prefix, draw, min_free))
    in_specs = (everywhere[0], rows, *everywhere[1:])
    share = -(-min_free // mesh.shape["replica"])
    run = jax.shard_map(run, in_specs=in_specs, out_specs=rows, axis_names={"replica"}, check_vma=False)
    return run(params, slots, prefix, draw, share)


def _decode(
    cfg: DecoderConfig,
    params: Params,
    slots: Slots,
    prefix: KVSegment | None,
    draw: DrawParams,
    min_free: jax.Array,
    *,
    stop_ids: tuple[int, ...],
) -> Slots:
    model = _model(cfg, params)
    W = slots.samples.tokens.shape[1]
    prefix_len = 0 if prefix is None else prefix.mask.shape[-1]
    first_position_B1 = prefix_len + slots.lengths_B[:, None]
    own_positions_BW = first_position_B1 + _arange_1S(W)
    mask, positions = slots.prompt.mask, prefix_len + _arange_1S(slots.prompt.mask.shape[-1])
    prompt = KVSegment(*as_segment((slots.prompt.k, slots.prompt.v), prompt_layout(cfg)), mask, positions)

    def step(slots: Slots) -> Slots:
        cache, samples = slots.cache, slots.samples
        # The input is each row's last token. Its keys and values go to the cache column of the token's index.
        last_B = samples.lengths - 1
        last_B1 = last_B[:, None]
        own = KVSegment(*as_segment(cache, token_layout(cfg)), (_arange_1S(W) < last_B1)[:, None], own_positions_BW)
        past = [prompt, own] if prefix is None else [prefix, prompt, own]
        positions_B1 = first_position_B1 + last_B1
        token_B1 = jnp.take_along_axis(samples.tokens, last_B1, axis=1)
        hidden, (k, v) = model.hidden_states(token_B1, positions_BT=positions_B1, past=past)
        # This equals `last_B`. Its dependence on a value read from the cache lets XLA write in place, without a copy.
        column_B = jnp.minimum(last_B, jnp.where(jnp.isinf(hidden[:, 0, 0]), W, W - 1))
        token_B, logprob_B = _draw(model.unembed(hidden[:, 0]), slots.keys_B2, samples.lengths, draw)
        return constrain_all(
            slots._replace(
                cache=write(cfg, cache, (k, v), column_B),
                samples=_append(samples, token_B, logprob_B, ~slots.done_B),
                done_B=slots.done_B | _is_done(token_B, samples.lengths + 1, W, stop_ids),
                steps_B=slots.steps_B + 1,
            )
        )

    return jax.lax.while_loop(lambda slots: slots.done_B.sum() < min_free, step, slots)


def _draw(
    logits_BV: jax.Array, keys_B2: jax.Array, position_B: jax.Array, draw: DrawParams
) -> tuple[jax.Array, jax.Array]:
    """Tokens [B], and their log-probs under the model itself (temperature 1, no top-p).

    Each device draws for rows of its own, with all of the vocabulary: the logits are exchanged once.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _draw_rows(logits_BV, keys_B2, position_B, draw)
    axes = free_axes((*BATCH_AXES, "tensor"))
    if logits_BV.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        axes = free_axes()  # too few rows: the devices of a group draw the same
    rows, names = PartitionSpec(axes), free_axes((*BATCH_AXES, "tensor"))
    # As they are outside; else the compiler would exchange weights to have the logits as they are drawn from.
    logits_BV, keys_B2, position_B = constrain(logits_BV, BATCH_AXES, "tensor"), *constrain_all((keys_B2, position_B))
    in_specs = (rows, rows, rows, DrawParams(PartitionSpec(), PartitionSpec()))
    run = jax.shard_map(_draw_rows, in_specs=in_specs, out_specs=rows, axis_names=set(names), check_vma=False)
    token_B, logprob_B = run(logits_BV, keys_B2, position_B, draw)
    return constrain(token_B, BATCH_AXES), constrain(logprob_B, BATCH_AXES)


def _draw_rows(
    logits_BV: jax.Array, keys_B2: jax.Array, position_B: jax.Array, draw: DrawParams
) -> tuple[jax.Array, jax.Array]:
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

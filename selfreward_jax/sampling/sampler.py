"""The jitted sampler: prompts are read, and their samples are drawn in slots that are filled again as they fall free.

There are P places for prompts and G slots for the samples of each, B = P * G rows. The keys and values that they look
at, for P = 2, G = 2, a beginning of 3 tokens that all prompts share, S = 5 more of each prompt, W = 4 new ones:

    prefix, one row for all     prompts, a row for each place     own, a row for each slot
      r r r                       p0  a b c . .                     p0 s0   x x x .
                                  p1  d e f g .                     p0 s1   x x x .
        '.' is padding                                              p1 s0   x . . .   <- came in later
                                                                    p1 s1   x . . .

A prompt is read once however many samples are drawn from it, and the prefix once however many prompts begin with it.
Each row writes to the slot of its own age, and random numbers depend on the sample's own key and the token's position
alone: a sample is the same in whatever company it is drawn and whenever it came in.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from selfreward_jax.llm.attention import KVSegment, window_mask
from selfreward_jax.llm.llama import Llama, LlamaConfig, Params, unstack_layers
from selfreward_jax.parallel.sharding import BATCH_AXES, constrain
from selfreward_jax.sampling.top_p import sample_token

# Keys and values of all layers, in the form in which `Llama.hidden` returns them.
Cache = tuple[Any, Any]


class Samples(NamedTuple):
    """tokens [B, W] (after the stop id: zeros), their log-probs under the model itself [B, W] (temperature 1,
    no top-p; zero after the stop id), and lengths [B], counting the stop id."""

    tokens: jax.Array
    logprobs: jax.Array
    lengths: jax.Array


class Slots(NamedTuple):
    """All that decoding reads and writes: donated from call to call.

    prompt: the rest of each prompt behind the prefix. lengths_P: of these. keys_B2: the data of a key for each sample.
    done_B: whether a row's sample has ended, or none has come in yet.
    """

    cache: Cache
    prompt: KVSegment
    lengths_P: jax.Array
    keys_B2: jax.Array
    samples: Samples
    done_B: jax.Array


class DrawParams(NamedTuple):
    """How to draw: temperature (0 decodes greedily; otherwise applied before top-p, as Hugging Face and vLLM do) and
    top_p in (0, 1] (1 keeps every token). Numbers, which programs need not be compiled for."""

    temperature: Any
    top_p: Any


@partial(jax.jit, static_argnames=("cfg", "places", "samples", "length", "width"))
def init_slots(cfg: LlamaConfig, places: int, samples: int, length: int, width: int) -> Slots:
    """`places` for prompts of at most `length` tokens, with `samples` slots each of at most `width` new ones."""
    B = places * samples
    ids = jnp.zeros((B, width), jnp.int32)
    prompt = KVSegment(*_zeros(cfg, places, length), jnp.ones((places, 1, length), bool))
    found = Samples(ids, ids.astype(jnp.float32), jnp.ones(B, jnp.int32))
    key_data = jax.random.key_data(jax.random.split(jax.random.key(0), B))
    done = jnp.ones(B, bool)
    return constrain_all(Slots(_zeros(cfg, B, width), prompt, jnp.ones(places, jnp.int32), key_data, found, done))


def _zeros(cfg: LlamaConfig, rows: int, width: int) -> Cache:
    """Keys [B, K, H, W] and values [B, K, W, H] of every layer."""
    K, H = cfg.num_kv_heads, cfg.head_dim

    def layers(*shape: int) -> Any:
        if cfg.scan_layers:
            return jnp.zeros((cfg.num_layers, *shape), cfg.dtype)
        return tuple(jnp.zeros(shape, cfg.dtype) for _ in range(cfg.num_layers))

    return layers(rows, K, H, width), layers(rows, K, width, H)


def constrain_all(tree: Any) -> Any:
    """Arrays with their rows, and keys and values with their heads too, on the devices that compute them."""
    return jax.tree.map(lambda x: constrain(x, *layout(x.ndim)), tree)


def layout(ndim: int) -> PartitionSpec:
    """How an array of `ndim` dimensions lies on the mesh: with four keys or values; with five those of all layers,
    stacked in front; else anything with rows in front."""
    if ndim < 4:
        return PartitionSpec(BATCH_AXES, *(None,) * (ndim - 1))
    return PartitionSpec(*(None,) * (ndim - 4), BATCH_AXES, "tensor", None, None)


@partial(jax.jit, static_argnames="cfg")
def read_prefix(cfg: LlamaConfig, params: Params, tokens_S: jax.Array) -> KVSegment:
    """Keys and values of a beginning that prompts share: one row, the same for all devices but for the heads."""
    _, kv = Llama(cfg).apply({"params": params}, tokens_S[None], method="hidden_states")
    k, v = jax.tree.map(lambda x: constrain(x, *(None,) * (x.ndim - 3), "tensor", None, None), kv)
    return KVSegment(k, v, jnp.ones((1, 1, tokens_S.shape[0]), bool))


def _seen(cfg: LlamaConfig, prefix: KVSegment | None, positions_BT: jax.Array) -> list[KVSegment]:
    """The prefix as queries at these positions see it; none if there is none."""
    if prefix is None or cfg.sliding_window is None:
        return [] if prefix is None else [prefix]
    return [prefix._replace(mask=window_mask(cfg.sliding_window, positions_BT, _up_to(prefix.mask.shape[-1])))]


def _up_to(length: int) -> jax.Array:
    return jnp.arange(length)[None]


@partial(jax.jit, static_argnames="cfg")
def prefill(
    cfg: LlamaConfig, params: Params, tokens_RS: jax.Array, lengths_R: jax.Array, prefix: KVSegment | None = None
) -> tuple[jax.Array, KVSegment]:
    """Reads prompts (padded on the right), or what follows the prefix in them. Returns logits [R, V] of the token after
    each, and the keys and values."""
    model, (R, S) = Llama(cfg), tokens_RS.shape
    positions_1S = _up_to(S) + (0 if prefix is None else prefix.mask.shape[-1])
    hidden, kv = model.apply(
        {"params": params},
        tokens_RS,
        positions_BT=jnp.broadcast_to(positions_1S, (R, S)),
        past=_seen(cfg, prefix, positions_1S),
        last_index_B=lengths_R - 1,
        method="hidden_states",
    )
    mask = jnp.arange(S)[None, None, :] < lengths_R[:, None, None]
    return model.apply({"params": params}, hidden[:, 0], method="unembed"), KVSegment(*constrain_all(kv), mask)


@partial(jax.jit, static_argnames="stop_ids", donate_argnames="slots")
def insert(
    slots: Slots,
    places_R: jax.Array,
    logits_RV: jax.Array,
    prompt: KVSegment,
    lengths_R: jax.Array,
    keys_R: jax.Array,
    draw: DrawParams,
    *,
    stop_ids: tuple[int, ...],
) -> Slots:
    """The slots with R prompts in the places named, and the first token of each of their samples drawn.

    Args:
      slots: of which these places' samples have ended.
      places_R: numbers below P, each once; a row that only fills the batch has P.
      logits_RV, prompt: what `prefill` returned.
      lengths_R: of the prompts, without the prefix.
      keys_R: the data of G keys for each, [R, G, 2].
      how: how to draw.
      stop_ids: ids that end a sample.
    """
    G, W = keys_R.shape[1], slots.samples.tokens.shape[1]
    rows = (places_R[:, None] * G + jnp.arange(G)).reshape(-1)
    keys = keys_R.reshape(rows.shape[0], -1)
    first, logprob = _draw(jnp.repeat(logits_RV, G, axis=0), keys, jnp.zeros_like(rows), draw)
    start = lambda x: jnp.pad(x[:, None], ((0, 0), (0, W - 1)))  # noqa: E731
    found = Samples(start(first), start(logprob), jnp.ones_like(rows))

    def put(old: jax.Array, new: jax.Array, where: jax.Array) -> jax.Array:
        at = old.at[:, where] if old.ndim == 5 else old.at[where]
        return at.set(new, mode="drop", unique_indices=True)

    by_row, by_place = (partial(jax.tree.map, partial(put, where=where)) for where in (rows, places_R))
    return constrain_all(
        Slots(
            cache=slots.cache,
            prompt=by_place(slots.prompt, prompt),
            lengths_P=by_place(slots.lengths_P, lengths_R),
            keys_B2=by_row(slots.keys_B2, keys),
            samples=by_row(slots.samples, found),
            done_B=by_row(slots.done_B, _ended(first, jnp.ones_like(rows), W, stop_ids)),
        )
    )


@partial(jax.jit, static_argnames=("cfg", "stop_ids"), donate_argnames="slots")
def decode(
    cfg: LlamaConfig,
    params: Params,
    slots: Slots,
    prefix: KVSegment | None,
    draw: DrawParams,
    min_free: jax.Array,
    *,
    stop_ids: tuple[int, ...],
) -> Slots:
    """Goes on until all samples of `enough` places have ended; places that nothing has come into count as such.

    Args:
      cfg, params: the model.
      slots: from `admit`.
      prefix: from `read_prefix`, as in `prefill`; its length is part of every position.
      how: how to draw.
      enough: at most P.
      stop_ids: ids that end a sample.
    """
    model = Llama(cfg)
    B, W = slots.samples.tokens.shape
    P = slots.lengths_P.shape[0]
    of_row = lambda x_P: jnp.repeat(x_P, B // P, axis=0)  # noqa: E731
    before = 0 if prefix is None else prefix.mask.shape[-1]
    length_B, prompt = of_row(slots.lengths_P), slots.prompt
    layers = None if cfg.scan_layers else unstack_layers(cfg, params["layers"])

    def step(now: tuple[Cache, Samples, jax.Array]) -> tuple[Cache, Samples, jax.Array]:
        cache, samples, done_B = now
        # `at` is the last token drawn: it is read now, and its keys are written where it stands.
        at_B = samples.lengths - 1
        at_B1 = at_B[:, None]
        own, looked_at = (_up_to(W) < at_B1)[:, None], prompt.mask
        if cfg.sliding_window is not None:
            own &= window_mask(cfg.sliding_window, at_B1, _up_to(W))
            rest = _up_to(prompt.mask.shape[-1])
            looked_at = of_row(looked_at) & window_mask(cfg.sliding_window, (length_B + at_B)[:, None], rest)
        positions_B1 = (before + length_B + at_B)[:, None]
        past = [*_seen(cfg, prefix, positions_B1), prompt._replace(mask=looked_at), KVSegment(*cache, own)]
        last_B1 = jnp.take_along_axis(samples.tokens, at_B1, axis=1)
        hidden, (k, v) = model.apply(
            {"params": params}, last_B1, positions_BT=positions_B1, past=past, layers=layers, method="hidden_states"
        )
        # This is `at`. That it waits for what was read from the cache, lets XLA write in place and not to a copy.
        slot_B = jnp.minimum(at_B, jnp.where(jnp.isinf(hidden[:, 0, 0]), W, W - 1))
        cache = constrain_all((update_cache(cache[0], k, slot_B, axis=-1), update_cache(cache[1], v, slot_B, axis=-2)))
        logits_BV = model.apply({"params": params}, hidden[:, 0], method="unembed")
        token_B, logprob_B = _draw(logits_BV, slots.keys_B2, samples.lengths, draw)
        return (
            cache,
            _added(samples, token_B, logprob_B, ~done_B),
            done_B | _ended(token_B, samples.lengths + 1, W, stop_ids),
        )

    def going(now: tuple[Cache, Samples, jax.Array]) -> jax.Array:
        return now[2].reshape(P, -1).all(1).sum() < min_free

    cache, samples, done_B = jax.lax.while_loop(going, step, (slots.cache, slots.samples, slots.done_B))
    return slots._replace(cache=cache, samples=samples, done_B=done_B)


def _draw(
    logits_BV: jax.Array, keys_B2: jax.Array, position_B: jax.Array, draw: DrawParams
) -> tuple[jax.Array, jax.Array]:
    """Tokens [B], and their log-probs under the model itself."""
    keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys_B2), position_B)
    token_B = sample_token(logits_BV, keys_B, draw.temperature, draw.top_p)
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
    return token_B, chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def _ended(token_B: jax.Array, lengths_B: jax.Array, width: int, stop_ids: tuple[int, ...]) -> jax.Array:
    stops = jnp.asarray(stop_ids, jnp.int32)
    return (token_B[:, None] == stops).any(1) | (lengths_B == width)


def _added(samples: Samples, token_B: jax.Array, logprob_B: jax.Array, going_B: jax.Array) -> Samples:
    """The samples with one token more, where they go on."""
    at_B = jnp.where(going_B, samples.lengths, samples.tokens.shape[1])  # behind the end: nothing is written
    put = lambda row, at, x: row.at[at].set(x, mode="drop")  # noqa: E731
    return Samples(
        jax.vmap(put)(samples.tokens, at_B, token_B),
        jax.vmap(put)(samples.logprobs, at_B, logprob_B),
        samples.lengths + going_B,
    )


def update_cache(cache: Any, new: Any, at_B: jax.Array, axis: int) -> Any:
    """Keys or values with `new`, of one token a row, at `at_B` of dimension `axis` (counted from the end)."""

    def one(old: jax.Array, x: jax.Array) -> jax.Array:
        in_row = partial(jax.lax.dynamic_update_slice_in_dim, axis=old.ndim - 1 + axis)
        return jax.vmap(in_row, in_axes=(old.ndim - 4, old.ndim - 4, 0), out_axes=old.ndim - 4)(old, x, at_B)

    return jax.tree.map(one, cache, new)

"""The jitted sampler: prefill the prompts, then decode all their samples in one loop on the device.

Cache layout, drawn for P = 2 prompts, G = 2 samples each (B = 4), prompt bucket S = 5, W new tokens:

    shared prompt keys, row per prompt      own keys, row per sample: slot i holds the (i+1)-th new token
      p0  a b c . .                           p0 s0   x x . . . .
      p1  d e f g .                           p0 s1   x x . . . .
          '.' is padding on the right         p1 s0   x x . . . .
                                              p1 s1   x x . . . .   <- every row writes the same slot

A prompt is computed once however many samples are drawn from it. Random numbers depend on the sample's own
key and the token's position alone, so a sample is the same in whatever company it is drawn.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from selfreward_jax.llm.attention import Segment, within
from selfreward_jax.llm.llama import Llama, LlamaConfig, Params
from selfreward_jax.parallel.sharding import ROWS, keep


class Samples(NamedTuple):
    """tokens [B, W] (after the stop id: zeros), their log-probs under the model itself [B, W] (temperature 1,
    no top-p; zero after the stop id), and lengths [B], counting the stop id."""

    tokens: jax.Array
    logprobs: jax.Array
    lengths: jax.Array


# Keys and values of all layers, in the form in which `Llama.hidden` returns them.
Cache = tuple[Any, Any]


@partial(jax.jit, static_argnames=("cfg", "rows", "width"))
def empty_cache(cfg: LlamaConfig, rows: int, width: int) -> Cache:
    """Keys [B, K, H, W] and values [B, K, W, H] of every layer for `width` new tokens, to be donated to `decode`."""
    L, K, H = cfg.layers, cfg.kv_heads, cfg.head_dim

    def layers(*shape: int) -> Any:
        if cfg.scan_layers:
            return jnp.zeros((L, *shape), cfg.dtype)
        return tuple(jnp.zeros(shape, cfg.dtype) for _ in range(L))

    return held((layers(rows, K, H, width), layers(rows, K, width, H)))


def held(kv: Cache) -> Cache:
    """Keys and values with their rows and heads on the devices that compute them."""
    return jax.tree.map(lambda x: keep(x, *layout(x.ndim)), kv)


def layout(ndim: int) -> PartitionSpec:
    """How keys or values of `ndim` dimensions lie on the mesh; with five, those of all layers are stacked in front."""
    return PartitionSpec(*(None,) * (ndim - 4), ROWS, "tensor", None, None)


def write(cache: Any, new: Any, slot: jax.Array, axis: int) -> Any:
    """The cache with `new` at `slot` of dimension `axis` (counted from the end), in place where it is donated."""
    return jax.tree.map(
        lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, slot, axis=old.ndim + axis), cache, new
    )


@partial(jax.jit, static_argnames="cfg")
def prefill(cfg: LlamaConfig, params: Params, tokens_PS: jax.Array, lengths_P: jax.Array) -> tuple[jax.Array, Segment]:
    """Reads the prompts (padded on the right). Returns logits [P, V] of the token after each, and the keys."""
    model = Llama(cfg)
    hidden, (k, v) = model.apply({"params": params}, tokens_PS, method="hidden")
    last = jnp.take_along_axis(hidden, (lengths_P - 1)[:, None, None], axis=1)[:, 0]
    mask = jnp.arange(tokens_PS.shape[1])[None, None, :] < lengths_P[:, None, None]
    return model.apply({"params": params}, last, method="unembed"), Segment(*held((k, v)), mask)


@partial(jax.jit, static_argnames=("cfg", "stop_ids"), donate_argnames="cache")
def decode(
    cfg: LlamaConfig,
    params: Params,
    logits_PV: jax.Array,
    prompt: Segment,
    lengths_P: jax.Array,
    cache: Cache,
    keys_B: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    stop_ids: tuple[int, ...],
) -> tuple[Samples, Cache]:
    """Draws B = P * G samples of up to W tokens, W being the cache's width.

    Args:
      logits_PV, prompt: what `prefill` returned.
      lengths_P: true prompt lengths.
      cache: from `empty_cache`; its contents are ignored and its memory is reused.
      keys_B: one random key for each sample, row p * G + g being sample g of prompt p.
      temperature: 0 decodes greedily; otherwise applied before top-p, as Hugging Face and vLLM do.
      top_p: in (0, 1]; 1 keeps every token.
      stop_ids: ids that end a sample.
    """
    model = Llama(cfg)
    B, G = keys_B.shape[0], keys_B.shape[0] // lengths_P.shape[0]
    W = jax.tree.leaves(cache)[0].shape[-1]  # of the first layer's keys
    position_B = jnp.repeat(lengths_P, G)
    stops = jnp.asarray(stop_ids, jnp.int32)

    def draw(i: jax.Array, logits_BV: jax.Array, state: dict) -> dict:
        uniform_B = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, i)))(keys_B)
        token_B = sample_token(logits_BV, uniform_B, temperature, top_p)
        chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
        logprob_B = chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)
        going = ~state["done"]
        return state | {
            "tokens": state["tokens"].at[:, i].set(jnp.where(going, token_B, 0)),
            "logprobs": state["logprobs"].at[:, i].set(jnp.where(going, logprob_B, 0.0)),
            "lengths": state["lengths"] + going,
            "done": state["done"] | (token_B[:, None] == stops).any(1),
        }

    def step(carry: tuple[jax.Array, dict]) -> tuple[jax.Array, dict]:
        i, state = carry  # i tokens are drawn; the last of them is read now and written to slot i - 1
        written = jnp.arange(W)[None, None, :] < i - 1
        looked_at = prompt.mask
        if cfg.sliding_window is not None:
            query_P1 = (lengths_P + i - 1)[:, None]
            looked_at &= within(cfg.sliding_window, query_P1, jnp.arange(prompt.mask.shape[-1])[None])
            written &= within(cfg.sliding_window, (i - 1)[None, None], jnp.arange(W)[None])
        hidden, (k, v) = model.apply(
            {"params": params},
            jax.lax.dynamic_slice_in_dim(state["tokens"], i - 1, 1, axis=1),
            positions_BT=(position_B + i - 1)[:, None],
            past=[prompt._replace(mask=looked_at), Segment(*state["cache"], written)],
            method="hidden",
        )
        keys, values = state["cache"]
        state = state | {"cache": held((write(keys, k, i - 1, axis=-1), write(values, v, i - 1, axis=-2)))}
        logits_BV = model.apply({"params": params}, hidden[:, 0], method="unembed")
        return i + 1, draw(i, logits_BV, state)

    start = {
        "tokens": jnp.zeros((B, W), jnp.int32),
        "logprobs": jnp.zeros((B, W), jnp.float32),
        "lengths": jnp.zeros(B, jnp.int32),
        "done": jnp.zeros(B, bool),
        "cache": cache,
    }
    first = draw(jnp.int32(0), jnp.repeat(logits_PV, G, axis=0), start)
    _, end = jax.lax.while_loop(lambda carry: (carry[0] < W) & ~carry[1]["done"].all(), step, (jnp.int32(1), first))
    return Samples(end["tokens"], end["logprobs"], end["lengths"]), end["cache"]


def sample_token(logits_BV: jax.Array, uniform_B: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    """Token ids [B] drawn from softmax(logits / temperature) cut to its nucleus.

    Inverts the cumulative distribution at one uniform number per row: V times fewer random numbers than the
    Gumbel trick.
    """
    greedy_B = jnp.argmax(logits_BV, axis=-1)
    probs_BV = jax.nn.softmax(logits_BV / jnp.maximum(temperature, 1e-6), axis=-1)
    kept_BV = jnp.where(probs_BV >= nucleus_threshold(probs_BV, top_p)[:, None], probs_BV, 0.0)
    cumulative_BV = jnp.cumsum(kept_BV, axis=-1)
    # The first kept token whose cumulative sum passes the target. Rounding can let none pass; then the likeliest.
    passed_BV = (cumulative_BV > uniform_B[:, None] * cumulative_BV[:, -1:]) & (kept_BV > 0)
    drawn_B = jnp.where(passed_BV.any(axis=-1), jnp.argmax(passed_BV, axis=-1), greedy_B)
    return jnp.where(temperature > 0, drawn_B, greedy_B).astype(jnp.int32)


def nucleus_threshold(probs_BV: jax.Array, top_p: jax.Array) -> jax.Array:
    """The probability [B] of the least likely token of each nucleus: the smallest set of likeliest tokens that
    holds `top_p` of the mass (Holtzman et al., arXiv 1904.09751). Tokens equal to it are all inside.

    Bisects on the bits of the float, whose order as integers is the order of positive floats: 31 sums over V
    instead of a sort. Greatest t with sum(p[p >= t]) >= top_p.
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # as integers: low satisfies the condition, high does not
        middle = low + (high - low) // 2
        t = jax.lax.bitcast_convert_type(middle, jnp.float32)
        mass = jnp.sum(jnp.where(probs_BV >= t[:, None], probs_BV, 0.0), axis=-1)
        enough = mass >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    rows = probs_BV.shape[0]
    above_one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32) + 1
    low, high = jnp.zeros(rows, jnp.int32), jnp.full(rows, above_one)
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jnp.where(top_p >= 1.0, 0.0, jax.lax.bitcast_convert_type(low, jnp.float32))

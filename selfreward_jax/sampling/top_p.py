"""Top-p (nucleus) sampling of a token without sorting the vocabulary. Array suffixes: the table in llm/decoder.py."""

import jax
import jax.numpy as jnp

BLOCK = 128  # tokens whose probabilities are summed first; the inverse CDF is then searched in one block
MAX_ROUNDS = 64  # each round rejects about half of the remaining mass, so only NaN logits get this far


def sample_token(logits_BV: jax.Array, keys_B: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    """Token ids [B], drawn from softmax(logits / temperature) restricted to the nucleus.

    The nucleus is the smallest set of likeliest tokens that holds `top_p` of the mass (Holtzman et al.,
    arXiv 1904.09751). Tokens that tie with its least likely token are included.

    By rejection sampling: a drawn token is in the nucleus if all likelier tokens together hold less than `top_p`. If it
    is not, it and all tokens that are not likelier are excluded, and another is drawn from the rest. The accepted token
    has the distribution of the nucleus. A draw reads each probability once. More than two draws are seldom needed.

    Args:
      logits_BV: float32.
      keys_B: a random key for each row.
      temperature: 0 takes the likeliest token.
      top_p: in (0, 1]; 1 keeps every token.
    """
    B, V = logits_BV.shape
    greedy = lambda: jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)  # noqa: E731
    start_B = jax.lax.cond(temperature > 0, lambda: jnp.zeros(B, jnp.int32), greedy)
    max_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    weight_BV = jnp.exp((logits_BV - max_B1) / jnp.maximum(temperature, 1e-6))
    weight_BnC = jnp.pad(weight_BV, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
    sums_Bn = weight_BnC.sum(-1)
    nucleus_mass_B = top_p * sums_Bn.sum(-1)

    def attempt(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        round_index, pending_B, bound_B, sums_Bn, token_B = state
        uniform_B = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, round_index)))(keys_B)
        block_B, offset_B, weight_B = _inverse_cdf(weight_BnC, sums_Bn, bound_B, uniform_B)
        likelier_Bn = _above(weight_BnC, weight_B).sum(-1)
        in_nucleus_B = (likelier_Bn.sum(-1) < nucleus_mass_B) | (top_p >= 1)
        rejected_B = pending_B & ~in_nucleus_B
        return (
            round_index + 1,
            rejected_B,
            jnp.where(rejected_B, weight_B, bound_B),
            jnp.where(rejected_B[:, None], likelier_Bn, sums_Bn),
            jnp.where(pending_B & in_nucleus_B, block_B * BLOCK + offset_B, token_B),
        )

    start = (jnp.int32(0), jnp.full(B, temperature > 0), jnp.zeros(B), sums_Bn, start_B)
    any_pending = lambda state: state[1].any() & (state[0] < MAX_ROUNDS)  # noqa: E731
    return jax.lax.while_loop(any_pending, attempt, start)[-1]


def _above(weight_BnC: jax.Array, bound_B: jax.Array) -> jax.Array:
    return jnp.where(weight_BnC > bound_B[:, None, None], weight_BnC, 0.0)


def _inverse_cdf(
    weight_BnC: jax.Array, sums_Bn: jax.Array, bound_B: jax.Array, uniform_B: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The token at which the cumulative weight of tokens above `bound` passes the fraction `uniform` of their total.

    Returns its block, its offset in the block, and its weight. If no token passes, because of rounding, it is the
    heaviest.
    """
    cumsum_Bn = jnp.cumsum(sums_Bn, axis=-1)
    target_B1 = uniform_B[:, None] * cumsum_Bn[:, -1:]
    block_B1 = _first_true(cumsum_Bn > target_B1, sums_Bn)[:, None]
    rest_B1 = target_B1 - jnp.take_along_axis(cumsum_Bn - sums_Bn, block_B1, axis=1)
    inner_BC = jnp.take_along_axis(weight_BnC, block_B1[..., None], axis=1)[:, 0]
    inner_BC = jnp.where(inner_BC > bound_B[:, None], inner_BC, 0.0)
    offset_B1 = _first_true((jnp.cumsum(inner_BC, axis=-1) > rest_B1) & (inner_BC > 0), inner_BC)[:, None]
    return block_B1[:, 0], offset_B1[:, 0], jnp.take_along_axis(inner_BC, offset_B1, axis=1)[:, 0]


def _first_true(passed: jax.Array, otherwise: jax.Array) -> jax.Array:
    """The first index where `passed`; where there is none, the index of the largest `otherwise`."""
    return jnp.where(passed.any(-1), jnp.argmax(passed, -1), jnp.argmax(otherwise, -1)).astype(jnp.int32)

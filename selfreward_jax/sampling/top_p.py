"""Drawing a token from the nucleus without sorting the vocabulary."""

import jax
import jax.numpy as jnp

BLOCK = 128  # tokens whose probabilities are summed first, to find the one that a random number points at
MAX_ROUNDS = 64  # each throws away half of what is left, so that only logits that are no numbers come so far


def sample_token(logits_BV: jax.Array, keys_B: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    """Token ids [B] drawn from softmax(logits / temperature) cut to its nucleus: the smallest set of likeliest tokens
    that holds `top_p` of the mass (Holtzman et al., arXiv 1904.09751). Of equally likely tokens all are inside.

    By rejection: a token is inside if all that are likelier hold less than `top_p` together. One that is not is thrown
    away with all that are no likelier, and the rest are drawn from again; what comes out at last is distributed as the
    nucleus is. A draw looks at each probability once, and seldom more than two draws are needed.

    Args:
      logits_BV: float32.
      keys_B: a random key for each row.
      temperature: 0 takes the likeliest token.
      top_p: in (0, 1]; 1 keeps every token.
    """
    B, V = logits_BV.shape
    likeliest = lambda: jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)  # noqa: E731
    start_B = jax.lax.cond(temperature > 0, lambda: jnp.zeros(B, jnp.int32), likeliest)
    top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    weight_BnC, shares = _blocks(jnp.exp((logits_BV - top_B1) / jnp.maximum(temperature, 1e-6)))
    of_share, size = weight_BnC.shape[1] // shares, weight_BnC.shape[2]  # blocks, and tokens of a block
    sums_Bn = weight_BnC.sum(-1)
    enough_B = top_p * sums_Bn.sum(-1)

    def attempt(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tries, going_B, bound_B, sums_Bn, token_B = state
        uniform_B = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, tries)))(keys_B)
        block_B, at_B, weight_B = _pointed_at(weight_BnC, sums_Bn, bound_B, uniform_B)
        drawn_B = block_B // of_share * (V // shares) + block_B % of_share * size + at_B
        likelier_Bn = _over(weight_BnC, weight_B).sum(-1)
        inside_B = (likelier_Bn.sum(-1) < enough_B) | (top_p >= 1)
        refused_B = going_B & ~inside_B
        return (
            tries + 1,
            refused_B,
            jnp.where(refused_B, weight_B, bound_B),
            jnp.where(refused_B[:, None], likelier_Bn, sums_Bn),
            jnp.where(going_B & inside_B, drawn_B, token_B),
        )

    start = (jnp.int32(0), jnp.full(B, temperature > 0), jnp.zeros(B), sums_Bn, start_B)
    going = lambda state: state[1].any() & (state[0] < MAX_ROUNDS)  # noqa: E731
    return jax.lax.while_loop(going, attempt, start)[-1]


def _blocks(weight_BV: jax.Array) -> tuple[jax.Array, int]:
    """[B, n, C], zeros after the last token; and the number of shares of the vocabulary, each of which lies on another
    device and has blocks of its own."""
    B, V = weight_BV.shape
    mesh = jax.sharding.get_abstract_mesh()
    shares = 1 if mesh.empty else mesh.shape["tensor"]
    shares = shares if V % shares == 0 else 1
    parts = weight_BV.reshape(B, shares, V // shares)
    size = min(BLOCK, V // shares)
    parts = jnp.pad(parts, ((0, 0), (0, 0), (0, -(V // shares) % size)))
    return parts.reshape(B, -1, size), shares


def _over(weight_BnC: jax.Array, bound_B: jax.Array) -> jax.Array:
    return jnp.where(weight_BnC > bound_B[:, None, None], weight_BnC, 0.0)


def _pointed_at(
    weight_BnC: jax.Array, sums_Bn: jax.Array, bound_B: jax.Array, uniform_B: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the cumulative weight of tokens over `bound` passes `uniform` of the whole: block, place in it, weight.
    Rounding can let none pass; then it is the heaviest."""
    upto_Bn = jnp.cumsum(sums_Bn, axis=-1)
    target_B1 = uniform_B[:, None] * upto_Bn[:, -1:]
    block_B1 = _first(upto_Bn > target_B1, sums_Bn)[:, None]
    rest_B1 = target_B1 - jnp.take_along_axis(upto_Bn - sums_Bn, block_B1, axis=1)
    inner_BC = jnp.take_along_axis(weight_BnC, block_B1[..., None], axis=1)[:, 0]
    inner_BC = jnp.where(inner_BC > bound_B[:, None], inner_BC, 0.0)
    at_B1 = _first((jnp.cumsum(inner_BC, axis=-1) > rest_B1) & (inner_BC > 0), inner_BC)[:, None]
    return block_B1[:, 0], at_B1[:, 0], jnp.take_along_axis(inner_BC, at_B1, axis=1)[:, 0]


def _first(passed: jax.Array, otherwise: jax.Array) -> jax.Array:
    return jnp.where(passed.any(-1), jnp.argmax(passed, -1), jnp.argmax(otherwise, -1)).astype(jnp.int32)

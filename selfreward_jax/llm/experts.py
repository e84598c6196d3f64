"""A mixture of experts in place of a layer's MLP: a router chooses some MLPs for each token.

Array suffixes: the table in decoder.py. In addition: E experts, k experts of a token, M tokens, A = M * k assignments.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from selfreward_jax.llm.matmul import exact, matmul
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.parallel.sharding import axes_of_rows

Activation = Callable[[jax.Array], jax.Array]


def mixture(cfg: DecoderConfig, w: dict[str, jax.Array], x_BTD: jax.Array, activation: Activation) -> jax.Array:
    """The weighted sum of the chosen experts' outputs, [B, T, D].

    Each device has some experts as a whole, and its own rows. It computes its experts for its rows; the results are
    summed over the mesh axis `tensor`. No token is dropped.
    """
    index_BTk, weight_BTk = route(cfg, matmul(x_BTD, w["router"], 1))
    matrices = [w[name] for name in ("w_gate", "w_up", "w_down")]
    run = partial(_experts, activation=activation)
    if jax.sharding.get_abstract_mesh().empty:
        return run(x_BTD, index_BTk, weight_BTk, *matrices)
    rows, held = PartitionSpec(axes_of_rows(len(x_BTD))), PartitionSpec("tensor")
    sharded = partial(run, axis="tensor")
    return jax.shard_map(sharded, in_specs=(rows, rows, rows, held, held, held), out_specs=rows)(
        x_BTD, index_BTk, weight_BTk, *matrices
    )


def route(cfg: DecoderConfig, logits_BTE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The experts of each token and their weights [B, T, k]: the largest probabilities of a softmax in float32."""
    probs_BTE = jax.nn.softmax(logits_BTE.astype(jnp.float32))
    weight_BTk, index_BTk = jax.lax.top_k(probs_BTE, cfg.experts_per_token)
    if cfg.normalize_routing:
        weight_BTk /= weight_BTk.sum(-1, keepdims=True)
    return index_BTk, weight_BTk.astype(logits_BTE.dtype)


def _experts(
    x_BTD: jax.Array,
    index_BTk: jax.Array,
    weight_BTk: jax.Array,
    gate_EDF: jax.Array,
    up_EDF: jax.Array,
    down_EFD: jax.Array,
    *,
    activation: Activation,
    axis: str | None = None,
) -> jax.Array:
    """The experts of one device. If `axis` is given, other devices of this mesh axis have the others.

    Assignments are sorted by expert, those to experts of other devices last:

        tokens      a b a c b | c a      one matrix product for each expert,
        expert      0 0 1 1 1 | 2 3      over its own rows
    """
    if axis is not None:
        # Explicitly: the gradient of a gather whose indices alone vary over the mesh is wrong (jax 0.10).
        x_BTD, weight_BTk = (jax.lax.pcast(x, axis, to="varying") for x in (x_BTD, weight_BTk))
    (B, T, D), k, E = x_BTD.shape, index_BTk.shape[-1], gate_EDF.shape[0]
    expert_A = index_BTk.reshape(-1) - (0 if axis is None else jax.lax.axis_index(axis) * E)
    is_here_A = (expert_A >= 0) & (expert_A < E)
    order_A = jnp.argsort(jnp.where(is_here_A, expert_A, E), stable=True)
    sizes_E = jnp.bincount(jnp.where(is_here_A, expert_A, E), length=E + 1)[:E].astype(jnp.int32)
    token_A = order_A // k
    rows_AD = x_BTD.reshape(-1, D)[token_A]
    product = partial(jax.lax.ragged_dot, group_sizes=sizes_E, precision=exact(x_BTD.dtype))
    gate_AF, up_AF = (product(rows_AD, m) for m in (gate_EDF, up_EDF))
    out_AD = product((activation(gate_AF) * up_AF).astype(x_BTD.dtype), down_EFD)
    weight_A1 = jnp.where(is_here_A, weight_BTk.reshape(-1), 0)[order_A][:, None]
    out_AD = jnp.where(is_here_A[order_A][:, None], out_AD * weight_A1, 0)
    y_BTD = jnp.zeros((B * T, D), x_BTD.dtype).at[token_A].add(out_AD).reshape(B, T, D)
    return y_BTD if axis is None else jax.lax.psum(y_BTD, axis)

"""Matrix products: their precision, and one whose gradient is computed in the layout of the weight."""

from functools import partial

import jax
import jax.numpy as jnp


def exact(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """The precision of products of numbers of a dtype: float32 numbers are multiplied in float32.

    By default a TPU multiplies them in bfloat16, and a GPU in TF32. On a CPU it changes nothing.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, w: jax.Array, axes: int) -> jax.Array:
    """`jnp.tensordot(x, w, axes)`: the last `axes` axes of `x` with the first of `w`.

    By JAX's own rule the gradient of `w` is a product with its axes exchanged, and then a transpose. On a CPU XLA moves
    that transpose to the activations, copies them in strides, and multiplies them by a slow path: a layer of 640 x 2048
    spent three quarters of its backward pass there in bfloat16. Here it is the product of `x` and the cotangent, in
    this order, and nothing is transposed.
    """
    return jnp.tensordot(x, w, axes, precision=exact(x.dtype))


def _forward(x: jax.Array, w: jax.Array, axes: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.tensordot(x, w, axes, precision=exact(x.dtype)), (x, w)


def _backward(axes: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    rows, columns = tuple(range(x.ndim - axes)), tuple(range(axes, w.ndim))  # of x and dy; of w
    last = tuple(range(dy.ndim - len(columns), dy.ndim))
    dx = jax.lax.dot_general(dy, w, ((last, columns), ((), ())), precision=exact(x.dtype))
    dw = jax.lax.dot_general(x, dy, ((rows, rows), ((), ())), precision=exact(x.dtype))
    return dx.astype(x.dtype), dw.astype(w.dtype)


matmul.defvjp(_forward, _backward)

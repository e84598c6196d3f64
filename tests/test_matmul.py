"""The product of activations and a weight: value and gradients are those of tensordot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfreward_jax.llm.matmul import matmul

SHAPES = [((2, 3, 4), (4, 5), 1), ((2, 3, 4), (4, 5, 6), 1), ((2, 3, 4, 5), (4, 5, 6), 2), ((3, 4), (4, 2), 1)]


@pytest.mark.parametrize(("x_shape", "w_shape", "axes"), SHAPES)
def test_value_and_gradients(x_shape, w_shape, axes):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x_shape, w_shape))
    weights = jnp.asarray(rng.normal(size=np.tensordot(x, w, axes).shape), jnp.float32)

    def loss(product):
        return lambda x, w: jnp.sum(jnp.sin(product(x, w, axes)) * weights)

    np.testing.assert_allclose(matmul(x, w, axes), np.tensordot(x, w, axes), rtol=1e-5, atol=1e-6)
    expected = jax.grad(loss(jnp.tensordot), argnums=(0, 1))(x, w)
    for actual, wanted in zip(jax.grad(loss(matmul), argnums=(0, 1))(x, w), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


def test_gradients_have_the_dtypes_of_their_arguments():
    x, w = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)
    dx, dw = jax.grad(lambda x, w: jnp.sum(matmul(x, w, 1).astype(jnp.float32)), argnums=(0, 1))(x, w)
    assert (dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_no_weight_gradient_is_transposed():
    """The gradient of a weight is one product of activations and cotangent."""
    x, w = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    jaxpr = jax.make_jaxpr(jax.grad(lambda w: jnp.sum(matmul(x, w, 1) ** 2)))(w)
    assert "transpose" not in {eqn.primitive.name for eqn in jaxpr.eqns}

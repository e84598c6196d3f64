"""The product of activations and a weight: value and gradients are those of tensordot."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.matmul import matmul
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.train.logprobs import token_logprobs

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


def products(lowered):
    """For each matrix product of a lowered program its type, and whether it is exact."""
    lines = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    dtypes = [re.search(r": \(tensor<(?:\d+x)*(\w+)>", line)[1] for line in lines]
    return list(zip(dtypes, ("HIGHEST" in line for line in lines), strict=True))


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float32_means_float32(impl, dtype, random_params):
    """On accelerators too, forward and backward. Their default would be bfloat16 or TF32."""
    cfg = DecoderConfig(
        vocab_size=32, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, dtype=dtype,
        attention=impl,
    )  # fmt: skip
    params = jax.tree.map(lambda x: x.astype(jnp.float32), random_params(cfg))
    tokens = jnp.zeros((2, 8), jnp.int32)
    model = Decoder(cfg)

    def loss(params):
        return jnp.sum(token_logprobs(model, params, tokens))

    lowered = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=("tpu",))
    found = products(lowered)
    assert len(found) > 30
    assert {"float32": "f32", "bfloat16": "bf16"}[dtype] in {kind for kind, _ in found}
    assert all(is_exact == (kind == "f32") for kind, is_exact in found if dtype == "float32" or kind == "bf16")

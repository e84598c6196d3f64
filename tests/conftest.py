"""What several test files share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfreward_jax.llm.llama import Weight, weights

# Tests compile many small programs and run each of them once.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def random_params():
    """A function from a LlamaConfig to parameters in which nothing is 0 or 1: a scale or a bias that still has its
    initial value would hide its own omission."""

    def make(cfg, seed=0):
        rng = np.random.default_rng(seed)

        def one(path, w):
            return jnp.asarray(rng.normal("norm" in str(path[-1]), 0.3, w.shape), cfg.param_dtype)

        return jax.tree_util.tree_map_with_path(one, weights(cfg), is_leaf=lambda x: isinstance(x, Weight))

    return make

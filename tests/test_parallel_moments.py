"""The optimiser's moments: in which type they are kept, and where they lie."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_parallel import TINY, alone, assert_close, random_weights
from test_trainer import ADAMW, TEXTS

from selfreward_jax.llm import llama
from selfreward_jax.llm.llama import Llama, LlamaConfig
from selfreward_jax.parallel.sharding import param_shardings
from selfreward_jax.train import sft, trainer


def moments(state):
    return state.opt_state[1][0]  # behind the clipping


def two_steps(offload=False, **changed):
    """The state after two updates of a small model."""
    cfg, mesh = LlamaConfig(**vars(TINY) | {"layers": 1}), alone()
    params = random_weights(cfg, mesh)
    optimizer = trainer.make_optimizer(SimpleNamespace(**vars(ADAMW) | changed))
    lying = param_shardings(llama.param_specs(cfg), mesh)
    shardings = trainer.state_shardings(optimizer, params, lying, mesh, offload)
    fresh = lambda p: trainer.TrainState(jnp.int32(0), p, optimizer.init(p))  # noqa: E731
    state = jax.jit(fresh, out_shardings=shardings)(params)
    settings = SimpleNamespace(epochs=1, width=32, batch=4, accumulate=1)
    batch_at = sft.make_batch_fn(TEXTS, settings, 3, mesh)[1]
    update = trainer.make_update(sft.loss_fn(Llama(cfg)), optimizer, shardings, mesh)
    for step in range(2):
        state, _ = update(state, batch_at(step), jax.random.key(0), rate=1e-2)
    return state


@pytest.fixture(scope="module")
def plain():
    return two_steps()


def test_the_first_moment_alone_is_kept_in_bfloat16(plain):
    state = two_steps(moment_dtype="bfloat16")
    kept = moments(state)
    assert {x.dtype for x in jax.tree.leaves(kept.mu)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(kept.nu)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    for half, whole in zip(jax.tree.leaves(kept.mu), jax.tree.leaves(moments(plain).mu), strict=True):
        whole = np.asarray(whole)
        np.testing.assert_allclose(np.asarray(half, np.float32), whole, atol=0.02 * np.abs(whole).max())


def host_memory():
    return any(m.kind == "pinned_host" for m in jax.devices()[0].addressable_memories())


@pytest.mark.skipif(not host_memory(), reason="this device has no memory of the host's beside its own")
def test_moments_lie_in_the_hosts_memory_and_updates_are_the_same(plain):
    state = two_steps(offload=True)
    kinds = lambda tree: {x.sharding.memory_kind for x in jax.tree.leaves(tree)}  # noqa: E731
    assert kinds((moments(state).mu, moments(state).nu)) == {"pinned_host"}
    assert kinds(plain) == kinds((state.step, state.params)) != {"pinned_host"}
    assert_close(state, plain, 1e-7)

"""The layouts of the sampler's cache hold the same numbers and give the same samples."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import sampling

from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.sampling import kv_cache, sampler

CFG = DecoderConfig(vocab_size=32, dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24)
LAYOUTS = ("columns", "mixed", "tokens")


@pytest.mark.parametrize("scan", [False, True])
def test_all_layouts_hold_what_was_written(scan):
    cfg, rng, B, W = replace(CFG, scan_layers=scan), np.random.default_rng(0), 3, 5
    of_token = {x: kv_cache.token_layout(replace(cfg, kv_layout=x)) for x in LAYOUTS}
    caches = {x: kv_cache.init_cache(cfg, B, W, of_token[x]) for x in LAYOUTS}
    keys, values = np.zeros((2, B, 2, 8, W), np.float32), np.zeros((2, B, 2, W, 8), np.float32)
    for _ in range(4):
        columns = rng.integers(0, W, B)
        k, v = (rng.normal(size=(2, B, 2, *shape)).astype(np.float32) for shape in ((8, 1), (1, 8)))
        for row, column in enumerate(columns):
            keys[:, row, :, :, column], values[:, row, :, column] = k[:, row, :, :, 0], v[:, row, :, 0]
        new = (k, v) if scan else (tuple(k), tuple(v))
        caches = {x: kv_cache.write(replace(cfg, kv_layout=x), c, new, columns) for x, c in caches.items()}
    for layout, cache in caches.items():
        segment = kv_cache.as_segment(cache, of_token[layout])
        for actual, expected in zip(segment, (keys, values), strict=True):
            np.testing.assert_array_equal(np.asarray(actual), expected)


@pytest.mark.parametrize("scan", [False, True])
def test_all_layouts_give_the_same_samples(scan, random_params):
    cfg = replace(CFG, scan_layers=scan)
    params, rng = random_params(cfg, seed=4), np.random.default_rng(1)
    tokens, lengths = rng.integers(0, 32, (3, 6)).astype(np.int32), np.array([6, 2, 4], np.int32)
    drawn = [
        sampling.draw(
            replace(cfg, kv_layout=layout), params, tokens, lengths, jax.random.split(jax.random.key(2), 6), 9,
            stop_ids=(3,),
        )
        for layout in LAYOUTS
    ]  # fmt: skip
    for other in drawn[1:]:
        np.testing.assert_array_equal(drawn[0].tokens, other.tokens)
        np.testing.assert_allclose(drawn[0].logprobs, other.logprobs, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_each_layer_on_their_own_give_the_same_samples(layout, random_params):
    cfg = replace(CFG, kv_layout=layout)
    params, keys = random_params(cfg, seed=4), jax.random.split(jax.random.key(2), 2)
    tokens, lengths = np.array([[5, 6, 7], [8, 9, 0]], np.int32), np.array([3, 2], np.int32)
    stacked, apart = (
        sampling.draw(cfg, p, tokens, lengths, keys, 9)
        for p in (params, sampler.unstack_params(cfg, {**params, "layers": dict(params["layers"])}))
    )
    np.testing.assert_array_equal(stacked.tokens, apart.tokens)
    np.testing.assert_allclose(stacked.logprobs, apart.logprobs, atol=1e-6)

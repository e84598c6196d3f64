"""Samples with the device programs directly, all prompts at once."""

import jax
import numpy as np

from selfreward_jax.sampling import sampler


def draw(cfg, params, tokens, lengths, keys, width, temperature=1.0, top_p=1.0, stop_ids=(), prefix=None):
    """`sampler.Samples` of prompts [P, S], with len(keys) / P samples each."""
    P, S = tokens.shape
    draw_params = sampler.DrawParams(np.float32(temperature), np.float32(top_p))
    B = len(keys)
    logits, prompt = sampler.prefill(cfg, params, tokens, lengths, prefix)
    slots = sampler.init_slots(cfg, B, S, width)
    # The content of unused cache slots must not matter.
    slots = slots._replace(cache=jax.tree.map(lambda x: x + 100.0, slots.cache))
    slots = sampler.insert(
        slots,
        np.arange(B, dtype=np.int32),
        np.repeat(np.arange(P, dtype=np.int32), B // P),
        logits,
        prompt,
        lengths,
        np.asarray(jax.random.key_data(keys)),
        draw_params,
        stop_ids=stop_ids,
    )
    slots = sampler.decode(cfg, params, slots, prefix, draw_params, np.int32(B), stop_ids=stop_ids)
    return jax.device_get(slots.samples)

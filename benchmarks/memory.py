"""How does the peak memory of a DPO step grow with the length of the texts and with the vocabulary?

    python -m benchmarks.memory [--pairs=4]

Compiles a DPO step (without running it) for a grid of lengths and vocabularies. Prints a JSON line for each: the bytes
of temporaries that XLA plans, the bytes of parameters, optimizer and gradients, and the bytes of one float32 array
[B, T, V] of all logits. Then prints the least-squares fit temporaries = a + b * length + c * vocabulary +
d * length * vocabulary, with d in units of that array: 0 if no such array is held, at least 1 if one is. The same is
done with all logits held at once, which is what the figure would be without chunks.
"""

import itertools
import json

import jax
import numpy as np
from absl import app, flags

from selfreward_jax import config
from selfreward_jax.memory.programs import programs
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.train import logprobs

_PAIRS = flags.DEFINE_integer("pairs", 4, "Pairs per step.")
LENGTHS = (256, 512, 1024, 2048)
VOCABULARIES = (4_096, 16_384, 32_768, 65_536)


def measure_step(length: int, vocabulary: int, max_logits: int) -> dict:
    """Bytes of one compiled step, with at most `max_logits` logits held at once."""
    c = config.default_config()
    c.update_from_flattened_dict({"dpo.batch_size": _PAIRS.value, "dpo.replay_weight": 0.0, "model.max_length": length})
    c.update_from_flattened_dict({"tokenizer.vocab_size": vocabulary, "model.remat": "full", "model.scan_layers": True})
    logprobs.MAX_LOGITS = max_logits
    (program,) = programs(c, None, make_mesh(devices=jax.devices()[:1]), length, ["dpo"])
    memory = program.lowered.compile().memory_analysis()
    return {
        "length": length,
        "vocabulary": vocabulary,
        "temporaries": memory.temp_size_in_bytes,
        "state": program.bytes["params"] + program.bytes["optimizer"],
        "all_logits": 4 * 2 * _PAIRS.value * length * vocabulary,
    }


def main(_: list[str]) -> None:
    """Measures, fits and prints."""
    for name, max_logits in (("in chunks", logprobs.MAX_LOGITS), ("whole", 1 << 60)):
        rows = [measure_step(t, v, max_logits) for t, v in itertools.product(LENGTHS, VOCABULARIES)]
        for row in rows:
            print(json.dumps({"logits": name, **row}), flush=True)
        length, vocabulary = (np.array([r[k] for r in rows], float) for k in ("length", "vocabulary"))
        terms = np.stack([np.ones_like(length), length, vocabulary, length * vocabulary], 1)
        fit, *_rest = np.linalg.lstsq(terms, np.array([r["temporaries"] for r in rows], float), rcond=None)
        arrays = fit[3] / (4 * 2 * _PAIRS.value)
        print(json.dumps({"logits": name, "arrays_of_all_logits": round(float(arrays), 3)}), flush=True)


if __name__ == "__main__":
    app.run(main)

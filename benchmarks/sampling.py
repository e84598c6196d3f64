"""How fast is sampling, compared with transformers' generate?

    python -m benchmarks.sampling [--shapes=6.5m,135m] [--batches=1,8,32] [--peer_python=PYTHON]

Prompts of 128 ids, 128 new tokens, temperature 0.7, top-p 0.9, random weights. Each side uses its faster dtype. Prints
a JSON line per case: seconds of each side, their ratio, tokens/s, and the fraction of our time that the machine needs
at least to read the weights and the KV cache once per token, or to compute the products.
"""

import json
from pathlib import Path

from absl import app, flags

from benchmarks import roofline
from benchmarks.side_by_side import SHAPES, candidate_dtypes, compare, start_workers

_BATCHES = flags.DEFINE_list("batches", ["1", "8", "32"], "Batch sizes, in prompts.")
NEW = LENGTH = 128


def main(_: list[str]) -> None:
    """Measures and prints."""
    our_dtypes, peer_dtypes = candidate_dtypes()
    with start_workers() as (ours, theirs, folder):
        for shape in SHAPES.value:
            model_dir = str(Path(folder) / shape)
            ours.request(task="save", case={"shape": shape, "folder": model_dir})
            for batch in map(int, _BATCHES.value):
                case = {"shape": shape, "folder": model_dir, "prompts": batch, "samples": 1}
                case |= {"length": LENGTH, "new": NEW}
                settings = (
                    [{"dtype": d, "rows": batch} for d in our_dtypes],
                    [{"dtype": d, "batch": batch} for d in peer_dtypes],
                )
                row = compare(ours, theirs, "generate", case, settings)
                dtype, seconds = row["ours"]["dtype"], row["ours"]["seconds"]
                row["tokens_per_second"] = round(batch * NEW / seconds)
                # On average half of the new tokens are in the cache. The first one is sampled from the prefill.
                context, prefill = LENGTH + NEW / 2, roofline.prefill_flops(shape, batch, LENGTH)
                step = roofline.decode_cost(shape, batch, batch * context, context, dtype)
                row |= roofline.machine_share(ours, dtype, [(0.0, prefill, 1), (*step, NEW - 1)], seconds)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)

"""How fast are tokens drawn, beside transformers' generate?

    python -m benchmarks.sampling [--shapes=6.5m,135m] [--batches=1,8,32] [--peer_python=PYTHON]

Prompts of 128 ids, 128 new tokens, temperature 0.7, top-p 0.9, random weights, each side in the dtype in which it is
faster. Prints a JSON line for each case: seconds of each side, the ratio, tokens/s, and beside them what the machine
can do: the share of our time in which it could read weights and keys once a token, or do the products.
"""

import json
from pathlib import Path

from absl import app, flags

from benchmarks import roofline
from benchmarks.side_by_side import SHAPES, compare, dtypes, workers

_BATCHES = flags.DEFINE_list("batches", ["1", "8", "32"], "Prompts at once.")
NEW = LENGTH = 128


def main(_: list[str]) -> None:
    """Measures, prints."""
    of_ours, of_theirs = dtypes()
    with workers() as (ours, theirs, folder):
        for shape in SHAPES.value:
            where = str(Path(folder) / shape)
            ours.ask(task="save", case={"shape": shape, "folder": where})
            for batch in map(int, _BATCHES.value):
                case = {"shape": shape, "folder": where, "prompts": batch, "samples": 1}
                case |= {"length": LENGTH, "new": NEW}
                settings = (
                    [{"dtype": d, "rows": batch} for d in of_ours],
                    [{"dtype": d, "batch": batch} for d in of_theirs],
                )
                row = compare(ours, theirs, "generate", case, settings)
                dtype, seconds = row["ours"]["dtype"], row["ours"]["seconds"]
                row["tokens_per_second"] = round(batch * NEW / seconds)
                # Of the new tokens half are there on average; the first is drawn from what reading gives.
                seen, read = LENGTH + NEW / 2, roofline.reading(shape, batch, LENGTH)
                step = roofline.drawing(shape, batch, batch * seen, seen, dtype)
                row |= roofline.beside(ours, dtype, [(0.0, read, 1), (*step, NEW - 1)], seconds)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)

"""How fast are tokens drawn, beside transformers' generate?

    python -m benchmarks.sampling [--shapes=6.5m,135m] [--batches=1,8,32] [--peer_python=PYTHON]

Prompts of 128 ids, 128 new tokens, temperature 0.7, top-p 0.9, random weights, each side in the dtype in which it is
faster. Prints a JSON line for each case: seconds of each side, the ratio, tokens/s, and beside them what the machine
did in the same run: the time that reading the weights and the keys once a token would take, and that of the products.
"""

import json
from pathlib import Path

from absl import app, flags

from benchmarks import cases
from benchmarks.side_by_side import SHAPES, compare, workers

_BATCHES = flags.DEFINE_list("batches", ["1", "8", "32"], "Prompts at once.")
NEW = LENGTH = 128
DTYPES = ("float32", "bfloat16")


def needed(shape: str, batch: int, dtype: str) -> tuple[float, float]:
    """Bytes read and FLOPs of a decode step, counted by hand: weights once (the embedding as the head), keys and values
    of half the new tokens; two FLOPs a weight and row, and the products with keys and values."""
    V, D, L, N, K, H, F = cases.SHAPES[shape]
    matrices = L * (D * H * (2 * N + 2 * K) + 3 * D * F) + V * D
    looked_at = LENGTH + NEW / 2
    size = 2 if dtype == "bfloat16" else 4
    return size * (matrices + batch * looked_at * 2 * L * K * H), 2 * batch * (matrices + looked_at * 2 * L * N * H)


def main(_: list[str]) -> None:
    """Measures, prints."""
    with workers() as (ours, theirs, folder):
        for shape in SHAPES.value:
            where = str(Path(folder) / shape)
            ours.ask(task="save", case={"shape": shape, "folder": where})
            for batch in map(int, _BATCHES.value):
                case = {"shape": shape, "folder": where, "prompts": batch, "samples": 1}
                case |= {"length": LENGTH, "new": NEW}
                settings = (
                    [{"dtype": d, "rows": batch} for d in DTYPES],
                    [{"dtype": d, "batch": batch} for d in DTYPES],
                )
                row = compare(ours, theirs, "generate", case, settings)
                can = ours.ask(task="machine", case={})
                dtype = row["ours"]["dtype"]
                size, flops = needed(shape, batch, dtype)
                floor = max(size / can["bytes"], flops / can[f"{dtype}_flops"])
                row["tokens_per_second"] = round(batch * NEW / row["ours"]["seconds"])
                row["machine"] = {name: f"{rate:.3g}" for name, rate in can.items()}
                row["share_of_the_machine"] = round(NEW * floor / row["ours"]["seconds"], 3)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)

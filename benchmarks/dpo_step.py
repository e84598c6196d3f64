"""How long does a DPO step take, beside TRL's DPOTrainer?

    python -m benchmarks.dpo_step [--shapes=6.5m] [--peer_python=PYTHON]

8 pairs of 256 ids, half of them the prompt, AdamW. Twice: with the reference's forward in each step, as TRL does unless
told otherwise (ours then reads the same pairs with the reference too), and with its log-probs known before. TRL in
float32, in bfloat16 by autocast and with bfloat16 weights; ours with float32 weights, products in either. Prints a JSON
line for each.
"""

import json
from pathlib import Path

from absl import app

from benchmarks import roofline
from benchmarks.side_by_side import SHAPES, compare, workers


def main(_: list[str]) -> None:
    """Measures, prints."""
    with workers() as (ours, theirs, folder):
        for shape in SHAPES.value:
            where = str(Path(folder) / shape)
            ours.ask(task="save", case={"shape": shape, "folder": where})
            for reference in (True, False):
                case = {"shape": shape, "folder": where, "pairs": 8, "prompt": 128, "response": 128}
                case |= {"steps": 3, "reference": reference}
                settings = (
                    [{"dtype": d} for d in ("float32", "bfloat16")],
                    [
                        {"dtype": "float32", "autocast": False},
                        {"dtype": "float32", "autocast": True},
                        {"dtype": "bfloat16", "autocast": False},
                    ],
                )
                row = compare(ours, theirs, "dpo_step", case, settings)
                flops = roofline.training(shape, 8, 128, 16, 128) * (4 / 3 if reference else 1)
                row |= roofline.beside(ours, row["ours"]["dtype"], [(0.0, flops, 1)], row["ours"]["seconds"])
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)

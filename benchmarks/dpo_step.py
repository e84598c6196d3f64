"""How long does a DPO step take, beside TRL's DPOTrainer?

    python -m benchmarks.dpo_step [--shapes=6.5m] [--peer_python=PYTHON]

8 pairs of 256 ids, half of them the prompt, AdamW. Twice: with the reference's forward in each step, as TRL does unless
told otherwise (ours then reads the same pairs with the reference too), and with its log-probs known before. TRL in
float32, in bfloat16 by autocast and with bfloat16 weights; ours with float32 weights, products in either. Prints a JSON
line for each, with the share of our time in which the machine could do it, and of new processes of both sides the peak
memory before and after the case, compiling included.
"""

import json
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import roofline
from benchmarks.side_by_side import SHAPES, compare, workers

_STEPS = flags.DEFINE_integer("steps", 3, "Steps of a run.")


def peaks(case: dict[str, Any], settings: list[dict[str, Any]]) -> list[list[float]]:
    """Peak gigabytes of new processes of both sides, before and after the case."""
    found = []
    with workers() as (ours, theirs, _):
        for worker, setting in zip((ours, theirs), settings, strict=True):
            before = worker.ask(task="peak", case={})["bytes"]
            worker.ask(task="dpo_step", case=case | setting)
            found.append([round(x / 1e9, 3) for x in (before, worker.ask(task="peak", case={})["bytes"])])
    return found


def main(_: list[str]) -> None:
    """Measures, prints."""
    with workers() as (ours, theirs, folder):
        for shape in SHAPES.value:
            where = str(Path(folder) / shape)
            ours.ask(task="save", case={"shape": shape, "folder": where})
            for reference in (True, False):
                case = {"shape": shape, "folder": where, "pairs": 8, "prompt": 128, "response": 128}
                case |= {"steps": _STEPS.value, "reference": reference}
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
                chosen = [{n: row[side][n] for n in settings[i][0]} for i, side in enumerate(("ours", "theirs"))]
                row["peak_gb"] = dict(zip(("ours", "theirs"), peaks(case, chosen), strict=True))
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)

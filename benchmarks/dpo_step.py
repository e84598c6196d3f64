"""How long does a DPO step take, beside TRL's DPOTrainer?

    python -m benchmarks.dpo_step [--shapes=6.5m] [--peer_python=PYTHON]

8 pairs of 256 ids, half of them the prompt, AdamW. Twice: with the reference's forward in each step, as TRL does unless
told otherwise (ours then reads the same pairs with the reference too), and with its log-probs known before. TRL in
float32, in bfloat16 by autocast and with bfloat16 weights; ours with float32 weights, products in either. Prints a JSON
line for each, with the share of our time in which the machine could do it, and one with the peak memory of new
processes of both sides before and after the case, compiling included.
"""

import itertools
import json
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import roofline
from benchmarks.side_by_side import SHAPES, compare, dpo_settings, dtypes, workers

_STEPS = flags.DEFINE_integer("steps", 3, "Steps of a run.")


def peak(side: str, case: dict[str, Any]) -> list[float]:
    """Peak gigabytes of a new process of a side, before and after the case; alone, for some take most of a machine."""
    with workers((side,)) as (worker, _):
        before = worker.ask(task="peak", case={})["bytes"]
        worker.ask(task="dpo_step", case=case)
        return [round(x / 1e9, 3) for x in (before, worker.ask(task="peak", case={})["bytes"])]


def main(_: list[str]) -> None:
    """Measures, prints."""
    for shape, reference in itertools.product(SHAPES.value, (True, False)):
        with workers() as (ours, theirs, folder):
            where = str(Path(folder) / shape)
            ours.ask(task="save", case={"shape": shape, "folder": where})
            case = {"shape": shape, "folder": where, "pairs": 8, "prompt": 128, "response": 128}
            case |= {"steps": _STEPS.value, "reference": reference}
            settings = dpo_settings(*dtypes())
            trial = {"pairs": 2} if shape == "135m" else {}
            row = compare(ours, theirs, "dpo_step", case, settings, trial)
            flops = roofline.training(shape, 8, 128, 16, 128) * (4 / 3 if reference else 1)
            row |= roofline.beside(ours, row["ours"]["dtype"], [(0.0, flops, 1)], row["ours"]["seconds"])
            print(json.dumps(row), flush=True)
            for worker in (ours, theirs):
                worker.end()
            chosen = [{n: row[side][n] for n in settings[i][0]} for i, side in enumerate(("ours", "theirs"))]
            found = {side: peak(side, case | how) for side, how in zip(("ours", "theirs"), chosen, strict=True)}
            print(json.dumps({"task": "peak_gb", "shape": shape, "reference": reference, **found}), flush=True)


if __name__ == "__main__":
    app.run(main)

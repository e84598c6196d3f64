"""How long does a DPO step take, compared with TRL's DPOTrainer?

    python -m benchmarks.dpo_step [--shapes=6.5m] [--peer_python=PYTHON]

A step has 8 pairs (--pairs) of 256 ids, half of them the prompt, with AdamW. There are two cases. In the first each
step includes the reference model's forward pass, as by default in TRL (ours then also runs the reference on the same
pairs). In the second the reference log-probs are precomputed. TRL runs in float32, with bfloat16 autocast, and with
bfloat16 weights; ours has float32 weights and products in either dtype. Prints a JSON line per case, with the fraction
of our time that the machine needs at least. A second line has the peak memory of new processes before and after the
case, compilation included.
"""

import itertools
import json
from pathlib import Path

from absl import app, flags

from benchmarks import cases, roofline
from benchmarks.side_by_side import SHAPES, candidate_dtypes, compare, peak_memory, start_workers, training_settings

_STEPS = flags.DEFINE_integer("steps", 3, "Steps of a run.")
_PAIRS = flags.DEFINE_integer("pairs", 8, "Pairs of a step.")


def main(_: list[str]) -> None:
    """Measures and prints."""
    for shape, reference in itertools.product(SHAPES.value, (True, False)):
        with start_workers() as (ours, theirs, folder):
            model_dir = str(Path(folder) / shape)
            ours.request(task="save", case={"shape": shape, "folder": model_dir})
            case = {"shape": shape, "folder": model_dir, "pairs": _PAIRS.value, "prompt": 128, "response": 128}
            case |= {"steps": _STEPS.value, "reference": reference}
            settings = training_settings(*candidate_dtypes())
            trial = {"pairs": min(2, _PAIRS.value)} if cases.SHAPES[shape][2] > 6 else {}
            row = compare(ours, theirs, "dpo_step", case, settings, trial)
            flops = roofline.training_flops(shape, _PAIRS.value, 128, 2 * _PAIRS.value, 128) * (
                4 / 3 if reference else 1
            )
            row |= roofline.machine_share(ours, row["ours"]["dtype"], [(0.0, flops, 1)], row["ours"]["seconds"])
            print(json.dumps(row), flush=True)
            for worker in (ours, theirs):
                worker.close()
            best = {side: {n: row[side][n] for n in settings[i][0]} for i, side in enumerate(("ours", "theirs"))}
            peaks = {side: peak_memory(side, "dpo_step", case | setting) for side, setting in best.items()}
            print(json.dumps({"task": "peak_gb", "shape": shape, "reference": reference, **peaks}), flush=True)


if __name__ == "__main__":
    app.run(main)

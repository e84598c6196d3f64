"""How long does an SFT step take, compared with TRL's SFTTrainer?

    python -m benchmarks.sft_step [--shapes=gemma3_270m_cut] [--peer_python=PYTHON]

A step has 4 rows (--rows) of 512 ids, with AdamW. In the first case the last half of a row are targets, in the second
all but the first 8 ids. TRL runs in float32, with bfloat16 autocast, and with bfloat16 weights; ours has float32
weights and products in either dtype. Prints a JSON line per case, with the fraction of our time that the machine needs
at least. A second line has the peak memory of new processes before and after the case, compilation included.
"""

import itertools
import json
from pathlib import Path

from absl import app, flags

from benchmarks import cases, roofline
from benchmarks.side_by_side import SHAPES, candidate_dtypes, compare, peak_memory, start_workers, training_settings

_STEPS = flags.DEFINE_integer("steps", 2, "Steps of a run.")
_ROWS = flags.DEFINE_integer("rows", 4, "Rows of a step.")
LENGTH = 512


def main(_: list[str]) -> None:
    """Measures and prints."""
    for shape, prompt in itertools.product(SHAPES.value, (LENGTH // 2, 8)):
        with start_workers() as (ours, theirs, folder):
            model_dir = str(Path(folder) / shape)
            ours.request(task="save", case={"shape": shape, "folder": model_dir})
            case = {"shape": shape, "folder": model_dir, "rows": _ROWS.value, "steps": _STEPS.value}
            case |= {"prompt": prompt, "response": LENGTH - prompt}
            settings = training_settings(*candidate_dtypes())
            trial = {"rows": 2, "steps": 1} if cases.SHAPES[shape][2] > 6 else {}
            row = compare(ours, theirs, "sft_step", case, settings, trial)
            flops = roofline.training_flops(shape, _ROWS.value, prompt, _ROWS.value, LENGTH - prompt)
            row |= roofline.machine_share(ours, row["ours"]["dtype"], [(0.0, flops, 1)], row["ours"]["seconds"])
            print(json.dumps(row), flush=True)
            for worker in (ours, theirs):
                worker.close()
            best = {side: {n: row[side][n] for n in settings[i][0]} for i, side in enumerate(("ours", "theirs"))}
            peaks = {side: peak_memory(side, "sft_step", case | setting) for side, setting in best.items()}
            print(json.dumps({"task": "peak_gb", "shape": shape, "prompt": prompt, **peaks}), flush=True)


if __name__ == "__main__":
    app.run(main)

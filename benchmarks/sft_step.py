"""How long does an SFT step take, compared with TRL's SFTTrainer?

    python -m benchmarks.sft_step [--shapes=gemma3_270m_cut] [--peer_python=PYTHON]

A step has 4 rows (--rows) of 512 ids, with AdamW. In the first case the last half of a row are targets, in the second
all but the first 8 ids. TRL runs in float32, with bfloat16 autocast, and with bfloat16 weights; ours has float32
weights and products in either dtype. Prints a JSON line per case, with the fraction of our time that the machine needs
at least. A second line has the peak memory of new processes before and after the case, compilation included.
"""

import itertools

from absl import app, flags

from benchmarks import roofline
from benchmarks.side_by_side import SHAPES
from benchmarks.training import print_step

_STEPS = flags.DEFINE_integer("steps", 2, "Steps of a run.")
_ROWS = flags.DEFINE_integer("rows", 4, "Rows of a step.")
LENGTH = 512


def main(_: list[str]) -> None:
    """Measures and prints."""
    for shape, prompt in itertools.product(SHAPES.value, (LENGTH // 2, 8)):
        case = {"rows": _ROWS.value, "steps": _STEPS.value, "prompt": prompt, "response": LENGTH - prompt}
        flops = roofline.training_flops(shape, _ROWS.value, prompt, _ROWS.value, LENGTH - prompt)
        print_step("sft_step", shape, case, {"rows": 2, "steps": 1}, flops)


if __name__ == "__main__":
    app.run(main)

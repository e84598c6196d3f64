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

from absl import app, flags

from benchmarks import roofline
from benchmarks.side_by_side import SHAPES
from benchmarks.training import print_step

_STEPS = flags.DEFINE_integer("steps", 3, "Steps of a run.")
_PAIRS = flags.DEFINE_integer("pairs", 8, "Pairs of a step.")
LENGTH = 128  # of a prompt, and of a response


def main(_: list[str]) -> None:
    """Measures and prints."""
    for shape, reference in itertools.product(SHAPES.value, (True, False)):
        case = {"pairs": _PAIRS.value, "steps": _STEPS.value, "prompt": LENGTH, "response": LENGTH}
        flops = roofline.training_flops(shape, _PAIRS.value, LENGTH, 2 * _PAIRS.value, LENGTH)
        flops *= 4 / 3 if reference else 1
        print_step("dpo_step", shape, case | {"reference": reference}, {"pairs": min(2, _PAIRS.value)}, flops)


if __name__ == "__main__":
    app.run(main)

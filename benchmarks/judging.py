"""How fast is judging, compared with transformers' generate with num_return_sequences?

    python -m benchmarks.judging [--shapes=6.5m] [--answers=64] [--peer_python=PYTHON]

All judgments share a rubric of 256 ids, followed by 256 ids of prompt and response; 3 votes of 64 tokens each. The peer
processes the whole text of each judgment. Each side uses the batch size and dtype in which it judges half of the
responses fastest. Prints a JSON line, with the fraction of our time that the machine needs at least.
"""

import json
from pathlib import Path

from absl import app, flags

from benchmarks import roofline
from benchmarks.side_by_side import SHAPES, candidate_dtypes, compare, start_workers

_ANSWERS = flags.DEFINE_integer("answers", 64, "Responses to judge.")
RUBRIC, REST, VOTES, NEW = 256, 256, 3, 64


def lower_bound(shape: str, answers: int, dtype: str) -> list[tuple[float, float, int]]:
    """(bytes, FLOPs, repetitions) of the parts: the rubric and the responses are processed once, then one token is
    sampled for all votes at a time. The first token of each vote comes from the prefill."""
    rows, context = answers * VOTES, RUBRIC + REST + NEW / 2
    prefill = roofline.prefill_flops(shape, 1, RUBRIC, wanted=0) + roofline.prefill_flops(shape, answers, REST, RUBRIC)
    step = roofline.decode_cost(shape, rows, RUBRIC + answers * REST + rows * NEW / 2, context, dtype)
    return [(0.0, prefill, 1), (*step, NEW - 1)]


def main(_: list[str]) -> None:
    """Measures and prints."""
    our_dtypes, peer_dtypes = candidate_dtypes()
    with start_workers() as (ours, theirs, folder):
        for shape in SHAPES.value:
            model_dir = str(Path(folder) / shape)
            ours.request(task="save", case={"shape": shape, "folder": model_dir})
            case = {"shape": shape, "folder": model_dir, "prompts": _ANSWERS.value, "samples": VOTES}
            case |= {"length": RUBRIC + REST, "shared": RUBRIC, "new": NEW}
            settings = (
                [{"dtype": d, "rows": VOTES * _ANSWERS.value} for d in our_dtypes],
                [{"dtype": d, "batch": batch} for d in peer_dtypes for batch in (8, 16, 32)],
            )
            trial = {"prompts": min(32, _ANSWERS.value)}
            row = compare(ours, theirs, "generate", case, settings, trial)
            dtype = row["ours"]["dtype"]
            parts = lower_bound(shape, _ANSWERS.value, dtype)
            row |= roofline.machine_share(ours, dtype, parts, row["ours"]["seconds"])
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)

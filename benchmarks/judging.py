"""How fast are answers judged, beside transformers' generate with num_return_sequences?

    python -m benchmarks.judging [--shapes=6.5m] [--answers=64] [--peer_python=PYTHON]

A rubric of 256 ids that all judgements share, 256 more of prompt and answer, 3 votes of 64 tokens each. The peer reads
the whole text of each judgement, in the batch and dtype in which it is fastest. Prints a JSON line.
"""

import json
from pathlib import Path

from absl import app, flags

from benchmarks.side_by_side import SHAPES, compare, workers

_ANSWERS = flags.DEFINE_integer("answers", 64, "Answers judged.")
DTYPES = ("float32", "bfloat16")


def main(_: list[str]) -> None:
    """Measures, prints."""
    with workers() as (ours, theirs, folder):
        for shape in SHAPES.value:
            where = str(Path(folder) / shape)
            ours.ask(task="save", case={"shape": shape, "folder": where})
            case = {"shape": shape, "folder": where, "prompts": _ANSWERS.value, "samples": 3}
            case |= {"length": 512, "shared": 256, "new": 64}
            settings = (
                [{"dtype": d, "rows": rows} for d in DTYPES for rows in (96, 192)],
                [{"dtype": d, "batch": batch} for d in DTYPES for batch in (8, 16, 32)],
            )
            print(json.dumps(compare(ours, theirs, "generate", case, settings)), flush=True)


if __name__ == "__main__":
    app.run(main)

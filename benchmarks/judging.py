"""How fast are answers judged, beside transformers' generate with num_return_sequences?

    python -m benchmarks.judging [--shapes=6.5m] [--answers=64] [--peer_python=PYTHON]

A rubric of 256 ids that all judgments share, 256 more of prompt and answer, 3 votes of 64 tokens each. The peer reads
the whole text of each judgment. Each side in the batch and dtype in which it judges half the answers fastest. Prints a
JSON line, with the share of our time in which the machine could do it.
"""

import json
from pathlib import Path

from absl import app, flags

from benchmarks import roofline
from benchmarks.side_by_side import SHAPES, compare, dtypes, workers

_ANSWERS = flags.DEFINE_integer("answers", 64, "Answers judged.")
RUBRIC, REST, VOTES, NEW = 256, 256, 3, 64


def least(shape: str, answers: int, dtype: str) -> list[tuple[float, float, int]]:
    """Bytes, FLOPs, repeats: the rubric and the answers read once, then tokens drawn for all votes at the same time, of
    which the first comes from what reading gives."""
    rows, seen = answers * VOTES, RUBRIC + REST + NEW / 2
    read = roofline.reading(shape, 1, RUBRIC, wanted=0) + roofline.reading(shape, answers, REST, RUBRIC)
    step = roofline.drawing(shape, rows, RUBRIC + answers * REST + rows * NEW / 2, seen, dtype)
    return [(0.0, read, 1), (*step, NEW - 1)]


def main(_: list[str]) -> None:
    """Measures, prints."""
    of_ours, of_theirs = dtypes()
    with workers() as (ours, theirs, folder):
        for shape in SHAPES.value:
            where = str(Path(folder) / shape)
            ours.ask(task="save", case={"shape": shape, "folder": where})
            case = {"shape": shape, "folder": where, "prompts": _ANSWERS.value, "samples": VOTES}
            case |= {"length": RUBRIC + REST, "shared": RUBRIC, "new": NEW}
            settings = (
                [{"dtype": d, "rows": VOTES * _ANSWERS.value} for d in of_ours],
                [{"dtype": d, "batch": batch} for d in of_theirs for batch in (8, 16, 32)],
            )
            trial = {"prompts": min(32, _ANSWERS.value)}
            row = compare(ours, theirs, "generate", case, settings, trial)
            dtype = row["ours"]["dtype"]
            row |= roofline.beside(ours, dtype, least(shape, _ANSWERS.value, dtype), row["ours"]["seconds"])
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)

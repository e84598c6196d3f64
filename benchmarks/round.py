"""How long does a whole round take, beside transformers and TRL?

    python -m benchmarks.round [--shapes=6.5m,135m] [--peer_python=PYTHON]

32 prompts of 128 ids, 4 answers of 128 tokens each; 3 votes of 64 tokens on each answer behind a rubric of 256 ids and
256 more; DPO on 32 pairs of 128 + 128 ids in steps of 8, the reference read once for each pair. Every part in the
setting in which a side does a smaller case of it fastest, all parts one after the other in each run. What lies between
them (text, files, pairs) is not in it. Prints a JSON line a model, with settings and the median of each part.
"""

import json
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.side_by_side import DTYPES, SHAPES, Worker, dpo_settings, fastest, in_turn, workers

PARTS: list[dict[str, Any]] = [  # a trial is what is smaller where settings are tried
    {"task": "generate", "prompts": 32, "samples": 4, "length": 128, "new": 128, "trial": {"new": 32}},
    {
        "task": "generate",
        "prompts": 128,
        "samples": 3,
        "length": 512,
        "shared": 256,
        "new": 64,
        "trial": {"prompts": 32, "new": 16},
    },
    {
        "task": "dpo_step",
        "pairs": 8,
        "prompt": 128,
        "response": 128,
        "steps": 2,
        "reference": True,
        "times": 4,
        "trial": {},
    },
]
_WARM = flags.DEFINE_bool("warm_peer", True, "Whether the other side, which compiles nothing, does a round before.")
_BATCHES = flags.DEFINE_list("peer_batches", ["8", "32"], "Prompts at once that the other side tries.")


def prepared(worker: Worker, case: dict[str, Any], settings: dict[str, list[dict]], warm: bool) -> list[dict[str, Any]]:
    """The setting of each part; the worker is left with the whole round, which it has done once if `warm`."""
    best = [fastest(worker, part["task"], case | part | part["trial"], settings[part["task"]]) for part in PARTS]
    parts = [case | part | b for part, b in zip(PARTS, best, strict=True)]
    worker.ask(task="several", case={"parts": parts}, run=warm)
    return best


def main(_: list[str]) -> None:
    """Measures, prints."""
    dpo_ours, dpo_theirs = dpo_settings(DTYPES.value)
    of_ours = {"generate": [{"dtype": d, "rows": 128} for d in DTYPES.value], "dpo_step": dpo_ours}
    batches = [{"dtype": d, "batch": int(batch)} for d in DTYPES.value for batch in _BATCHES.value]
    of_theirs = {"generate": batches, "dpo_step": dpo_theirs}
    with workers() as (ours, theirs, folder):
        for shape in SHAPES.value:
            case = {"shape": shape, "folder": str(Path(folder) / shape)}
            ours.ask(task="save", case=case)
            sides = ((ours, of_ours, True), (theirs, of_theirs, _WARM.value))
            best = [prepared(worker, case, tried, warm) for worker, tried, warm in sides]
            row = in_turn(ours, theirs, [{"parts": b} for b in best])
            print(json.dumps({"task": "round", "shape": shape, **row}), flush=True)


if __name__ == "__main__":
    app.run(main)

"""How long does a whole round take, beside transformers and TRL?

    python -m benchmarks.round [--shapes=6.5m,135m] [--peer_python=PYTHON]

32 prompts of 128 ids, 4 answers of 128 tokens each; 3 votes of 64 tokens on each answer behind a rubric of 256 ids and
256 more; DPO on 32 pairs of 128 + 128 ids in steps of 8, the reference read once for each pair. Every part in the
setting in which a side does a smaller case of it fastest, all parts one after the other in each run. What lies between
them (text, files, pairs) is not in it. Prints a JSON line a model, with settings and the median of each part, and each
run as it ends to the error output.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.side_by_side import SHAPES, TURNS, dpo_settings, dtypes, fastest, summary, workers

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
_WARM = {
    "ours": flags.DEFINE_bool("warm_ours", True, "Whether our side does a round before; without it compiling counts."),
    "theirs": flags.DEFINE_bool("warm_peer", True, "Whether the other side, which compiles nothing, does so too."),
}
_BATCHES = flags.DEFINE_list("peer_batches", ["8", "32"], "Prompts at once that the other side tries.")


def measured(side: str, case: dict[str, Any], tried: list[list[dict]]) -> tuple[list[dict], dict[str, Any], dict]:
    """The setting of each part, the fastest of those tried; the seconds of a round with them, and the versions. In a
    process that ends then: with large models memory does not hold both sides'."""
    with workers((side,)) as (worker, _):
        asked = zip(PARTS, tried, strict=True)
        best = [fastest(worker, part["task"], case | part | part["trial"], settings) for part, settings in asked]
        parts = [case | part | b for part, b in zip(PARTS, best, strict=True)]
        worker.ask(task="several", case={"parts": parts}, run=_WARM[side].value)
        return best, worker.ask(run=True), worker.versions


def main(_: list[str]) -> None:
    """Measures, prints."""
    of_ours, of_theirs = dtypes()
    dpo_ours, dpo_theirs = dpo_settings(of_ours, of_theirs)
    drawing = [{"dtype": d, "rows": 128} for d in of_ours]
    batches = [{"dtype": d, "batch": int(batch)} for d in of_theirs for batch in _BATCHES.value]
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES.value:
            case = {"shape": shape, "folder": str(Path(folder) / shape)}
            with workers(("ours",)) as (worker, _):
                worker.ask(task="save", case=case)
            tried = {"ours": [drawing, drawing, dpo_ours], "theirs": [batches, batches, dpo_theirs]}
            runs, versions = [], {}
            for _turn in range(TURNS.value):
                pair = {}
                for side in tried:
                    best, pair[side], of_side = measured(side, case, tried[side])
                    tried[side], versions = [[b] for b in best], versions | of_side
                    print(json.dumps({"side": side} | pair[side]), file=sys.stderr, flush=True)
                runs.append(tuple(pair.values()))
            settings = [{"parts": [b for (b,) in of_side]} for of_side in tried.values()]
            print(json.dumps({"task": "round", "shape": shape, **summary(runs, settings, versions)}), flush=True)


if __name__ == "__main__":
    app.run(main)

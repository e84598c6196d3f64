"""How long does a whole round take, compared with transformers and TRL?

    python -m benchmarks.round [--shapes=6.5m,135m] [--peer_python=PYTHON]

A round has 32 prompts of 128 ids with 4 responses of 128 tokens each; 3 votes of 64 tokens on each response, after a
rubric of 256 ids and 256 more; and DPO on 32 pairs of 128 + 128 ids in steps of 8, with the reference run once per
pair. Each side does each part in the setting in which a smaller case was fastest. A run does all parts one after the
other. Work between the parts (text, files, pairs) is not measured. Prints a JSON line per model, with the settings and
the median of each part. Each run is printed to stderr when it ends.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.side_by_side import (
    SHAPES,
    TURNS,
    candidate_dtypes,
    fastest_setting,
    start_workers,
    summarize,
    training_settings,
)

PARTS: list[dict[str, Any]] = [  # "trial": the smaller sizes with which the settings are compared
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
    "ours": flags.DEFINE_bool("warm_ours", True, "Whether our side warms up with a round; else compilation counts."),
    "theirs": flags.DEFINE_bool("warm_peer", True, "Whether the peer, which compiles nothing, warms up too."),
}
_BATCHES = flags.DEFINE_list("peer_batches", ["8", "32"], "Batch sizes that the peer tries, in prompts.")


def measure_side(side: str, case: dict[str, Any], candidates: list[list[dict]]) -> tuple[list[dict], dict, dict]:
    """Measures one round of one side in a new process, since memory may not hold both sides' large models.

    Args:
      side: "ours" or "theirs".
      case: the model.
      candidates: for each part, the settings to try.

    Returns:
      The fastest setting of each part, the seconds of a round with them, and the versions.
    """
    with start_workers((side,)) as (worker, _):
        trials = zip(PARTS, candidates, strict=True)
        best = [
            fastest_setting(worker, part["task"], case | part | part["trial"], settings) for part, settings in trials
        ]
        parts = [case | part | setting for part, setting in zip(PARTS, best, strict=True)]
        worker.request(task="several", case={"parts": parts}, run=_WARM[side].value)
        return best, worker.request(run=True), worker.versions


def main(_: list[str]) -> None:
    """Measures and prints."""
    our_dtypes, peer_dtypes = candidate_dtypes()
    our_dpo, peer_dpo = training_settings(our_dtypes, peer_dtypes)
    our_sampling = [{"dtype": d, "rows": 128} for d in our_dtypes]
    peer_sampling = [{"dtype": d, "batch": int(batch)} for d in peer_dtypes for batch in _BATCHES.value]
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES.value:
            case = {"shape": shape, "folder": str(Path(folder) / shape)}
            with start_workers(("ours",)) as (worker, _):
                worker.request(task="save", case=case)
            candidates = {
                "ours": [our_sampling, our_sampling, our_dpo],
                "theirs": [peer_sampling, peer_sampling, peer_dpo],
            }
            runs, versions = [], {}
            for _turn in range(TURNS.value):
                times = {}
                for side in candidates:
                    best, times[side], side_versions = measure_side(side, case, candidates[side])
                    candidates[side], versions = [[setting] for setting in best], versions | side_versions
                    print(json.dumps({"side": side} | times[side]), file=sys.stderr, flush=True)
                runs.append(tuple(times.values()))
            settings = [{"parts": [setting for (setting,) in parts]} for parts in candidates.values()]
            print(json.dumps({"task": "round", "shape": shape, **summarize(runs, settings, versions)}), flush=True)


if __name__ == "__main__":
    app.run(main)

"""A training step of both sides: its seconds, its share of the machine, and its peak memory."""

import json
from pathlib import Path
from typing import Any

from benchmarks import cases, roofline
from benchmarks.side_by_side import candidate_dtypes, compare, start_workers, training_settings


def print_step(task: str, shape: str, case: dict[str, Any], trial: dict[str, Any], flops: float) -> None:
    """Prints a line with the times of a step, and one with the peak memory of new processes before and after it.

    Args:
      task: "dpo_step" or "sft_step".
      shape: of the model.
      case: the sizes of the step.
      trial: smaller sizes with which the settings of a deep model are compared.
      flops: of the step, at least.
    """
    with start_workers() as (ours, theirs, folder):
        sizes = case
        case = {"shape": shape, "folder": str(Path(folder) / shape), **sizes}
        ours.request(task="save", case=case)
        settings = training_settings(*candidate_dtypes())
        row = compare(ours, theirs, task, case, settings, trial if cases.SHAPES[shape][2] > 6 else {})
        row |= roofline.machine_share(ours, row["ours"]["dtype"], [(0.0, flops, 1)], row["ours"]["seconds"])
        print(json.dumps(row), flush=True)
        for worker in (ours, theirs):
            worker.close()
        best = {side: {n: row[side][n] for n in settings[i][0]} for i, side in enumerate(("ours", "theirs"))}
        peaks = {side: _peak_memory(side, task, case | setting) for side, setting in best.items()}
        print(json.dumps({"task": "peak_gb", "step": task, "shape": shape, **sizes, **peaks}), flush=True)


def _peak_memory(side: str, task: str, case: dict[str, Any]) -> list[float]:
    """Peak gigabytes of a new process of one side, before and after the case. It runs alone, since some cases fill most
    of a machine."""
    with start_workers((side,)) as (worker, _):
        before = worker.request(task="peak", case={})["bytes"]
        worker.request(task=task, case=case)
        return [round(x / 1e9, 3) for x in (before, worker.request(task="peak", case={})["bytes"])]

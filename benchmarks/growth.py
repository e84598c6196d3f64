"""How do time and memory of a round grow with its prompts?

    python -m benchmarks.growth [--rows=10,100,1000,10000]

Trains M1 of the smallest preset once. From it, runs a round for each number of prompts (written by the toy world), in a
new process after one that compiles. Prints a JSON line for each: seconds of the stages, peak memory of the process, and
the exponent b with which each has grown since the line before, as rows^b (1 is proportional). A last line extrapolates
to 100,000 prompts, by the straight line through the last two.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags
from etils import epath

from selfreward_jax.cli import program
from selfreward_jax.report import time_report
from selfreward_jax.stages.table import TABLE

ROOT = Path(__file__).parents[1]
_ROWS = flags.DEFINE_list("rows", ["10", "100", "1000", "10000"], "Numbers of prompts.")
STAGES = ("prompts", "responses", "judgments", "pairs")
# M1 is trained already: only the round is measured.
ROUND = {"sft.epochs": 0.1, "sft.lr": 1e-6, "sft.lr_end": 1e-7, "dpo.epochs": 1.0, "checkpoint_every": 0}
ROUND |= {"prompts.writer": "world", "prompts.max_attempts": 1 << 20}


def run(iterations: int, workdir: Path, settings: dict[str, Any]) -> float:
    """Runs the main program. Returns the peak memory of its process in GB."""
    command = [sys.executable, "-m", "selfreward_jax.main", f"--config=configs/iter{iterations}.py:micro"]
    command += [f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in settings.items())]
    with (workdir.parent / "log").open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the run in {workdir} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1e6


def measure_round(workdir: Path, model: Path, rows: int) -> dict[str, float]:
    """Seconds of each stage of a round and the peak memory."""
    peak = run(2, workdir, {**ROUND, "model.init": model, "prompts.count": rows})
    stages = time_report.read(epath.Path(workdir), TABLE.kind_of)["stages"]
    seconds = {name: sum(stages.get(f"m2 {name}", {}).values()) for name in (*STAGES, "dpo")}
    return {**{name: round(s, 3) for name, s in seconds.items() if s}, "peak_gb": round(peak, 3)}


def main(_: list[str]) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as folder:
        base, model = Path(folder) / "base", Path(folder) / "m1"
        run(1, base, {})
        if program.main(["export", f"--workdir={base}", "--model=m1", f"--out={model}"]):
            raise RuntimeError("M1 was not exported")
        measurements: list[tuple[int, dict[str, float]]] = []
        for rows in map(int, _ROWS.value):
            measure_round(Path(folder) / f"{rows}-compiles", model, rows)
            now = measure_round(Path(folder) / f"{rows}", model, rows)
            row: dict[str, Any] = {"rows": rows, **now}
            if measurements:
                last_rows, before = measurements[-1]
                factor = math.log(rows / last_rows)
                row["exponents"] = {n: round(math.log(now[n] / before[n]) / factor, 2) for n in now if n in before}
            measurements.append((rows, now))
            print(json.dumps(row), flush=True)
    if len(measurements) > 1:
        (few, before), (many, now) = measurements[-2:]
        slopes = {name: (now[name] - before[name]) / (many - few) for name in now if name in before}
        print(json.dumps({"rows": 100_000, **{n: round(now[n] + s * (100_000 - many), 1) for n, s in slopes.items()}}))


if __name__ == "__main__":
    app.run(main)

"""Two programs measured side by side: each in a process of its own, asked in turn for one run of the same case.

A worker answers JSON lines: {"task", "case"} prepares and warms up (not with "run": false), {"run": true} runs once.
While one works the other waits for its input, so that neither takes anything from the other.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

ROOT = Path(__file__).parents[1]
TRIED = 3.0
PEER = flags.DEFINE_string("peer_python", sys.executable, "Interpreter with torch, transformers and TRL.")
TURNS = flags.DEFINE_integer("turns", 5, "Runs of each side, in turn.")
SHAPES = flags.DEFINE_list("shapes", ["6.5m"], "Models, of benchmarks/cases.py.")
DTYPES = flags.DEFINE_list(
    "dtypes", ["float32", "bfloat16"], "What is tried; where products of bfloat16 are emulated those take hours."
)
PEER_DTYPES = flags.DEFINE_list("peer_dtypes", None, "What the other side tries, if not the same.")


Run = Callable[[], dict[str, Any]]


def serve(tasks: dict[str, Callable[[dict[str, Any]], Run]], versions: dict[str, str]) -> None:
    """Answers what is asked on standard input until it ends, on the file number that stands in REPLIES. Beside its
    tasks a worker knows `several`: the `parts` of a case, each with its task, one after the other; and `peak`: the most
    memory that the process has held, in bytes."""

    def several(case: dict[str, Any]) -> Run:
        runs = [tasks[part["task"]](part) for part in case["parts"]]

        def run() -> dict[str, Any]:
            seconds = [run()["seconds"] * part.get("times", 1) for run, part in zip(runs, case["parts"], strict=True)]
            return {"seconds": sum(seconds), "parts": seconds}

        return run

    def peak(_: dict[str, Any]) -> Run:
        return lambda: {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}

    tasks, run = tasks | {"several": several, "peak": peak}, dict
    with os.fdopen(int(os.environ["REPLIES"]), "w", buffering=1) as replies:
        replies.write(json.dumps(versions) + "\n")
        for line in sys.stdin:
            asked = json.loads(line)
            if "task" in asked:
                run = tasks[asked["task"]](asked["case"])
            replies.write(json.dumps(run() if asked.get("run", True) else {}) + "\n")


class Worker:
    """A process that serves; `versions` is what it says of itself."""

    def __init__(self, python: str, module: str, log: Any) -> None:
        reading, writing = os.pipe()
        environment = os.environ | {"REPLIES": str(writing), "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "")}
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # of a GPU that both share
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.{module}"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[writing],
            text=True,
        )
        os.close(writing)
        self.replies = os.fdopen(reading)
        self.versions = self._reply()

    def _reply(self) -> dict[str, Any]:
        line = self.replies.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended; its output is in the log")
        return json.loads(line)

    def ask(self, **what: Any) -> dict[str, Any]:
        """Its answer."""
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def end(self) -> None:
        """Lets it go."""
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def workers(sides: tuple[str, ...] = ("ours", "theirs")) -> Iterator[tuple[Any, ...]]:
    """A worker of each side, and a folder for models."""
    python = {"ours": sys.executable, "theirs": PEER.value}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        log = stack.enter_context((Path(tempfile.gettempdir()) / "side_by_side.log").open("a"))
        found = [Worker(python[side], side, log) for side in sides]
        for worker in found:
            stack.callback(worker.end)
        yield *found, folder


def compare(
    ours: Worker,
    theirs: Worker,
    task: str,
    case: dict[str, Any],
    settings: tuple[list[dict], list[dict]],
    trial: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Both sides at their best setting, run in turn.

    Args:
      ours, theirs, task, case: who, and what of them.
      settings: what each side tries; the fastest is kept.
      trial: what is smaller in a case in which a setting is only tried.

    Returns:
      Of each side the setting, the median seconds and the interquartile range; and how many times faster ours is.
    """
    tried = zip((ours, theirs), settings, strict=True)
    best = [fastest(worker, task, case | (trial or {}), of_side) for worker, of_side in tried]
    for worker, setting in zip((ours, theirs), best, strict=True):
        worker.ask(task=task, case=case | setting)
    row = {"task": task, **{k: v for k, v in case.items() if k != "folder"}}
    return row | in_turn(ours, theirs, best)


def fastest(worker: Worker, task: str, case: dict[str, Any], tried: list[dict]) -> dict[str, Any]:
    """The setting in which a side is fastest, by its median run. All are tried twice in turn, since a machine is busier
    at one time than at another, for TRIED seconds each time after a run that warms up. The only one is not tried."""
    if len(tried) == 1:
        return tried[0]
    times: list[list[float]] = [[] for _ in tried]
    for _ in range(2):
        for setting, of_setting in zip(tried, times, strict=True):
            first = worker.ask(task=task, case=case | setting)["seconds"]
            of_setting += [worker.ask(run=True)["seconds"] for _ in range(max(1, round(TRIED / first)))]
    medians = [statistics.median(of_setting) for of_setting in times]
    return tried[medians.index(min(medians))]


def dtypes() -> tuple[list[str], list[str]]:
    """Those that our side tries, and the other."""
    return DTYPES.value, PEER_DTYPES.value or DTYPES.value


def dpo_settings(of_ours: list[str], of_theirs: list[str]) -> tuple[list[dict], list[dict]]:
    """What either side tries of a DPO step in its dtypes: ours float32 weights and products in each of them; TRL
    float32, bfloat16 by autocast, and bfloat16 weights."""
    theirs = [
        {"dtype": "float32", "autocast": False},
        {"dtype": "float32", "autocast": True},
        {"dtype": "bfloat16", "autocast": False},
    ]
    possible = [s for s in theirs if ("bfloat16" if s["autocast"] else s["dtype"]) in of_theirs]
    return [{"dtype": dtype} for dtype in of_ours], possible


def in_turn(ours: Worker, theirs: Worker, settings: list[dict]) -> dict[str, Any]:
    """Runs what both have prepared in turn. Of each side its settings, median seconds and quartiles, and the median of
    each part if there are several; and the ratio."""
    runs = [(ours.ask(run=True), theirs.ask(run=True)) for _ in range(TURNS.value)]
    return summary(runs, settings, ours.versions | theirs.versions)


def summary(runs: list[tuple[dict, dict]], settings: list[dict], versions: dict[str, str]) -> dict[str, Any]:
    """What `in_turn` returns, of runs of ours and theirs."""
    row: dict[str, Any] = {}
    for name, setting, of_side in zip(("ours", "theirs"), settings, zip(*runs, strict=True), strict=True):
        low, median, high = np.quantile([run["seconds"] for run in of_side], (0.25, 0.5, 0.75)).tolist()
        row[name] = {**setting, "seconds": round(median, 4), "quartiles": [round(low, 4), round(high, 4)]}
        if "parts" in of_side[0]:
            parts = zip(*(run["parts"] for run in of_side), strict=True)
            row[name]["seconds_of_parts"] = [round(statistics.median(part), 3) for part in parts]
    row["ratio"] = round(statistics.median(b["seconds"] / a["seconds"] for a, b in runs), 2)
    return row | {"versions": versions}

"""Compares two programs: each in its own process, and in turn they run the same case once.

A worker reads requests as JSON lines. {"task", "case"} prepares a case and warms up (not with "run": false).
{"run": true} runs it once. While one worker runs, the other waits for input, so they do not compete for the machine.
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
TRIAL_S = 3.0  # seconds for which a candidate setting is timed, twice
PEER = flags.DEFINE_string("peer_python", sys.executable, "Interpreter with torch, transformers and TRL.")
TURNS = flags.DEFINE_integer("turns", 5, "Runs of each side, in turn.")
SHAPES = flags.DEFINE_list("shapes", ["6.5m"], "Models in benchmarks/cases.py.")
DTYPES = flags.DEFINE_list(
    "dtypes",
    ["float32", "bfloat16"],
    "Dtypes to try; leave out bfloat16 where its products are emulated, which takes hours.",
)
PEER_DTYPES = flags.DEFINE_list("peer_dtypes", None, "Dtypes that the peer tries, if not the same.")


Run = Callable[[], dict[str, Any]]


def serve(tasks: dict[str, Callable[[dict[str, Any]], Run]], versions: dict[str, str]) -> None:
    """Handles requests from standard input until it ends; replies go to the file descriptor in the variable REPLIES.

    Two tasks are added to `tasks`. `several` runs the `parts` of a case, each with its own task, one after the other.
    `peak` gives the peak memory of the process in bytes.

    Args:
      tasks: functions by name, which prepare a case and return a function that runs it once.
      versions: of the libraries; the first reply.
    """

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
            request = json.loads(line)
            if "task" in request:
                run = tasks[request["task"]](request["case"])
            replies.write(json.dumps(run() if request.get("run", True) else {}) + "\n")


class Worker:
    """A worker process; `versions` has the versions of its libraries."""

    def __init__(self, python: str, module: str, log: Any) -> None:
        reading, writing = os.pipe()
        environment = os.environ | {"REPLIES": str(writing), "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "")}
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # both share the GPU
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
            raise RuntimeError(f"{self.process.args} ended; its output is in {tempfile.gettempdir()}/side_by_side.log")
        return json.loads(line)

    def request(self, **fields: Any) -> dict[str, Any]:
        """Sends a request. Returns the reply."""
        self.process.stdin.write(json.dumps(fields) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def start_workers(sides: tuple[str, ...] = ("ours", "theirs")) -> Iterator[tuple[Any, ...]]:
    """A worker for each side, and a temporary folder for models."""
    python = {"ours": sys.executable, "theirs": PEER.value}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        log = stack.enter_context((Path(tempfile.gettempdir()) / "side_by_side.log").open("a"))
        started = [Worker(python[side], side, log) for side in sides]
        for worker in started:
            stack.callback(worker.close)
        yield *started, folder


def compare(
    ours: Worker,
    theirs: Worker,
    task: str,
    case: dict[str, Any],
    settings: tuple[list[dict], list[dict]],
    trial: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs both sides in turn, each at its fastest setting.

    Args:
      ours, theirs: the workers.
      task, case: what they run.
      settings: the candidate settings of each side.
      trial: smaller sizes of the case with which the candidates are compared.

    Returns:
      For each side the setting, the median seconds and the quartiles; and how many times faster ours is.
    """
    sides = zip((ours, theirs), settings, strict=True)
    best = [fastest_setting(worker, task, case | (trial or {}), candidates) for worker, candidates in sides]
    for worker, setting in zip((ours, theirs), best, strict=True):
        worker.request(task=task, case=case | setting)
    row = {"task": task, **{k: v for k, v in case.items() if k != "folder"}}
    return row | run_in_turn(ours, theirs, best)


def fastest_setting(worker: Worker, task: str, case: dict[str, Any], candidates: list[dict]) -> dict[str, Any]:
    """The setting with the fastest median run of one side.

    After a warm-up run each setting is timed for TRIAL_S seconds. All are timed twice in turn, since a machine is
    busier at some times than at others. A single candidate is not timed.
    """
    if len(candidates) == 1:
        return candidates[0]
    times: list[list[float]] = [[] for _ in candidates]
    for _ in range(2):
        for setting, seconds in zip(candidates, times, strict=True):
            first = worker.request(task=task, case=case | setting)["seconds"]
            seconds += [worker.request(run=True)["seconds"] for _ in range(max(1, round(TRIAL_S / first)))]
    medians = [statistics.median(seconds) for seconds in times]
    return candidates[medians.index(min(medians))]


def candidate_dtypes() -> tuple[list[str], list[str]]:
    """The dtypes that our side and the peer try."""
    return DTYPES.value, PEER_DTYPES.value or DTYPES.value


def training_settings(our_dtypes: list[str], peer_dtypes: list[str]) -> tuple[list[dict], list[dict]]:
    """The candidate settings of a training step for both sides, in their dtypes.

    Ours has float32 weights, with products in each dtype, and keeps everything for the backward pass or the products
    alone. TRL has float32, bfloat16 autocast, and bfloat16 weights.
    """
    settings = [
        {"dtype": "float32", "autocast": False},
        {"dtype": "float32", "autocast": True},
        {"dtype": "bfloat16", "autocast": False},
    ]
    possible = [s for s in settings if ("bfloat16" if s["autocast"] else s["dtype"]) in peer_dtypes]
    return [{"dtype": dtype, "remat": remat} for dtype in our_dtypes for remat in ("none", "dots")], possible


def run_in_turn(ours: Worker, theirs: Worker, settings: list[dict]) -> dict[str, Any]:
    """Runs the prepared case of both sides in turn. Returns the summary of the runs."""
    runs = [(ours.request(run=True), theirs.request(run=True)) for _ in range(TURNS.value)]
    return summarize(runs, settings, ours.versions | theirs.versions)


def summarize(runs: list[tuple[dict, dict]], settings: list[dict], versions: dict[str, str]) -> dict[str, Any]:
    """A summary of pairs of runs (ours, theirs): for each side its setting, the median seconds and quartiles, and the
    median of each part if there are several; and the ratio."""
    row: dict[str, Any] = {}
    for name, setting, side_runs in zip(("ours", "theirs"), settings, zip(*runs, strict=True), strict=True):
        low, median, high = np.quantile([run["seconds"] for run in side_runs], (0.25, 0.5, 0.75)).tolist()
        row[name] = {**setting, "seconds": round(median, 4), "quartiles": [round(low, 4), round(high, 4)]}
        if "parts" in side_runs[0]:
            parts = zip(*(run["parts"] for run in side_runs), strict=True)
            row[name]["seconds_of_parts"] = [round(statistics.median(part), 3) for part in parts]
    row["ratio"] = round(statistics.median(b["seconds"] / a["seconds"] for a, b in runs), 2)
    return row | {"versions": versions}

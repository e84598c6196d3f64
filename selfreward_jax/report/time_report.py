"""What a run's time was spent on, over all its starts, and how much of it was lost: read from events.jsonl."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

STAGE_KINDS = {
    "training": ("pretrain", "sft", "dpo"),
    "sampling": ("prompts", "responses", "answers", "drawn"),
    "judging": ("judgments", "probes", "judged"),
}
KINDS = (*STAGE_KINDS, "compiling", "saving", "loading", "waiting", "other")


def read(workdir: epath.Path) -> dict[str, Any]:
    """Of a working directory: how often a process began there; its seconds by stage and kind; those that were spent on
    what no disk has, as far as they are known: a process that was killed cannot tell of its last moments.

    Returns:
      {starts, peak_memory_bytes, stages: {stage: {kind: seconds}}, lost: {stage: {kind: seconds}}}, kinds as in
      `KINDS`; the peak is of all processes that wrote the log.
    """
    return summarize(events(workdir / "events.jsonl"))


def events(log: epath.Path) -> Iterator[dict[str, Any]]:
    """The events of a log, none if there is no log."""
    for line in log.read_text().split("\n") if log.exists() else ():
        try:
            event = json.loads(line)
        except ValueError:  # a kill has torn it
            continue
        if isinstance(event, dict):
            yield event


def summarize(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The same of the log's events."""
    starts = peak = 0
    kept: dict[str, Counter] = {}
    lost: dict[str, Counter] = {}
    pending: dict[str, Counter] = {}
    for event in events:
        if event.get("begins"):
            starts += 1
            _move(pending, lost, list(pending))
        peak = max(peak, event.get("peak_memory_bytes", 0))
        for stage, kinds in event.get("spent", {}).items():
            of = pending.setdefault(stage, Counter())
            for kind, seconds in kinds.items():
                of[kind or stage_kind(stage)] += seconds
        if event.get("kept"):
            _move(pending, kept, [stage for stage in event["spent"] if stage in pending])
    _move(pending, lost, list(pending))
    return {"starts": starts, "peak_memory_bytes": peak, "stages": _plain(kept), "lost": _plain(lost)}


def _move(source: dict[str, Counter], to: dict[str, Counter], stages: list[str]) -> None:
    for stage in stages:
        to.setdefault(stage, Counter()).update(source.pop(stage))


def _plain(of: dict[str, Counter]) -> dict[str, dict[str, float]]:
    return {
        stage: {kind: round(kinds[kind], 3) for kind in KINDS if kinds[kind] >= 0.0005} for stage, kinds in of.items()
    }


def stage_kind(stage: str) -> str:
    """What a stage's own work is."""
    last = stage.replace("_", " ").rpartition(" ")[2]
    return next((kind for kind, names in STAGE_KINDS.items() if last in names), "other")


def totals(stages: dict[str, dict[str, float]]) -> dict[str, float]:
    """Seconds by kind, of all stages together."""
    return {kind: s for kind in KINDS if (s := round(sum(kinds.get(kind, 0.0) for kinds in stages.values()), 3))}


def line(found: dict[str, Any]) -> str:
    """The totals on one line."""
    parts = [f"{kind} {seconds:.1f}" for kind, seconds in totals(found["stages"]).items()]
    lost = sum(totals(found["lost"]).values())
    return f"seconds: {', '.join(parts)}; lost {lost:.1f} in {found['starts']} start{'s' * (found['starts'] != 1)}"


def table(found: dict[str, Any]) -> list[str]:
    """A line for each stage, with its seconds by kind; what was lost last."""
    rows = {stage or "between stages": kinds for stage, kinds in found["stages"].items()}
    rows["all"] = totals(found["stages"])
    rows["lost"] = totals(found["lost"])
    width = max(map(len, rows))
    lines = [f"{'seconds':{width}s}  " + "  ".join(f"{kind:>9s}" for kind in KINDS)]
    for name, kinds in rows.items():
        cells = (f"{kinds[kind]:9.1f}" if kind in kinds else f"{'-':>9s}" for kind in KINDS)
        lines.append(f"{name:{width}s}  " + "  ".join(cells))
    return [*lines, f"in {found['starts']} start{'s' * (found['starts'] != 1)}"]

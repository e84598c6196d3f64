"""How a run's time was spent over all its starts, and how much of it was lost: read from events.jsonl."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from selfreward_jax.runs.log import EVENTS_FILE, read_events
from selfreward_jax.telemetry.numbers import three_digits

KINDS = ("training", "sampling", "judging", "compiling", "saving", "loading", "waiting", "other")

Seconds = Counter[str]  # seconds by kind
KindOf = Callable[[str], str]


def read(workdir: epath.Path, kind_of: KindOf) -> dict[str, Any]:
    """The time report of a working directory.

    Args:
      workdir: the working directory.
      kind_of: the kind of a stage's own work, from its label in the log; `StageTable.kind_of`.

    Returns:
      `starts`, how often a process started; `stages`, {stage: {kind: seconds}} of work that is on disk; `lost`, the
      same for work that is not on disk, as far as it is known (a killed process cannot log its last moments);
      `peak_memory_bytes`, over all processes that wrote the log. The kinds are those of `KINDS`.
    """
    return summarize(read_events(workdir / EVENTS_FILE), kind_of)


def summarize(events: Iterable[dict[str, Any]], kind_of: KindOf) -> dict[str, Any]:
    """The time report of a log's events, as `read` returns it."""
    starts = peak = 0
    committed: dict[str, Seconds] = {}
    lost: dict[str, Seconds] = {}
    pending: dict[str, Seconds] = {}
    for event in events:
        if event.get("begins"):
            starts += 1
            _move(pending, lost, list(pending))
        peak = max(peak, event.get("peak_memory_bytes", 0))
        for stage, kinds in event.get("seconds", {}).items():
            seconds_of = pending.setdefault(stage, Counter())
            for kind, seconds in kinds.items():
                seconds_of[kind or kind_of(stage)] += seconds
        if event.get("committed"):
            _move(pending, committed, [stage for stage in event.get("seconds", {}) if stage in pending])
    _move(pending, lost, list(pending))
    return {"starts": starts, "peak_memory_bytes": peak, "stages": _rounded(committed), "lost": _rounded(lost)}


def _move(source: dict[str, Seconds], target: dict[str, Seconds], stages: list[str]) -> None:
    for stage in stages:
        target.setdefault(stage, Counter()).update(source.pop(stage))


def _rounded(stages: dict[str, Seconds]) -> dict[str, dict[str, float]]:
    return {
        stage: {kind: round(kinds[kind], 3) for kind in KINDS if kinds[kind] >= 0.0005}
        for stage, kinds in stages.items()
    }


def seconds_by_stage(report: dict[str, Any]) -> dict[str, float]:
    """Seconds of each stage by its label, over all starts."""
    return {stage: sum(kinds.values()) for stage, kinds in report["stages"].items()}


def totals(stages: dict[str, dict[str, float]]) -> dict[str, float]:
    """Seconds by kind, over all stages."""
    return {kind: s for kind in KINDS if (s := round(sum(kinds.get(kind, 0.0) for kinds in stages.values()), 3))}


def format_line(report: dict[str, Any]) -> str:
    """The totals on one line."""
    seconds = totals(report["stages"])
    parts = [f"{kind} {three_digits(value)}" for kind, value in seconds.items()]
    lost = sum(totals(report["lost"]).values())
    lines = f"seconds: {three_digits(sum(seconds.values()) + lost)} = {' + '.join(parts)}"
    return f"{lines} + lost {three_digits(lost)}, in {_starts(report)}"


def format_table(report: dict[str, Any]) -> list[str]:
    """A line for each stage with its seconds by kind, then the totals and what was lost."""
    rows = {stage or "between stages": kinds for stage, kinds in report["stages"].items()}
    rows["all"] = totals(report["stages"])
    rows["lost"] = totals(report["lost"])
    width = max(map(len, rows))
    lines = [f"{'seconds':{width}s}  " + "  ".join(f"{kind:>9s}" for kind in KINDS)]
    for name, kinds in rows.items():
        cells = (f"{kinds[kind]:9.1f}" if kind in kinds else f"{'-':>9s}" for kind in KINDS)
        lines.append(f"{name:{width}s}  " + "  ".join(cells))
    return [*lines, f"in {_starts(report)}"]


def _starts(report: dict[str, Any]) -> str:
    return f"{report['starts']} start{'s' * (report['starts'] != 1)}"

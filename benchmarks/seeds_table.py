"""The figures of several runs as a table, with intervals over seeds."""

import math
from typing import Any

from scipy import stats

JUDGE_METRICS = ("pairwise_accuracy", "five_best", "exact_match", "spearman", "kendall", "parse_rate")


def table_metrics(run_summary: dict[str, Any]) -> dict[str, Any]:
    """The metrics of one run that the table shows: margins in points, oracle scores, judge agreement."""
    models, out = run_summary["models"], {}
    names = list(models)
    for a in reversed(names):
        for b in names[: names.index(a)]:
            v = models[a]["versus"][b]
            out |= {f"{a}-{b} {k}": 100 * v[k] for k in ("win", "tie", "lose", "margin")}
    for name in names:
        out[f"{name} mean"] = models[name]["oracle"]["mean"]
        out[f"{name} perfect"] = models[name]["oracle"]["perfect"]
        out[f"{name} repeats"] = models[name]["oracle"]["repeats"]
        out[f"{name} length"] = models[name]["mean_length"]
        out |= {f"{name} {metric}": models[name]["judge"][metric] for metric in JUDGE_METRICS}
        out |= {f"{name} {c}": 100 * share for c, share in models[name]["oracle"]["criteria"].items()}
    for name, round_stats in run_summary["rounds"].items():
        if pairs := round_stats["pairs"]:  # None where the run stopped before them
            out |= {f"{name} pairs": pairs["pairs"], f"{name} tied": pairs["tied"]}
    out["seconds"], out["peak GB"] = run_summary["seconds"], run_summary["peak_memory_bytes"] / 1e9
    return out | ({"stopped": run_summary["stopped"]} if "stopped" in run_summary else {})


def table(results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Every metric of every arm: mean, standard error and 95 % interval (Student's t) over seeds, and each seed.

    A metric that a seed lacks (its judge gave no vote) is shown as a dash and left out of the mean.
    """
    lines = []
    for arm, by_seed in results.items():
        lines.append(f"\n{arm} ({len(by_seed)} seeds)")
        names = dict.fromkeys(name for metrics in by_seed.values() for name in metrics if name != "stopped")
        for name in names:
            by_column = [metrics.get(name) for metrics in by_seed.values()]
            values = [v for v in by_column if v is not None]
            mean, error, half_width = mean_and_interval(values)
            seeds = " ".join("       -" if v is None else f"{v:8.3f}" for v in by_column)
            interval = f"[{mean - half_width:8.3f} {mean + half_width:8.3f}]"
            lines.append(f"  {name:24s} {mean:8.3f} +- {error:6.3f} {interval}   {seeds}")
        lines += [f"  seed {seed} stopped: {m['stopped']}" for seed, m in by_seed.items() if "stopped" in m]
    return "\n".join(lines)


def mean_and_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean, standard error, and half the width of the 95 % interval."""
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan, math.nan
    mean = sum(values) / len(values)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return mean, error, error * float(stats.t.ppf(0.975, len(values) - 1))

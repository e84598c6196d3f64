"""Tables as text: responses, win rates, and the judges' agreement with the truth."""

from typing import Any

from selfreward_jax.report.comparison import display_name, named

# Column heads and metrics of the judge table; the paper's metrics first.
JUDGE_COLUMNS = {
    "pairwise": "pairwise_accuracy",
    "5-best": "five_best",
    "exact": "exact_match",
    "spearman": "spearman",
    "kendall": "kendall",
}
MIN_PARSE_RATE = 0.8  # below this share of parsed votes, a line of caution
EXTRA_COLUMNS = {"(length)": "length_accuracy", "parsed": "parse_rate", "ties": "tie_rate"}


def summary_tables(models: dict[str, Any]) -> list[str]:
    """The tables at the end of a run, from the metrics of each model."""
    versus = {name: metrics["versus"] for name, metrics in models.items() if "versus" in metrics}
    order = list(models)
    earlier = {
        a: {b: rates for b, rates in others.items() if order.index(b) < order.index(a)} for a, others in versus.items()
    }
    win_rates = win_rate_table(dict(reversed(earlier.items()))) if any(earlier.values()) else []
    return [*response_table(models), *win_rates, *judge_table(models)]


def evaluation_tables(report: dict[str, Any]) -> list[str]:
    """The tables of an evaluation report, with 95 % confidence intervals."""
    models, versus = report["models"], named(report)
    win_rates = win_rate_table(versus, f"judged by {display_name(report['judge'])}") if versus else []
    tables = [*response_table(models), *win_rates, *judge_table(models), *judge_interval_table(models)]
    cautions = parse_cautions(report)
    return [*tables, *([""] if cautions else []), *cautions]


def parse_cautions(report: dict[str, Any]) -> list[str]:
    """Lines of caution where few votes could be parsed."""
    rates = {name: metrics["judge"]["parse_rate"] for name, metrics in report["models"].items()}
    lines = [
        f"caution: {100 * rate:.0f} % of {display_name(name)}'s votes on the ranked answers could be parsed; its "
        "figures as a judge ignore the others"
        for name, rate in rates.items()
        if rate is not None and rate < MIN_PARSE_RATE
    ]
    if (rate := report.get("parse_rate", 1.0)) < MIN_PARSE_RATE:
        judge = "the endpoint" if report["judge"] == "endpoint" else display_name(report["judge"])
        lines.append(
            f"caution: {100 * rate:.0f} % of {judge}'s votes behind the win rates could be "
            "parsed; a comparison without a verdict is a tie"
        )
    return lines


def response_table(models: dict[str, Any]) -> list[str]:
    """Metrics of the responses to held-out prompts."""
    names = list(models)
    if "oracle" not in models[names[0]]:
        lines = ["", "answers      length  finished   (no oracle: the seed data are your own)"]
        return lines + [
            f"  {n.upper():8s}  {models[n]['mean_length']:7.1f}  {models[n]['finished']:8.2f}" for n in names
        ]
    oracles = {name: models[name]["oracle"] for name in names}
    grouped = "taught" in oracles[names[0]]  # too many criteria for one line
    columns = ["taught", "transfer"] if grouped else list(oracles[names[0]]["criteria"])
    lines = ["", "answers      mean  perfect  length   " + "  ".join([*columns, "repeats"])]
    for name, o in oracles.items():
        fractions = {c: (o if grouped else o["criteria"])[c] for c in columns} | {"repeats": o["repeats"]}
        cells = "  ".join(f"{v:{len(c)}.2f}" if v is not None else f"{'-':>{len(c)}s}" for c, v in fractions.items())
        length = models[name]["mean_length"]
        lines.append(f"  {name.upper():8s}  {o['mean']:5.2f}  {o['perfect']:7.3f}  {length:6.1f}   {cells}")
    return lines + (_criteria_table(oracles) if grouped else [])


def _criteria_table(oracles: dict[str, Any]) -> list[str]:
    """For each criterion a line with the fraction of answers of each model that meet it."""
    lines = ["", f"{'criterion met':16s}" + "".join(f"{name.upper():>8s}" for name in oracles)]
    for criterion in next(iter(oracles.values()))["criteria"]:
        lines.append(f"  {criterion:14s}" + "".join(f"{o['criteria'][criterion]:8.2f}" for o in oracles.values()))
    return lines


def win_rate_table(versus: dict[str, dict[str, Any]], judge: str = "") -> list[str]:
    """Wins, ties and losses of the model on the left, with the 95 % confidence interval of the margin."""
    rows = {f"{display_name(a)} : {display_name(b)}": v for a, others in versus.items() for b, v in others.items()}
    width = max(16, *map(len, rows))
    lines = ["", f"{'head to head':{width + 2}s}   win %  tie %  lose %   win - lose  [95 %]   {judge}".rstrip()]
    for names, v in rows.items():
        low, high = (100 * x for x in v["interval"]["margin"])
        rates = f"{100 * v['win']:6.1f} {100 * v['tie']:6.1f} {100 * v['lose']:7.1f}"
        lines.append(f"  {names:{width}s}  {rates}   {100 * v['margin']:+6.1f}  [{low:+.1f} {high:+.1f}]")
    return lines


def judge_table(models: dict[str, Any]) -> list[str]:
    """The paper's reward-model table, with the length baseline, the fraction of parseable votes, and ties."""
    columns = JUDGE_COLUMNS | EXTRA_COLUMNS
    lines = ["", "judge        " + "  ".join(f"{c:>8s}" for c in columns)]
    for name, metrics in models.items():
        cells = [metrics["judge"][field] for field in columns.values()]
        lines.append(f"  {name.upper():8s}   " + "  ".join(_cell(v) for v in cells))
    return lines


def judge_interval_table(models: dict[str, Any]) -> list[str]:
    """The 95 % confidence intervals of the same metrics."""
    lines = ["", "95 %         " + "  ".join(f"{c:>12s}" for c in JUDGE_COLUMNS)]
    for name, metrics in models.items():
        intervals = [metrics["judge"]["interval"][field] for field in JUDGE_COLUMNS.values()]
        cells = [f"{v[0]:.3f}-{v[1]:.3f}" if v else "-" for v in intervals]
        lines.append(f"  {name.upper():8s}   " + "  ".join(f"{c:>12s}" for c in cells))
    return lines


def _cell(value: float | None) -> str:
    return f"{value:8.3f}" if value is not None else f"{'-':>8s}"

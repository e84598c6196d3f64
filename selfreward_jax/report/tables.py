"""The paper's tables as text: answers, head to head, and how far the judges agree with the truth."""

from typing import Any

# Column heads and figures; those of the paper first.
JUDGE = {
    "pairwise": "pairwise_accuracy",
    "5-best": "five_best",
    "exact": "exact_match",
    "spearman": "spearman",
    "kendall": "kendall",
}
EXTRA_COLUMNS = {"(length)": "length_accuracy", "parsed": "parse_rate", "ties": "tie_rate"}


def short(models: dict[str, Any]) -> list[str]:
    """The tables at the end of a run, from the figures of each model."""
    versus = {name: of["versus"] for name, of in models.items() if "versus" in of}
    earlier = {
        a: {b: v for b, v in of.items() if list(models).index(b) < list(models).index(a)} for a, of in versus.items()
    }
    return [*answers(models), *(head_to_head(dict(reversed(earlier.items()))) if versus else []), *judges(models)]


def paper(found: dict[str, Any]) -> list[str]:
    """The tables of an evaluation, with 95 % intervals."""
    lines = [*answers(found["models"])]
    if found["versus"]:
        lines += head_to_head(found["versus"], f"judged by {found['judge']}")
    return [*lines, *judges(found["models"]), *judge_intervals(found["models"])]


def answers(models: dict[str, Any]) -> list[str]:
    """What the answers to held-out prompts are like."""
    names = list(models)
    if "oracle" not in models[names[0]]:
        lines = ["", "answers      length  finished   (no oracle: these are a user's own seeds)"]
        return lines + [
            f"  {n.upper():8s}  {models[n]['mean_length']:7.1f}  {models[n]['finished']:8.2f}" for n in names
        ]
    criteria = [*models[names[0]]["oracle"]["criteria"], "repeats"]
    lines = ["", "answers      mean  perfect  length   " + "  ".join(criteria)]
    for name in names:
        m, o = models[name], models[name]["oracle"]
        shares = o["criteria"] | {"repeats": o["repeats"]}
        each = "  ".join(f"{v:{len(c)}.2f}" for c, v in shares.items())
        lines.append(f"  {name.upper():8s}  {o['mean']:5.2f}  {o['perfect']:7.3f}  {m['mean_length']:6.1f}   {each}")
    return lines


def head_to_head(versus: dict[str, dict[str, Any]], by: str = "") -> list[str]:
    """Wins, ties and losses of the one on the left, with the margin's 95 % interval."""
    lines = ["", f"head to head         win %  tie %  lose %   win - lose  [95 %]   {by}".rstrip()]
    for ours, others in versus.items():
        for theirs, v in others.items():
            low, high = (100 * x for x in v["interval"]["margin"])
            shares = f"{100 * v['win']:6.1f} {100 * v['tie']:6.1f} {100 * v['lose']:7.1f}"
            pair = f"{ours.upper()} : {theirs.upper()}"
            lines.append(f"  {pair:16s}  {shares}   {100 * v['margin']:+6.1f}  [{low:+.1f} {high:+.1f}]")
    return lines


def judges(models: dict[str, Any]) -> list[str]:
    """The paper's reward-model table; beside it calling the longer answer better, readable votes, and ties."""
    columns = JUDGE | EXTRA_COLUMNS
    lines = ["", "judge        " + "  ".join(f"{c:>8s}" for c in columns)]
    for name, of in models.items():
        cells = [of["judge"][field] for field in columns.values()]
        lines.append(f"  {name.upper():8s}   " + "  ".join(_cell(v) for v in cells))
    return lines


def judge_intervals(models: dict[str, Any]) -> list[str]:
    """The 95 % intervals of the same figures."""
    lines = ["", "95 %         " + "  ".join(f"{c:>12s}" for c in JUDGE)]
    for name, of in models.items():
        found = [of["judge"]["interval"][field] for field in JUDGE.values()]
        cells = [f"{v[0]:.3f}-{v[1]:.3f}" if v else "-" for v in found]
        lines.append(f"  {name.upper():8s}   " + "  ".join(f"{c:>12s}" for c in cells))
    return lines


def _cell(value: float | None) -> str:
    return f"{value:8.3f}" if value is not None else f"{'-':>8s}"

"""Which models were compared, by whom, and which of them is the best. It is only shown: no training depends on it."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from selfreward_jax.console.escape import escape

_RUN_MODEL = re.compile(r"sft|m\d+")  # names of a run's own models


class Versus(NamedTuple):
    """Win rates of a model against another, as `head_to_head.win_rates` gives them, and who judged."""

    model: str
    opponent: str
    rates: Mapping[str, Any]
    judge: str

    @property
    def names(self) -> str:
        """Both models, as a table names them."""
        return f"{display_name(self.model)} : {display_name(self.opponent)}"

    @property
    def judge_name(self) -> str:
        """The judge in a sentence."""
        return f"the {self.judge}" if self.judge in ("oracle", "endpoint") else display_name(self.judge)


def display_name(model: str) -> str:
    """A model's name for people: those of a run in capitals, others as they are."""
    return model.upper() if _RUN_MODEL.fullmatch(model) else escape(model)


def named(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The win rates of an evaluation report {model: {opponent: rates}}; a model outside the run has a name for people
    there, where files have its hash. It is never that of a model of the run: "folder m1" is another model than "m1"."""
    opponent = report.get("opponent", {})
    shown = opponent.get("display_name") or opponent.get("path") or ""
    names = {opponent.get("name"): f"folder {shown}" if _RUN_MODEL.fullmatch(shown) else shown}
    return {a: {names.get(b, b): rates for b, rates in others.items()} for a, others in report["versus"].items()}


def outside(models: Collection[str], evaluations: Mapping[str, Any]) -> list[Versus]:
    """Win rates against models outside the run.

    Args:
      models: names of the run's models.
      evaluations: {judge: {model: {opponent: win rates}}}.
    """
    return [
        Versus(a, b, rates, judge)
        for judge, versus in evaluations.items()
        for a, others in versus.items()
        for b, rates in others.items()
        if b not in models
    ]


def win_rates(models: Mapping[str, Mapping[str, Any]], evaluations: Mapping[str, Any]) -> list[Versus]:
    """Win rates of each model against the one before it, and of the last against M1.

    They are the oracle's where there is one. Otherwise they are those of the first evaluation that compared any of
    these models.
    """
    oracle = {name: metrics["versus"] for name, metrics in models.items() if "versus" in metrics}
    names = list(models)
    wanted = list(zip(names[1:], names, strict=False))
    if names and (names[-1], "m1") not in wanted:
        wanted.append((names[-1], "m1"))
    for judge, versus in ({"oracle": oracle} if oracle else evaluations).items():
        compared = [Versus(a, b, versus[a][b], judge) for a, b in wanted if b in versus.get(a, {})]
        if compared:
            return compared
    return []


def best_model(models: Sequence[str], rates: Sequence[Versus]) -> tuple[str, str]:
    """The last model, unless one before it wins clearly: then that one. With the reason, one phrase.

    Its figures as a judge do not count: they say nothing about its answers.

    Args:
      models: names of the models in training order; at least one.
      rates: what was compared, from `win_rates`.
    """
    best, lost = models[-1], None
    while worse := next((r for r in rates if r.model == best and r.rates["interval"]["margin"][1] < 0), None):
        best, lost = worse.opponent, worse
    if lost:
        return best, f"{_margin(lost)}: worse"
    against = next((r for r in reversed(rates) if r.model == best), None)
    if against is None:
        return best, "the last one; its answers are not compared with those of another model yet"
    return best, _margin(against) if against.rates["interval"]["margin"][0] > 0 else f"the last one; {_margin(against)}"


def _margin(versus: Versus) -> str:
    low, high = versus.rates["interval"]["margin"]
    return (
        f"{versus.model.upper()} against {versus.opponent.upper()}: win minus lose {points(versus.rates['margin'])} "
        f"points, 95 % {points(low)} to {points(high)}, judged by {versus.judge_name}"
    )


def points(fraction: float) -> str:
    """A difference of fractions in points of a hundred, with its sign."""
    return f"{100 * fraction:+.1f}"

"""The head of the page: four questions with their answers, and what to do next.

Every answer has a sign, a symbol with a word, so that it does not depend on colour. "unsure" means that the interval
contains 0, "none" that nothing is measured.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from selfreward_jax.console.escape import shell_word
from selfreward_jax.method.round_checks import CHECKS, switched_off, violated
from selfreward_jax.report import time_report
from selfreward_jax.report.comparison import Versus, points
from selfreward_jax.report.run_state import RunState
from selfreward_jax.telemetry.numbers import duration

SYMBOLS = {"good": "✓", "bad": "✗", "unsure": "?", "none": "○", "running": "▶", "stopped": "■"}


class Tile(NamedTuple):
    """A question and its answer.

    question: in a few words.
    sign: a key of SYMBOLS.
    word: the answer in one or two words.
    value: the figure.
    detail: what the figure is, in short sentences.
    link: the section that shows why.
    """

    question: str
    sign: str
    word: str
    value: str
    detail: tuple[str, ...]
    link: str

    @property
    def symbol(self) -> str:
        """The symbol of its sign."""
        return SYMBOLS[self.sign]


def better(models: Mapping[str, Any], rates: Sequence[Versus]) -> Tile:
    """Whether the last model is better than M1, and than the one before it."""
    tile = ("better?", "#progress")
    if not rates:
        if "m2" not in models:
            return _tile(*tile, "none", "not yet", "", "Nothing is there to compare with M1.")
        return _tile(*tile, "none", "not measured", "", "Your own data have no oracle: another judge must compare.")
    last = rates[-1]
    low, high = last.rates["interval"]["margin"]
    sign, word = ("good", "yes") if low > 0 else ("bad", "worse") if high < 0 else ("unsure", "not shown")
    names = f"{last.model.upper()} against {last.opponent.upper()}"
    detail = [f"{names}, win minus lose; 95 %: {points(low)} to {points(high)}."]
    step = next((r for r in rates[:-1] if r.model == last.model), None)
    if step:
        step_low, step_high = step.rates["interval"]["margin"]
        interval = f"{points(step_low)} to {points(step_high)}"
        detail.append(f"Against {step.opponent.upper()}: {points(step.rates['margin'])} ({interval}).")
        if sign == "good" and step_high < 0:
            sign, word = "unsure", f"less than {step.opponent.upper()}"
    if last.judge in models:
        detail.append(f"Judged by {last.judge_name} of this run, which may favor its own kind.")
    elif last.judge != "oracle":
        detail.append(f"Judged by {last.judge_name}.")
    return _tile(*tile, sign, word, f"{points(last.rates['margin'])} points", *detail)


def beyond_length(judges: Mapping[str, Mapping[str, Any]]) -> Tile:
    """Whether the last model judges better than a rule that looks at length alone."""
    tile = ("judge beyond length?", "#judge")
    name = next(reversed(judges), None)
    if name is None or judges[name]["lead"] is None:
        return _tile(*tile, "none", "not measured" if name else "not yet", "", "No ranked answers are judged.")
    lead = judges[name]
    low, high = lead["interval"] or (-1.0, 1.0)
    sign, word = ("good", "yes") if low > 0 else ("bad", "no") if high < 0 else ("unsure", "not shown")
    return _tile(
        *tile, sign, word, f"{points(lead['lead'])} points",
        f"{name.upper()} puts {_percent(lead['accuracy'])} of the ranked pairs in the right order; preferring the "
        f"{lead['rule']} answer, {_percent(lead['baseline'])}.",
        f"Difference, 95 %: {points(low)} to {points(high)}.",
    )  # fmt: skip


def checks(rounds: Mapping[str, Mapping[str, Any]], limits: Mapping[str, float]) -> Tile:
    """Whether the rounds' data were fit to be trained on; a check that is switched off counts as none."""
    metrics = {name: stats["checks"] for name, stats in rounds.items() if stats["checks"]}
    if not metrics:
        return _tile("checks", "#checks", "none", "not yet", "", "They come with the pairs of M2.")
    last = next(reversed(metrics))
    beyond = {name: violated(values, limits) for name, values in metrics.items()}
    off = [name for name in switched_off(limits) if name not in beyond[last]]
    missing = [name for name in CHECKS if metrics[last][name.partition("_")[2]] is None and name not in off]
    count = len(CHECKS) - len(off)
    detail = [f"{name.upper()}: {', '.join(names)} beyond the limit." for name, names in beyond.items() if names]
    if not detail and count:
        detail.append(f"Data of {' and '.join(name.upper() for name in metrics)} within all limits.")
    if missing:
        detail.append(f"Not measured in {last.upper()}: {', '.join(missing)}.")
    if off:
        detail.append(f"Off: {', '.join(off)}. No value is beyond these limits.")
    sign, word = ("bad", "beyond") if any(beyond.values()) else ("good", "within") if count else ("none", "off")
    if sign == "good" and len(off) > count:  # too little is checked to be good news
        sign = "none"
    value = f"{count - len(missing) - len(beyond[last])} of {count}" + f", {len(off)} off" * bool(off)
    return _tile("checks", "#checks", sign, word, value, *detail)


def progress(state: RunState, time_spent: Mapping[str, Any]) -> Tile:
    """How far the run is: the stage at hand and the time left, or the total time."""
    kinds, lost = time_report.totals(time_spent["stages"]), time_report.totals(time_spent["lost"])
    total = sum(kinds.values()) + sum(lost.values())
    if state.word == "finished":
        most = sorted(kinds, key=lambda kind: -kinds[kind])[:3]
        detail = [f"M1 to M{state.rounds}: {', '.join(f'{kind} {duration(kinds[kind])}' for kind in most)}."]
        if (wasted := sum(lost.values())) >= 1:
            detail.append(f"{duration(wasted)} lost to kills.")
        return _tile("time", "#time", "good", "finished", duration(total), *detail)
    is_running = state.word == "running"
    is_known = is_running and state.stage_left is not None and state.stage_left >= 1
    stage_left = f", about {duration(state.stage_left or 0)} left" if is_known else ""
    detail = [f"{'At' if is_running else 'Before'} {state.stage}{stage_left}."]
    if state.left:
        done_at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(state.at + state.left))
        end = f", done at {done_at}" if is_running and not state.unknown else ""
        detail.append(f"{'At least' if state.unknown else 'About'} {duration(state.left)} left for the run{end}.")
    if state.unknown:
        detail.append(f"Not known yet: {', '.join(state.unknown)}.")
    detail.append(f"{duration(total)} spent.")
    return _tile("time", "#time", state.word, state.word, f"round {state.round} of {state.rounds}", *detail)


def commands(workdir: str, model: str) -> dict[str, str]:
    """Commands for a run by name: to talk to a model, export it, have it judged, and write the page again."""
    place = f"--workdir={shell_word(workdir)}"
    program = "selfreward-jax"
    return {
        "chat": f"{program} chat {place} --model={model}",
        "export": f"{program} export {place} --model={model} --out={model}_hf",
        "endpoint": f"{program} evaluate {place} --judge=endpoint --endpoint.base_url=URL --endpoint.model=NAME",
        "own judge": f"{program} evaluate {place} --judge={model}",
        "report": f"{program} report {place}",
    }


def next_steps(
    state: RunState, answers: Mapping[str, Tile], best: tuple[str, str], workdir: str, stop_reason: str = ""
) -> list[tuple[str, str]]:
    """What to do now: sentences, each with a command or "".

    Args:
      state: of the run.
      answers: the tiles by name.
      best: the best model and why, from `comparison.best_model`.
      workdir: the working directory.
      stop_reason: why the run has stopped; "" if it has not.
    """
    if state.word == "running":
        return [("Wait. This page reloads itself, but not while you search or read a pair.", "")]
    if state.word == "stopped":
        first = "Read why the run has stopped. When that is mended, the" if stop_reason else "The"
        return [(f"{first} command that started the run resumes it.", "")]
    verdict, (model, why) = answers["better"], best
    command = commands(workdir, model)
    steps: list[tuple[str, str]] = []
    if answers["judge"].sign in ("bad", "unsure"):
        steps.append(("Teach the judge before another round, with more judged answers (data.eft).", ""))
    if verdict.word == "not measured":
        steps.append(("Let a model behind an API compare the answers:", command["endpoint"]))
    elif model != f"m{state.rounds}":
        steps.append((f"Keep {model.upper()}. Lower dpo.lr, or add prompts (prompts.count).", ""))
    elif verdict.sign == "unsure":
        more = "data.heldout_prompts; with your own data also more ranked answers in data.eft"
        steps.append((f"Measure on more prompts ({more}), or train on more (prompts.count).", ""))
    talk = f"Talk to the best model, {model.upper()} ({why}):"
    return [*steps, (talk, command["chat"]), ("Export it:", command["export"])]


def _tile(question: str, link: str, sign: str, word: str, value: str, *detail: str) -> Tile:
    return Tile(question, sign, word, value, detail, link)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"

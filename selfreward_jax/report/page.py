"""report.html: what a run shows, in one file that needs no network and obeys no text in it."""

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jinja2
from etils import epath
from markupsafe import Markup

from selfreward_jax import storage
from selfreward_jax.method.round_checks import CHECKS
from selfreward_jax.parallel import processes
from selfreward_jax.report import charts, embedded_data, summary, time_report
from selfreward_jax.report.tables import EXTRA_COLUMNS, JUDGE
from selfreward_jax.runs.run import Run
from selfreward_jax.telemetry.escape import escape

Row = dict[str, Any]

# The reward-model table of arXiv 2401.10020 (section 3.3): Llama 2 70B on Open Assistant.
PAPER = {
    "pairwise_accuracy": {"sft": 0.651, "m1": 0.787, "m2": 0.804, "m3": 0.817},
    "five_best": {"sft": 0.396, "m1": 0.415, "m2": 0.443, "m3": 0.432},
    "exact_match": {"sft": 0.101, "m1": 0.131, "m2": 0.143, "m3": 0.143},
    "spearman": {"sft": 0.253, "m1": 0.279, "m2": 0.331, "m3": 0.349},
    "kendall": {"sft": 0.233, "m1": 0.253, "m2": 0.315, "m3": 0.324},
}
CURVES = {  # what is drawn of DPO's training, and of which values in the log
    "loss": ("loss", "dpo"),
    "reward margin": ("margin",),
    "reward accuracy": ("accuracy",),
    "log-probs": ("chosen_logprob", "rejected_logprob"),
}


class Page:
    """report.html of a run, rewritten behind its stages."""

    SHARE = 0.05  # of the time, at most, goes to rewriting

    def __init__(self, r: Run) -> None:
        self._run, self._written, self._took = r, time.monotonic(), 1.0

    def rewrite(self) -> None:
        """Writes it anew, unless that was done a moment ago for what it takes."""
        if time.monotonic() - self._written > self._took / self.SHARE:
            self.write()

    def write(self, said: str = "") -> bool:
        """Writes it anew, of what is there; `said` is why the run has stopped. The first process does, while the others
        go on. A page that cannot be made is told, and no reason to end a run. Returns whether it was written."""
        if not processes.is_primary():
            return False
        start, r = time.monotonic(), self._run
        try:
            with processes.local_only():
                text = render(summary.gather(r), _rows(r), _about(r, said))
                storage.write_atomic(r.workdir / "report.html", text.encode())
        except Exception as error:  # files that are damaged are found, and made anew, where they are needed
            storage.warn(f"report.html is not written ({type(error).__name__}: {error})")
            return False
        finally:
            self._written = time.monotonic()
            self._took = self._written - start
        return True


def render(found: Mapping[str, Any], rows: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The page.

    Args:
      found: from `summary.gather`.
      rows: `rounds`, for each its pairs, candidates and judgments, and `answers`, of each model to held-out prompts.
      about: name, settings, log events and manifests of the run, and what it `said` when it stopped.
    """
    models, style, script = found["models"], _file("page.css"), _file("page.js")
    pairs, answers = embedded_data.pairs(rows["rounds"]), embedded_data.answers(rows["answers"])
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"inert": lambda value: escape(str(value)), "number": _number}
    return environment.from_string(_file("page.html.jinja")).render(
        about,
        found=found,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; "
        "form-action 'none'",
        models=models,
        steps=_steps(models),
        charts=[Markup(svg) for svg in _charts(found, rows["answers"])],
        training=[(name, [Markup(svg) for svg in of]) for name, of in _training(about["log"]).items()],
        judge=JUDGE | EXTRA_COLUMNS,
        paper=PAPER,
        guards=CHECKS,
        spent=time_report.summarize(about["log"]),
        kinds=time_report.KINDS,
        totals=time_report.totals,
        pairs=pairs,
        answers=answers,
        a_block=embedded_data.PAIRS_PER_BLOCK,
    )


def _rows(r: Run) -> dict[str, Any]:
    whole = lambda owner, stage: r.jsonl(owner, stage).rows() if r.jsonl(owner, stage).manifest else []  # noqa: E731
    names = r.models()
    rounds = [f"m{t}" for t in range(2, len(names) + 2) if whole(f"m{t}", "pairs")]
    answers = {name: rows for name in names if (rows := whole(name, "eval_answers"))}
    stages = ("pairs", "responses", "judgments")
    return {"rounds": {name: {stage: whole(name, stage) for stage in stages} for name in rounds}, "answers": answers}


def _about(r: Run, said: str = "") -> dict[str, Any]:
    names = processes.broadcast_from_primary(
        lambda: sorted([p.parent.name, p.name] for p in r.workdir.glob("*/*.manifest.json"))
    )
    files = [(owner, name.removesuffix(".manifest.json")) for owner, name in names]
    return {
        "name": r.workdir.name,
        "said": said,
        "workdir": str(r.workdir),
        "settings": _flat(storage.read_json(r.workdir / "config.json")),
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "goal": f"m{r.cfg.iterations}",
        "weights": {name: r.weights_fingerprint(name) for name in r.models()},
        "files": [(f"{owner}/{name}.jsonl", r.jsonl(owner, name).manifest) for owner, name in files],
        "log": list(time_report.events(r.workdir / "events.jsonl")),
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: json.dumps(value)}
    return found


def _steps(models: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Each model against the one before it, and the last against the first."""
    names = [name for name in models if "versus" in models[name]]
    found = list(zip(names[1:], names, strict=False))
    if len(names) > 2:
        found.append((names[-1], names[0]))
    return [(a, b, models[a]["versus"][b]) for a, b in found]


def _charts(found: Mapping[str, Any], answers: Mapping[str, Sequence[Row]]) -> list[str]:
    models, drawn = found["models"], []
    if models and all("oracle" in of for of in models.values()):
        means = {name.upper(): of["oracle"]["mean"] for name, of in models.items()}
        drawn.append(charts.scores(means, "Mean score of answers, by the oracle", 5))
    if steps := _steps(models):
        rows = [(f"{a.upper()} : {b.upper()}", v["win"], v["tie"], v["lose"]) for a, b, v in steps]
        drawn.append(charts.records(rows, "Head to head, %"))
    if models:
        right = {
            n.upper(): share for n, of in models.items() if (share := of["judge"]["pairwise_accuracy"]) is not None
        }
        drawn.append(charts.scores(right, "Judge: pairs in the right order", 1))
    if found["rounds"]:
        votes = {f"round {name.upper()}": of["judge"]["histogram"] for name, of in found["rounds"].items()}
        drawn.append(charts.histograms(votes, "Votes in each round"))
    if answers:
        of = {n.upper(): [len(a["text"]) for row in rows for a in row["responses"]] for n, rows in answers.items()}
        drawn.append(charts.lengths(of, "Length of answers"))
    return drawn


def _training(log: Sequence[Row]) -> dict[str, list[str]]:
    """Charts of each training: the loss, and of DPO what says whether it learns preferences."""
    steps: dict[tuple[str, str], dict[int, Row]] = {}
    for event in log:
        if "step" in event and "loss" in event:
            steps.setdefault((event["model"], event["stage"]), {})[event["step"]] = event  # a redone step counts once
    found = {}
    for (model, stage), of in steps.items():
        name = f"{model.upper()}, {stage}"
        rows = [of[step] for step in sorted(of)]
        found[name] = [
            charts.curves(lines, f"{name}: {what}")
            for what, values in CURVES.items()
            if (lines := {v.replace("_logprob", ""): c for v in values if (c := _curve(rows, v))})
        ]
    return found


def _curve(rows: Sequence[Row], value: str) -> list[tuple[int, float]]:
    return [(row["step"], row[value]) for row in rows if isinstance(row.get(value), int | float)]


def _number(value: Any, digits: int = 3) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


@cache
def _file(name: str) -> str:
    return (epath.Path(__file__).parent / name).read_bytes().decode()


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

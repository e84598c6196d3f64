"""selfreward-jax explain: where a preference pair comes from: its prompt, all answers, each vote, and the models behind
them. With --time, how the time of a run was spent over all its starts, by stage, and what was lost to kills.
"""

import argparse
import difflib
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from selfreward_jax import storage
from selfreward_jax.config import ConfigError
from selfreward_jax.console import streams
from selfreward_jax.method.rows import JudgmentRow, Response
from selfreward_jax.report import time_report
from selfreward_jax.runs.run import stored_settings
from selfreward_jax.runs.workspace import key_name
from selfreward_jax.sampling.keys import stable_hash32
from selfreward_jax.stages.table import TABLE
from selfreward_jax.storage.artifacts import JsonlArtifact
from selfreward_jax.telemetry.numbers import three_digits

STAGES = ("prompts", "responses", "judgments", "pairs")
ANCHOR_STAGES = ("anchor_responses", "anchor_judgments")  # from M3 on, if pairs.rejected is anchor


def main(options: argparse.Namespace) -> int:
    """Explains. Returns the exit code."""
    workdir = epath.Path(options.workdir)
    lines = time_report_lines(workdir) if options.time else list(trace_pair(workdir, options.pair))
    streams.result(*lines)
    return 0


def time_report_lines(workdir: epath.Path) -> list[str]:
    """A table of how the time of a run was spent.

    Raises:
      ConfigError: there is no run.
    """
    if not (workdir / "events.jsonl").exists():
        raise ConfigError(f"workdir {workdir} holds no run: there is no events.jsonl")
    return time_report.format_table(time_report.read(workdir, TABLE.kind_of))


def trace_pair(workdir: epath.Path, pair_id: str) -> Iterator[str]:
    """Lines that explain where a pair comes from; text of models has its control characters escaped.

    Raises:
      ConfigError: there is no run, or no such pair.
    """
    settings = stored_settings(workdir)
    model_name = pair_id.partition("/")[0]
    artifacts, rows = _load_round(workdir, model_name, pair_id)
    judge, seed, pair = f"m{int(model_name[1:]) - 1}", settings.seed, rows["pairs"][pair_id]
    judge_weights = (storage.read_checksummed(workdir / judge / "manifest.json") or {}).get("weights")
    weights = (storage.read_checksummed(workdir / model_name / "manifest.json") or {}).get("weights")
    yield f"pair {pair_id} of {workdir}, seed {seed}"
    yield f"judged by {judge}, weights {judge_weights}"
    yield f"trains {model_name}, " + (f"weights {weights}" if weights else "which is not trained yet")
    for artifact in artifacts.values():
        yield f"{artifact.path.name}: {artifact.manifest['rows']} rows, SHA-256 {artifact.manifest['sha256']}"
    yield from _block(f"prompt, by {settings.prompts.source or settings.prompts.writer or judge}", pair["prompt"])
    authors = {"responses": judge, "anchor_responses": "m1"}
    for source, author in ((name, author) for name, author in authors.items() if name in rows):
        key, stage = _format_key(seed, model_name, source, pair_id), source.replace("responses", "judgments")
        yield f"answers, by {author}; their keys: {key}, then the answer's number"
        for number, response in enumerate(rows[source][pair_id]["responses"]):
            judgment = rows[stage].get(f"{pair_id}/{number}")
            yield from _block(f"answer {number}: {_describe_response(response, judgment, pair)}", response["text"])
            if judgment:
                yield from _votes(judgment, judge, _format_key(seed, model_name, stage, judgment["id"]))


def _votes(judgment: JudgmentRow, judge: str, key: str) -> Iterator[str]:
    yield f"    votes of {judge}; their keys: {key}, then the vote's number"
    for index, vote in enumerate(judgment["votes"]):
        score = "no vote" if vote["score"] is None else three_digits(vote["score"])
        yield from _block(f"    vote {index}: {score}", vote["text"], indent=8)


def _load_round(
    workdir: epath.Path, model_name: str, pair_id: str
) -> tuple[dict[str, JsonlArtifact], dict[str, dict[str, Any]]]:
    """The artifacts of the round that trains a model, by stage, and their rows by id."""
    artifacts = {stage: JsonlArtifact(workdir / model_name / f"{stage}.jsonl") for stage in (*STAGES, *ANCHOR_STAGES)}
    artifacts = {stage: a for stage, a in artifacts.items() if stage in STAGES or a.manifest is not None}
    if not re.fullmatch(r"m\d+/.*", pair_id) or artifacts["pairs"].manifest is None:
        raise ConfigError(f"--pair={pair_id}: {_pair_ids(workdir)}")
    rows = {stage: {row["id"]: row for row in artifact.rows()} for stage, artifact in artifacts.items()}
    if pair_id not in rows["pairs"]:
        nearest = difflib.get_close_matches(pair_id, rows["pairs"], n=1, cutoff=0.0)
        raise ConfigError(
            f"--pair={pair_id}: {model_name} has no such pair; the nearest one is {nearest[0] if nearest else 'none'}"
        )
    return artifacts, rows


def _pair_ids(workdir: epath.Path) -> str:
    """Which pairs a run has, and what their ids look like."""
    folders = sorted(workdir.iterdir()) if workdir.is_dir() else []
    rounds = [folder.name for folder in folders if (folder / "pairs.manifest.json").exists()]
    example = next((row["id"] for name in rounds for row in JsonlArtifact(workdir / name / "pairs.jsonl").rows()), "")
    form = f"a pair's id is MODEL/NUMBER as in pairs.jsonl, such as {example or 'm2/17'}"
    return f"{form}; {workdir} has pairs of {', '.join(rounds) or 'no model yet'}"


def _describe_response(response: Response, judgment: JudgmentRow | None, pair: dict[str, Any]) -> str:
    score = "not judged" if judgment is None else f"score {three_digits(judgment['score'])}"
    cut_off = "" if response["finished"] else ", cut off"
    sides = [side.upper() for side in ("chosen", "rejected") if response["text"] == pair[side]]
    return " ".join([score + cut_off, *sides])


def _block(head: str, text: str, indent: int = 4) -> Iterator[str]:
    yield head
    yield from (" " * indent + "| " + line for line in text.split("\n"))


def _format_key(seed: int, model_name: str, stage: str, row_id: str) -> str:
    names = {model_name: model_name, stage: key_name(stage), row_id: row_id}  # what is hashed differs from today's word
    numbers = [f"{stable_hash32(hashed)} ({shown})" for shown, hashed in names.items()]
    return f"key({seed}) folded with " + ", ".join(numbers)

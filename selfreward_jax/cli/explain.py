"""Where a preference pair comes from: its prompt, all answers to it, each vote on them, and whose they are. Or where
the time went, over all starts of a run: by stage, and what was lost to kills.

python -m selfreward_jax explain --workdir=runs/a --pair=m2/17
python -m selfreward_jax explain --workdir=runs/a --time
"""

import difflib
import sys
from collections.abc import Iterator
from typing import Any

from etils import epath

from selfreward_jax import storage
from selfreward_jax.cli import args
from selfreward_jax.config import ConfigError
from selfreward_jax.report import time_report
from selfreward_jax.sampling.engine import stable_hash32
from selfreward_jax.storage.artifacts import JsonlArtifact
from selfreward_jax.telemetry.escape import escape

Row = dict[str, Any]
STAGES = ("prompts", "responses", "judgments", "pairs")


def main(argv: list[str]) -> int:
    """Explains. Returns the exit code: 0, or 2 after one line that says what to mend."""
    parser = args.parser("explain", __doc__)
    parser.add_argument("--workdir", required=True, help="the run's working directory")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--pair", help="id of the pair, as in pairs.jsonl, such as m2/17")
    asked.add_argument("--time", action="store_true", help="a table of the seconds of each stage")
    try:
        options = parser.parse_args(argv[1:])
        workdir = epath.Path(options.workdir)
        lines = time_report_lines(workdir) if options.time else list(trace_pair(workdir, options.pair))
    except (ConfigError, storage.StorageError, OSError) as error:
        print(f"selfreward_jax: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def time_report_lines(workdir: epath.Path) -> list[str]:
    """A table of where the time of a run went.

    Raises:
      ConfigError: there is no run.
    """
    if not (workdir / "events.jsonl").exists():
        raise ConfigError(f"workdir {workdir} holds no run: there is no events.jsonl of one")
    return time_report.table(time_report.read(workdir))


def trace_pair(workdir: epath.Path, pair: str) -> Iterator[str]:
    """Lines that say where a pair comes from; what models wrote is inert in them.

    Raises:
      ConfigError: there is no such pair.
    """
    t = pair.partition("/")[0]
    files = {name: JsonlArtifact(workdir / t / f"{name}.jsonl") for name in STAGES}
    if not t.startswith("m") or not t[1:].isdigit() or files["pairs"].manifest is None:
        rounds = sorted(p.parent.name for p in workdir.glob("m*/pairs.manifest.json"))
        raise ConfigError(f"pair is {pair!r}, and {workdir} has pairs of {', '.join(rounds) or 'no round'}")
    rows = {name: {row["id"]: row for row in file.rows()} for name, file in files.items()}
    if pair not in rows["pairs"]:
        near = difflib.get_close_matches(pair, rows["pairs"], n=1, cutoff=0.0)
        raise ConfigError(
            f"pair is {pair!r}, and {t} has no such pair; the nearest one is {near[0] if near else 'none'}"
        )
    settings, judge = storage.read_json(workdir / "config.json"), f"m{int(t[1:]) - 1}"
    model = storage.read_checksummed(workdir / judge / "manifest.json") or {}
    learnt = (storage.read_checksummed(workdir / t / "manifest.json") or {}).get("weights")
    chosen = rows["pairs"][pair]
    yield f"pair {pair} of {workdir}, seed {settings['seed']}"
    yield f"judged by {judge}, weights {model.get('weights')}"
    yield f"learnt by {t}, " + (f"weights {learnt}" if learnt else "which is not trained yet")
    for file in files.values():
        yield f"{file.path.name}: {file.manifest['rows']} rows, SHA-256 {file.manifest['sha256']}"
    writer = settings["prompts"]["writer"] or judge
    yield from _block(f"prompt, by {writer}", chosen["prompt"])
    yield f"answers, by {judge}; their keys: {_key(settings['seed'], t, 'candidates', pair)}, then the answer's number"
    for number, answer in enumerate(rows["responses"][pair]["responses"]):
        judged = rows["judgments"].get(f"{pair}/{number}")
        sides = [s for s in ("chosen", "rejected") if answer["text"] == chosen[s]]
        score = "not judged" if judged is None else f"score {judged['score']}"
        cut = "" if answer["finished"] else ", cut off"
        yield from _block(" ".join([f"answer {number}: {score}{cut}", *map(str.upper, sides)]), answer["text"])
        if judged:
            key = _key(settings["seed"], t, "judgments", judged["id"])
            yield f"    votes of {judge}; their keys: {key}, then the vote's number"
            for vote, said in enumerate(judged["votes"]):
                read = "no vote" if said["score"] is None else said["score"]
                yield from _block(f"    vote {vote}: {read}", said["text"], indent=8)


def _block(head: str, text: str, indent: int = 4) -> Iterator[str]:
    yield head
    yield from (" " * indent + "| " + line for line in escape(text).split("\n"))


def _key(seed: int, model: str, stage: str, row: str) -> str:
    numbers = [f"{stable_hash32(name)} ({name})" for name in (model, stage, row)]
    return f"key({seed}) folded with " + ", ".join(numbers)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

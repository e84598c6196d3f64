"""What the models of a run of the checkable world wrote, for reading. The first ones, in the order of the file.

python -m benchmarks.real_texts --workdir=runs/real/seed0/self --what=answers [--models=m1,m3] [--count=20]

answers    to held-out prompts, with the instructions that each meets and misses, by the oracle
judgments  of fixed answers, with the oracle's verdicts on the same answer
prompts    that a model wrote for its round, with what the oracle reads in them
pairs      that a model was trained on, with both scores
"""

import argparse
import textwrap
from collections.abc import Callable, Iterator, Sequence

from selfreward_jax.runs.run import Run, open_run
from selfreward_jax.worlds.checkable import oracle


def answers(run: Run, models: Sequence[str], count: int) -> Iterator[str]:
    """Every model's answer to the same held-out prompts."""
    rows = {name: run.files.jsonl(name, "eval_answers").rows()[:count] for name in models}
    for i, row in enumerate(rows[models[0]]):
        yield f"## {row['id']}: {row['prompt']}"
        for name in models:
            response = rows[name][i]["responses"][0]
            yield f"{name} ({_verdicts(row['prompt'], response['text'])})" + " CUT OFF" * (not response["finished"])
            yield _indented(response["text"])


def judgments(run: Run, models: Sequence[str], count: int) -> Iterator[str]:
    """Every model's first judgment of the same answers: of each prompt one, in turn the first, the second, ..."""
    ranked = run.files.jsonl("seed", f"ranked_{run.cfg.evaluate.split}").rows()[:count]
    written = {name: {r["id"]: r for r in run.files.jsonl(name, "eval_judgments").rows()} for name in models}
    for i, row in enumerate(ranked):
        k = i % len(row["answers"])
        answer = row["answers"][k]
        yield f"## {row['id']}/{k}: {row['prompt']}"
        yield _indented(answer["response"])
        yield f"true score {answer['score']} ({_verdicts(row['prompt'], answer['response'])})"
        for name in models:
            vote = written[name][f"{row['id']}/{k}"]["votes"][0]
            yield f"{name}:\n{_indented(vote['text'])}"


def prompts(run: Run, models: Sequence[str], count: int) -> Iterator[str]:
    """The new prompts of each model's round."""
    for name in models:
        for row in run.files.jsonl(name, "prompts").rows()[:count]:
            reading = oracle.read(row["prompt"])
            kinds = ", ".join(i.kind for i in reading.instructions) or "no instruction"
            yield f"{row['id']} ({kinds}{'; not read: ' + ' | '.join(reading.unread) if reading.unread else ''})"
            yield _indented(row["prompt"])


def pairs(run: Run, models: Sequence[str], count: int) -> Iterator[str]:
    """The preference pairs of each model's round."""
    for name in models:
        for row in run.files.jsonl(name, "pairs").rows()[:count]:
            yield f"## {row['id']}: {row['prompt']}"
            for side in ("chosen", "rejected"):
                yield f"{side}, {row[f'{side}_score']:g} ({_verdicts(row['prompt'], row[side])})"
                yield _indented(row[side])


TEXTS: dict[str, tuple[Callable[[Run, Sequence[str], int], Iterator[str]], str]] = {
    "answers": (answers, "eval_answers"),
    "judgments": (judgments, "eval_judgments"),
    "prompts": (prompts, "prompts"),
    "pairs": (pairs, "pairs"),
}


def _verdicts(prompt: str, response: str) -> str:
    met = oracle.points(prompt, response)
    return "met: {}; missed: {}".format(*(", ".join(k for k, v in met.items() if v is x) or "-" for x in (True, False)))


def _indented(text: str) -> str:
    return textwrap.indent(text, "    ", lambda _: True)


def main() -> None:
    """Prints the texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="working directory of the run")
    parser.add_argument("--what", choices=TEXTS, default="answers")
    parser.add_argument("--models", default="", help="by default all that have such texts")
    parser.add_argument("--count", type=int, default=20, help="how many of each model")
    options = parser.parse_args()
    run = open_run(options.workdir)
    texts, stage = TEXTS[options.what]
    there = [name for name in run.files.model_names() if run.files.jsonl(name, stage).manifest]
    for line in texts(run, options.models.split(",") if options.models else there, options.count):
        print(line)


if __name__ == "__main__":
    main()

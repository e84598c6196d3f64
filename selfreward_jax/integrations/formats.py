"""Between our rows and the formats of the field: AlpacaEval, MT-Bench, and preference pairs as TRL reads them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from selfreward_jax.config import ConfigError
from selfreward_jax.data.readers import Malformed, read
from selfreward_jax.storage.artifacts import encode_rows

Row = dict[str, Any]
Answers = Mapping[str, Sequence[Sequence[str]]]  # id -> choices -> the answer to each turn


class PromptRecord(NamedTuple):
    """What is to be answered: the turns that a user says one after the other, and fields that the answer repeats."""

    id: str
    turns: tuple[str, ...]
    passthrough: Row

    def to_messages(self, answers: Sequence[str]) -> list[tuple[str, str]]:
        """The conversation so far, after these answers, up to what the user says next."""
        turns = [("user", self.turns[0])]
        for answer, turn in zip(answers, self.turns[1:], strict=False):
            turns += [("assistant", answer), ("user", turn)]
        return turns


class Format(NamedTuple):
    """How a file of prompts is written.

    text: the field that holds what is asked.
    id: the field that names the row; a row without one goes by its number.
    kept: fields that the answer's row repeats.
    suffix: how the name of a file of answers must end for the format's own programs to find it; "" if they do not mind.
    """

    text: str
    id: str
    passthrough: tuple[str, ...]
    suffix: str


FORMATS = {
    "rows": Format("prompt", "id", (), ""),
    "alpaca_eval": Format("instruction", "", ("dataset", "datasplit"), ".json"),
    "mt_bench": Format("turns", "question_id", ("question_id",), ".jsonl"),
}
PAIR_FORMATS = ("conversational", "standard")


def check_use(name: str, out: str, samples: int, logprobs: bool) -> None:
    """Whether a benchmark's format can hold what is asked for.

    Raises:
      ConfigError: it cannot.
    """
    suffix = FORMATS[name].suffix
    if not out.endswith(suffix):
        raise ConfigError(f"--out is {out}; {name} looks for files that end in {suffix}")
    if name == "alpaca_eval" and samples > 1:
        raise ConfigError(f"--samples is {samples}; alpaca_eval takes one answer for each instruction: give 1")
    if logprobs:
        raise ConfigError(f"--logprobs has no place in a file of {name}: leave it out, or give --format=rows")


# --- prompts in ---


def read_prompts(path: str, name: str = "rows") -> list[PromptRecord]:
    """The rows of a file of prompts, in their order.

    Args:
      path: the file, in any form that seeds may have too.
      name: one of FORMATS.

    Raises:
      ConfigError: a row is malformed, two rows share an id, or there are none.
      SeedError: the file cannot be read.
    """
    form, asked, seen = FORMATS[name], [], set()
    for number, (where, row) in enumerate(read(path), 1):
        if isinstance(row, Malformed):
            raise ConfigError(f"{where} is {row.reason}")
        said = row.get(form.text) if isinstance(row, dict) else None
        turns = said if form.text == "turns" else [said]
        if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
            what = "a list of texts" if form.text == "turns" else "text"
            raise ConfigError(f'{where} is no object with a "{form.text}" that is {what}')
        row_id = str(row.get(form.id, number))
        if missing := [k for k in form.passthrough if k == form.id and k not in row]:
            raise ConfigError(f'{where} has no "{missing[0]}", by which the answer is found: give it one')
        if row_id in seen:
            raise ConfigError(f"{where}: the id {row_id!r} has been used before")
        seen.add(row_id)
        asked.append(PromptRecord(row_id, tuple(turns), {k: row[k] for k in form.passthrough if k in row}))
    if not asked:
        raise ConfigError(f"{path} has no prompts")
    return asked


# --- answers out ---


def alpaca_eval_outputs(asked: Sequence[PromptRecord], answers: Answers, generator: str) -> list[Row]:
    """The rows of AlpacaEval's model_outputs.json.

    Args:
      asked: the instructions.
      answers: the first choice of each counts.
      generator: the model's name on the leaderboard.
    """
    return [
        {**a.passthrough, "instruction": a.turns[0], "output": answers[a.id][0][0], "generator": generator}
        for a in asked
    ]


def mt_bench_answers(asked: Sequence[PromptRecord], answers: Answers, model_id: str, tstamp: float) -> list[Row]:
    """The rows of MT-Bench's model_answer/MODEL.jsonl.

    Args:
      asked: the questions.
      answers: the choices of each, with an answer to every turn.
      model_id: the model's name.
      tstamp: when the answers were made, in seconds since 1970.
    """
    rows = []
    for a in asked:
        choices = [{"index": i, "turns": list(turns)} for i, turns in enumerate(answers[a.id])]
        said = json.dumps([model_id, a.passthrough["question_id"], choices])
        answer_id = hashlib.sha256(said.encode()).hexdigest()[:22]
        rows.append(
            {**a.passthrough, "answer_id": answer_id, "model_id": model_id, "choices": choices, "tstamp": tstamp}
        )
    return rows


def encode_answers(name: str, asked: Sequence[PromptRecord], answers: Answers, label: str, tstamp: float) -> bytes:
    """The file of answers of a benchmark; `label` is the model's name in it, `tstamp` as in `mt_bench_answers`."""
    if name == "mt_bench":
        return encode_rows(mt_bench_answers(asked, answers, label, tstamp))
    listed = alpaca_eval_outputs(asked, answers, label)
    return (json.dumps(listed, indent=2, ensure_ascii=False) + "\n").encode()


# --- preference pairs out ---


def to_trl_rows(pairs: Sequence[Row], form: str) -> list[Row]:
    """Pairs as TRL's DPO reads them, with the judge's mean scores beside them.

    Args:
      pairs: rows {prompt, chosen, rejected, chosen_score, rejected_score}.
      form: "conversational": lists of messages, which the trainer puts into the model's chat template; "standard":
        plain text, which it joins as it is.
    """

    def said(role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if form == "conversational" else text

    return [
        {
            "prompt": said("user", pair["prompt"]),
            "chosen": said("assistant", pair["chosen"]),
            "rejected": said("assistant", pair["rejected"]),
            "score_chosen": pair["chosen_score"],
            "score_rejected": pair["rejected_score"],
        }
        for pair in pairs
    ]

"""Conversions between our rows and other file formats: AlpacaEval, MT-Bench, and preference pairs for TRL."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from selfreward_jax.config import ConfigError
from selfreward_jax.data.limits import Malformed, Unreadable, shown
from selfreward_jax.data.parsers import read_prompt
from selfreward_jax.data.readers import naming, read_records
from selfreward_jax.method.rows import PairRow, Row
from selfreward_jax.storage.artifacts import encode_rows

Answers = Mapping[str, Sequence[Sequence[str]]]  # id -> choices -> the answer to each turn


class PromptRecord(NamedTuple):
    """A prompt to be answered.

    turns: what the user says, one turn after the other. For `rows` a single one, which may also be a conversation:
      a list of messages {"role": ..., "content": ...}, not checked yet.
    passthrough: fields that the answer's row repeats.
    """

    id: str
    turns: tuple[Any, ...]
    passthrough: Row

    def to_messages(self, answers: Sequence[str]) -> list[tuple[str, str]]:
        """The conversation after these answers, up to the user's next turn, as (role, text)."""
        messages = [("user", self.turns[0])]
        for answer, turn in zip(answers, self.turns[1:], strict=False):
            messages += [("assistant", answer), ("user", turn)]
        return messages


class Format(NamedTuple):
    """The format of a prompt file.

    prompt_fields: the fields with the prompt; the first one that a row has counts. A text of `rows` may have any name
      that seed data have.
    description: what the field must hold, in an error.
    id_field: the field with the row's id; a row without it gets its number as id.
    passthrough: fields that the answer's row repeats.
    suffix: the file name suffix that the format's own programs expect of an answer file; "" if any will do.
    """

    prompt_fields: tuple[str, ...]
    description: str
    id_field: str
    passthrough: tuple[str, ...]
    suffix: str


FORMATS = {
    "rows": Format(("prompt", "messages"), "a text or a list of messages", "id", (), ""),
    "alpaca_eval": Format(("instruction",), "a text", "", ("dataset", "datasplit"), ".json"),
    "mt_bench": Format(("turns",), "a list of texts", "question_id", ("question_id",), ".jsonl"),
}
PAIR_FORMATS = ("conversational", "standard")
MAX_ID = 1000  # characters of a row's id, which each answer repeats


def check_options(format_name: str, out: str, num_samples: int, logprobs: bool) -> None:
    """Checks that a benchmark's format can hold the requested output.

    Raises:
      ConfigError: it cannot.
    """
    suffix = FORMATS[format_name].suffix
    if not out.endswith(suffix):
        raise ConfigError(f"--out is {out}; {format_name} reads files that end in {suffix}: change the name")
    if format_name == "alpaca_eval" and num_samples > 1:
        raise ConfigError(f"--num_samples is {num_samples}; alpaca_eval takes one answer per instruction: give 1")
    if logprobs:
        raise ConfigError(f"--logprobs does not fit into a file of {format_name}: leave it out, or give --format=rows")


# --- prompts in ---


def read_prompts(path: str, format_name: str = "rows") -> list[PromptRecord]:
    """The rows of a prompt file, in order.

    Args:
      path: the file, of any kind that seed data may have.
      format_name: one of FORMATS.

    Raises:
      ConfigError: a row is malformed or cannot be repeated in JSON, two rows share an id, or there are no rows.
      DataError: the file cannot be read.
    """
    file_format = FORMATS[format_name]
    prompts: dict[str, PromptRecord] = {}
    with naming("--prompts"):
        for number, (location, row) in enumerate(read_records(path), 1):
            if isinstance(row, Malformed):
                raise ConfigError(f"{location} is {row.reason}: {row.remedy or 'correct it'}")
            record = _parse_prompt(file_format, location, row, number)
            if record.id in prompts:
                raise ConfigError(f"{location}: the id {shown(record.id)} occurs twice; give each row its own id")
            prompts[record.id] = record
    if not prompts:
        raise ConfigError(f'{path} has no prompts: give a row {{"{file_format.prompt_fields[0]}": ...}} for each')
    return list(prompts.values())


def _parse_prompt(file_format: Format, location: str, row: Any, number: int) -> PromptRecord:
    fields = file_format.prompt_fields
    prompt = _prompt_of(fields, row) if isinstance(row, dict) else None
    turns = prompt if "turns" in fields else [prompt]
    if not isinstance(turns, list) or not turns or not all(_is_turn(turn, "messages" in fields) for turn in turns):
        keys = ", ".join(shown(key) for key in islice(row, 20)) if isinstance(row, dict) else ""
        has = f"it has {keys or 'no keys'}" if isinstance(row, dict) else "it is no object"
        wanted = " or ".join(f'"{field}"' for field in fields)
        raise ConfigError(f"{location} must be an object with {wanted}: {file_format.description}, not empty; {has}")
    if file_format.id_field in file_format.passthrough and file_format.id_field not in row:
        raise ConfigError(f'{location} has no "{file_format.id_field}", which identifies the answer: add one')
    passthrough = {k: row[k] for k in file_format.passthrough if k in row}
    record = PromptRecord(_row_id(location, row.get(file_format.id_field, number)), tuple(turns), passthrough)
    _check_writable(location, record)
    return record


def _prompt_of(fields: Sequence[str], row: Row) -> Any:
    """The prompt of a row. Where it may be a conversation, a text is read as that of an instruction row is."""
    prompt = next((row[f] for f in fields if row.get(f) is not None), None)
    if "messages" not in fields or isinstance(prompt, list):
        return prompt
    read = read_prompt(row)
    return read.prompt if isinstance(read.prompt, str) and not read.reason else prompt


def _row_id(location: str, value: Any) -> str:
    text = "" if isinstance(value, Unreadable) else str(value)
    if isinstance(value, Unreadable) or len(text) > MAX_ID:
        raise ConfigError(f"{location}: the id is {shown(value)}; give a text of at most {MAX_ID:,} characters")
    return text


def _check_writable(location: str, record: PromptRecord) -> None:
    """Raises ConfigError for what the answer's row could not repeat: it would be lost only after all the work."""
    messages = [
        turn for turn in record.turns if not isinstance(turn, str)
    ]  # texts are checked with the model's options
    for name, value in {"id": record.id, "prompt": messages, **record.passthrough}.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            fault = "contains a lone surrogate (half of a character)"
        except TypeError:  # a date of Parquet
            fault = f"is {shown(value)}, which JSON cannot hold"
        else:
            continue
        raise ConfigError(f"{location}: its {name} {fault}: correct it, or leave it out")


def _is_turn(turn: Any, may_be_messages: bool) -> bool:
    return isinstance(turn, str) or (may_be_messages and isinstance(turn, list))


# --- answers out ---


def alpaca_eval_outputs(prompts: Sequence[PromptRecord], answers: Answers, generator: str) -> list[Row]:
    """The rows of AlpacaEval's model_outputs.json.

    Args:
      prompts: the instructions.
      answers: only the first choice of each is used.
      generator: the model's name on the leaderboard.
    """
    return [
        {**p.passthrough, "instruction": p.turns[0], "output": answers[p.id][0][0], "generator": generator}
        for p in prompts
    ]


def mt_bench_answers(prompts: Sequence[PromptRecord], answers: Answers, model_id: str, tstamp: float) -> list[Row]:
    """The rows of MT-Bench's model_answer/MODEL.jsonl.

    Args:
      prompts: the questions.
      answers: the choices of each, with an answer to every turn.
      model_id: the model's name.
      tstamp: when the answers were generated, in seconds since 1970.
    """
    rows = []
    for p in prompts:
        choices = [{"index": i, "turns": list(turns)} for i, turns in enumerate(answers[p.id])]
        content = json.dumps([model_id, p.passthrough["question_id"], choices])
        answer_id = hashlib.sha256(content.encode()).hexdigest()[:22]
        rows.append(
            {**p.passthrough, "answer_id": answer_id, "model_id": model_id, "choices": choices, "tstamp": tstamp}
        )
    return rows


def encode_answers(
    format_name: str, prompts: Sequence[PromptRecord], answers: Answers, label: str, tstamp: float
) -> bytes:
    """The answer file of a benchmark; `label` is the model's name in it, `tstamp` as in `mt_bench_answers`."""
    if format_name == "mt_bench":
        return encode_rows(mt_bench_answers(prompts, answers, label, tstamp))
    outputs = alpaca_eval_outputs(prompts, answers, label)
    return (json.dumps(outputs, indent=2, ensure_ascii=False) + "\n").encode()


# --- preference pairs out ---


def to_trl_rows(pairs: Sequence[PairRow], pair_format: str) -> list[Row]:
    """Pairs as TRL's DPOTrainer reads them, with the judge's mean scores as extra columns.

    Args:
      pairs: the preference pairs of a round.
      pair_format: "conversational": lists of messages, to which the trainer applies the model's chat template;
        "standard": plain text, which the trainer concatenates as it is.
    """

    def message(role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if pair_format == "conversational" else text

    return [
        {
            "prompt": message("user", pair["prompt"]),
            "chosen": message("assistant", pair["chosen"]),
            "rejected": message("assistant", pair["rejected"]),
            "score_chosen": pair["chosen_score"],
            "score_rejected": pair["rejected_score"],
        }
        for pair in pairs
    ]

"""GSM8K (arXiv 2110.14168): school mathematics, the last number of an answer against the published one.

Published as rows {question, answer}; an answer ends in `#### NUMBER`. The question alone is asked, without examples.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from selfreward_jax.config import ConfigError
from selfreward_jax.config.errors import brief
from selfreward_jax.method.rows import Row

FIELDS = {"question": str, "answer": str}
_NUMBER = re.compile(r"(?:(?<![\w.)])-\$?)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def prompt(row: Row) -> str:
    """What a model is asked."""
    return row["question"]


def last_number(text: str) -> float | None:
    """The last number of a text, without separators of thousands; None if there is none."""
    numbers = _NUMBER.findall(text.replace("\u2212", "-"))
    return float(numbers[-1].replace(",", "").replace("$", "")) if numbers else None


def prepare(rows: Sequence[Row]) -> None:
    """Checks that each row has a number to reach.

    Raises:
      ConfigError: one has none.
    """
    for number, row in enumerate(rows, 1):
        if _published(row) is None:
            raise ConfigError(
                f"--suite=gsm8k: row {number}: answer is {brief(row['answer'])}; it must end in #### and a number"
            )


def _published(row: Row) -> float | None:
    _, mark, number = row["answer"].rpartition("####")
    return last_number(number) if mark else None


def check(row: Row, response: str) -> dict[str, bool]:
    """Whether a response ends in the right number."""
    return {"exact match": last_number(response) == _published(row)}


def tally(verdicts: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """For each metric how much of a row counts for it, and out of how much."""
    return {"exact match": (int(verdicts["exact match"]), 1)}

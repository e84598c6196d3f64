"""GSM8K (arXiv 2110.14168): school mathematics, the last number of an answer against the published one.

Published as rows {question, answer}; an answer ends in `#### NUMBER`. The question alone is asked, without examples.
"""

import re
from collections.abc import Mapping
from typing import Any

from selfreward_jax.method.rows import Row

FIELDS = {"question": str, "answer": str}
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def prompt(row: Row) -> str:
    """What a model is asked."""
    return row["question"]


def last_number(text: str) -> float | None:
    """The last number of a text, without separators of thousands; None if there is none."""
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def check(row: Row, response: str) -> dict[str, bool]:
    """Whether a response ends in the right number."""
    return {"exact match": last_number(response) == last_number(row["answer"].rpartition("####")[2])}


def tally(verdicts: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """For each metric how much of a row counts for it, and out of how much."""
    return {"exact match": (int(verdicts["exact match"]), 1)}

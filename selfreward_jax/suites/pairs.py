"""Suites for judges: pairs of answers of which people know the better one.

LLMBar (arXiv 2310.07641) has rows {input, output_1, output_2, label}, label 1 or 2. JudgeBench (arXiv 2410.12784) has
rows {question, response_A, response_B, label}, label "A>B" or "B>A".
"""

from selfreward_jax.config import ConfigError
from selfreward_jax.config.errors import brief
from selfreward_jax.method.pairwise import Matchup
from selfreward_jax.method.rows import Row

FIELDS = {
    "llmbar": {"input": str, "output_1": str, "output_2": str, "label": (int, str)},
    "judgebench": {"question": str, "response_A": str, "response_B": str, "label": str},
}
_LABELS = {"llmbar": {"1": 1, "2": -1}, "judgebench": {"A>B": 1, "B>A": -1}}


def matchups(name: str, rows: list[Row]) -> tuple[list[Matchup], list[int]]:
    """The pair of each row, the first answer as ours; and 1 where the first one is better, else -1.

    Raises:
      ConfigError: a label is unknown.
    """
    prompt, first, second = list(FIELDS[name])[:3]
    labels = []
    for number, row in enumerate(rows, 1):
        if str(row["label"]) not in _LABELS[name]:
            known = " or ".join(_LABELS[name])
            raise ConfigError(f"--suite={name}: row {number}: label is {brief(row['label'])}; it must be {known}")
        labels.append(_LABELS[name][str(row["label"])])
    return [Matchup(f"{name}/{i}", row[prompt], row[first], row[second]) for i, row in enumerate(rows)], labels


def tally(verdict: int, label: int) -> dict[str, tuple[float, int]]:
    """A right verdict counts 1, a tie a half."""
    return {"accuracy": ((1 + verdict * label) / 2, 1)}

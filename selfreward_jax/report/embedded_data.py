"""Rows for report.html, packed so that ten thousand pairs fit into a page of five megabytes.

A block is JSON, gzip, base64. The page unpacks what is searched when it opens, and votes when somebody asks for a pair.
"""

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfreward_jax.telemetry.escape import escape

Row = dict[str, Any]

MAX_CHARACTERS = 4000  # of a text that is shown
MAX_BYTES = 4_000_000  # of all blocks together
PAIRS_SHARE = 0.6  # of them for the pairs without their votes
ANSWERS_SHARE = 0.15
PAIRS_PER_BLOCK = 100  # whose votes are unpacked together


def packed(value: Any) -> str:
    """A block; the same bytes for the same value."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def shown(text: str) -> str:
    """A text as the page has it: inert, and cut where it is too long to read."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]} […{len(text) - MAX_CHARACTERS:,} more characters]"
    return escape(text)


def pairs(rounds: Mapping[str, Mapping[str, Sequence[Row]]]) -> dict[str, Any]:
    """The pairs of all rounds, and the votes on both sides of each.

    Args:
      rounds: for each round its `pairs`, `candidates` and `judgments`.

    Returns:
      {pairs: a block of columns id, prompt, chosen, rejected, chosen_score, rejected_score; votes: by their number,
      blocks of `PAIRS_A_BLOCK` pairs each, of [chosen, rejected] votes [score, text]; count: pairs there are; kept:
      pairs in the block; voted: pairs with their votes}. What does not fit is left out evenly.
    """
    rows = [row for of in rounds.values() for row in of["pairs"]]
    kept, block = _fitting(rows, _columns, MAX_BYTES * PAIRS_SHARE)
    votes = {name: _votes(of) for name, of in rounds.items()}
    room = MAX_BYTES * (1 - ANSWERS_SHARE) - len(block)
    count = -(-len(kept) // PAIRS_PER_BLOCK)
    voted: dict[int, str] = {}
    for index in sorted(range(count), key=lambda i: (i % 8, i)):  # from everywhere, while there is room
        part = kept[index * PAIRS_PER_BLOCK : (index + 1) * PAIRS_PER_BLOCK]
        made = packed([votes[row["id"].partition("/")[0]](row) for row in part])
        if len(made) <= room:
            voted[index], room = made, room - len(made)
    number = sum(len(kept[i * PAIRS_PER_BLOCK : (i + 1) * PAIRS_PER_BLOCK]) for i in voted)
    return {"pairs": block, "votes": voted, "count": len(rows), "kept": len(kept), "voted": number}


def _columns(rows: Iterable[Row]) -> dict[str, list[Any]]:
    rows = list(rows)
    texts = {name: [shown(row[name]) for row in rows] for name in ("id", "prompt", "chosen", "rejected")}
    return texts | {name: [row[name] for row in rows] for name in ("chosen_score", "rejected_score")}


def _votes(of: Mapping[str, Sequence[Row]]) -> Any:
    """A function from a pair to the votes on its sides."""
    answers = {row["id"]: row["responses"] for row in of["responses"]}
    judged = {row["id"]: row for row in of["judgments"]}

    def on(pair: Row, side: str) -> list[list[Any]]:
        texts = [response["text"] for response in answers.get(pair["id"], ())]
        rows = [judged.get(f"{pair['id']}/{i}") for i, text in enumerate(texts) if text == pair[side]]
        # Of two answers with one text, the one whose score it was.
        row = next((row for row in rows if row and row["score"] == pair[f"{side}_score"]), None)
        return [[vote.get("expected", vote["score"]), shown(vote["text"])] for vote in (row["votes"] if row else ())]

    return lambda pair: [on(pair, "chosen"), on(pair, "rejected")]


def answers(models: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """What all models said to the same held-out prompts: {block, count, kept}; the block has `models`, `prompts` and
    for each prompt and model the texts of its samples."""
    of = {name: {row["id"]: row for row in rows} for name, rows in models.items()}
    first = next(iter(models.values()), ())
    common = [row for row in first if all(row["id"] in rows for rows in of.values())]

    def table(rows: Sequence[Row]) -> dict[str, Any]:
        said = [
            [[shown(response["text"]) for response in of[name][row["id"]]["responses"]] for name in models]
            for row in rows
        ]
        return {"models": list(models), "prompts": [shown(row["prompt"]) for row in rows], "said": said}

    kept, block = _fitting(common, table, MAX_BYTES * ANSWERS_SHARE)
    return {"block": block, "count": len(common), "kept": len(kept)}


def _fitting(rows: Sequence[Row], table: Any, room: float) -> tuple[Sequence[Row], str]:
    """As many rows, evenly spread, as their block has room for."""
    block = packed(table(rows))
    while len(block) > room and len(rows) > 1:
        count = max(1, min(len(rows) - 1, int(0.95 * len(rows) * room / len(block))))
        rows = [rows[i * len(rows) // count] for i in range(count)]
        block = packed(table(rows))
    return rows, block

"""Rows for report.html, compressed so that ten thousand pairs fit into a page of five megabytes.

A block is JSON, then gzip, then base64. The page decompresses the searchable text when it opens, and votes only when a
pair is opened.
"""

import base64
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from selfreward_jax.console.escape import escape
from selfreward_jax.method.rows import JudgmentRow, PairRow, ResponsesRow

MAX_CHARACTERS = 4000  # of a displayed text
MAX_BYTES = 4_000_000  # of all blocks together
PAIRS_SHARE = 0.6  # fraction of MAX_BYTES for the pairs without their votes
ANSWERS_SHARE = 0.15
PAIRS_PER_BLOCK = 100  # pairs whose votes are decompressed together


class RoundRows(TypedDict):
    """The rows of one round."""

    pairs: Sequence[PairRow]
    responses: Sequence[ResponsesRow]
    judgments: Sequence[JudgmentRow]


def pack(value: Any) -> str:
    """A block; the same value gives the same bytes."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def display_text(text: str, limit: int = MAX_CHARACTERS) -> str:
    """A text as the page shows it: control characters escaped, and cut after `limit` characters."""
    if len(text) > limit:
        text = f"{text[:limit]} […{len(text) - limit:,} more characters]"
    return escape(text)


def pack_pairs(rounds: Mapping[str, RoundRows]) -> dict[str, Any]:
    """The pairs of all rounds, and the votes on both sides of each.

    Returns:
      `pairs`: a block of the columns id, prompt, chosen, rejected, chosen_score, rejected_score; `votes`: blocks by
      their index, of `PAIRS_PER_BLOCK` pairs each, with [chosen, rejected] votes [score, text]; `count`: number of
      pairs; `kept`: pairs in the block; `voted`: pairs with their votes. What does not fit is left out evenly.
    """
    rows = [row for round_rows in rounds.values() for row in round_rows["pairs"]]
    kept, block = _fit_rows(rows, _columns, MAX_BYTES * PAIRS_SHARE)
    votes_of = {name: vote_lookup(round_rows) for name, round_rows in rounds.items()}
    bytes_left = MAX_BYTES * (1 - ANSWERS_SHARE) - len(block)
    num_blocks = -(-len(kept) // PAIRS_PER_BLOCK)
    blocks: dict[int, str] = {}
    for index in sorted(range(num_blocks), key=lambda i: (i % 8, i)):  # spread over all pairs, while there is room
        members = kept[index * PAIRS_PER_BLOCK : (index + 1) * PAIRS_PER_BLOCK]
        votes = pack([votes_of[row["id"].partition("/")[0]](row) for row in members])
        if len(votes) <= bytes_left:
            blocks[index], bytes_left = votes, bytes_left - len(votes)
    voted = sum(len(kept[i * PAIRS_PER_BLOCK : (i + 1) * PAIRS_PER_BLOCK]) for i in blocks)
    return {"pairs": block, "votes": blocks, "count": len(rows), "kept": len(kept), "voted": voted}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    texts = {name: [display_text(row[name]) for row in rows] for name in ("id", "prompt", "chosen", "rejected")}
    return texts | {name: [row[name] for row in rows] for name in ("chosen_score", "rejected_score")}


def vote_lookup(
    round_rows: RoundRows, limit: int = MAX_CHARACTERS
) -> Callable[[Mapping[str, Any]], list[list[list[Any]]]]:
    """A function from a pair to the votes [score, text] on its two sides; texts are cut after `limit` characters."""
    responses = {row["id"]: row["responses"] for row in round_rows["responses"]}
    judgments = {row["id"]: row for row in round_rows["judgments"]}

    def votes_on(pair: Mapping[str, Any], side: str) -> list[list[Any]]:
        texts = [response["text"] for response in responses.get(pair["id"], ())]
        rows = [judgments.get(f"{pair['id']}/{i}") for i, text in enumerate(texts) if text == pair[side]]
        # Of two responses with the same text, the one with the pair's score.
        row = next((row for row in rows if row and row["score"] == pair[f"{side}_score"]), None)
        return [
            [vote.get("expected", vote["score"]), display_text(vote["text"], limit)]
            for vote in (row["votes"] if row else ())
        ]

    return lambda pair: [votes_on(pair, "chosen"), votes_on(pair, "rejected")]


def pack_responses(models: Mapping[str, Sequence[ResponsesRow]]) -> dict[str, Any]:
    """The responses of all models to the same held-out prompts.

    Returns:
      `block`: a block with `models`, `prompts` and, for each prompt and model, the texts of its `responses`; `count`:
      number of prompts that all models answered; `kept`: prompts in the block.
    """
    rows_of = {name: {row["id"]: row for row in rows} for name, rows in models.items()}
    first = next(iter(models.values()), ())
    common = [row for row in first if all(row["id"] in by_id for by_id in rows_of.values())]

    def table(rows: Sequence[ResponsesRow]) -> dict[str, Any]:
        texts = [
            [[display_text(response["text"]) for response in rows_of[name][row["id"]]["responses"]] for name in models]
            for row in rows
        ]
        return {"models": list(models), "prompts": [display_text(row["prompt"]) for row in rows], "responses": texts}

    kept, block = _fit_rows(common, table, MAX_BYTES * ANSWERS_SHARE)
    return {"block": block, "count": len(common), "kept": len(kept)}


def _fit_rows(
    rows: Sequence[Any], to_table: Callable[[Sequence[Any]], Any], max_bytes: float
) -> tuple[Sequence[Any], str]:
    """As many rows, evenly spread, as fit into a block of `max_bytes`, and the block."""
    block = pack(to_table(rows))
    while len(block) > max_bytes and len(rows) > 1:
        count = max(1, min(len(rows) - 1, int(0.95 * len(rows) * max_bytes / len(block))))
        rows = [rows[i * len(rows) // count] for i in range(count)]
        block = pack(to_table(rows))
    return rows, block

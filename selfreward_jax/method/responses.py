"""N answers to each prompt."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from selfreward_jax.method.judge import group_by_id
from selfreward_jax.sampling.engine import Engine, Request, SamplingParams

Row = dict[str, Any]


def generate_responses(
    engine: Engine, prompts: Sequence[Row], sampling_params: SamplingParams, key: Any, done: Iterable[str] = ()
) -> Iterator[list[Row]]:
    """Answers prompts {id, prompt}, batch by batch.

    Yields:
      Rows {id, prompt, responses: [{text, finished}], tokens}, with `how.samples` responses each.
    """
    text = {p["id"]: p["prompt"] for p in prompts}
    requests = [Request(p["id"], p["prompt"]) for p in prompts]
    for batch in engine.stream(requests, sampling_params, key, done):
        yield [
            {
                "id": group[0].id,
                "prompt": text[group[0].id],
                "responses": [{"text": c.text, "finished": c.finished} for c in group],
                "tokens": sum(len(c.ids) for c in group),
            }
            for group in group_by_id(batch)
        ]


def finished_responses(rows: Iterable[Row]) -> list[Row]:
    """Each finished, non-empty response as a row {id, prompt_id, prompt, response}.

    An answer that was cut off is not a bad answer, it is half of one: it is left out.
    """
    return [
        {
            "id": f"{row['id']}/{number}",
            "prompt_id": row["id"],
            "prompt": row["prompt"],
            "response": response["text"],
        }
        for row in rows
        for number, response in enumerate(row["responses"])
        if response["finished"] and response["text"]
    ]

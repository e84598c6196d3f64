"""N responses to each prompt."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from selfreward_jax.method.judge import group_by_id
from selfreward_jax.method.rows import PromptRow, ResponseRow, ResponsesRow
from selfreward_jax.sampling.engine import Engine, Request, SamplingParams


def generate_responses(
    engine: Engine, prompts: Sequence[PromptRow], sampling_params: SamplingParams, key: Any, done: Collection[str] = ()
) -> Iterator[list[ResponsesRow]]:
    """Samples responses to prompts {id, prompt[, system]}, batch by batch.

    Args:
      engine: the model that responds.
      prompts: rows with ids.
      sampling_params: `num_samples` responses are sampled for each prompt.
      key: random key of the stage.
      done: ids of prompts that already have their responses.

    Yields:
      Rows {id, prompt, responses: [{text, finished}], tokens}.
    """
    texts = {row["id"]: row["prompt"] for row in prompts}
    requests = [Request(row["id"], engine.chat.with_system(row["prompt"], row.get("system", ""))) for row in prompts]
    for batch in engine.stream(requests, sampling_params, key, done):
        yield [
            {
                "id": group[0].id,
                "prompt": texts[group[0].id],
                "responses": [{"text": c.text, "finished": c.finished} for c in group],
                "tokens": sum(len(c.ids) for c in group),
            }
            for group in group_by_id(batch)
        ]


def finished_responses(rows: Iterable[ResponsesRow]) -> list[ResponseRow]:
    """Each finished, non-empty response as a row {id, prompt_id, prompt, response}.

    A response that was cut off is dropped: it is incomplete, which does not make it a bad response.
    """
    return [
        {
            "id": f"{row['id']}/{sample}",
            "prompt_id": row["id"],
            "prompt": row["prompt"],
            "response": response["text"],
        }
        for row in rows
        for sample, response in enumerate(row["responses"])
        if response["finished"] and response["text"]
    ]

"""A file of prompts that rounds take their prompts from, in place of prompts that a model writes."""

from selfreward_jax.data.fields import first_value
from selfreward_jax.data.limits import DataError, Malformed
from selfreward_jax.data.messages import turns_of
from selfreward_jax.data.parsers import read_prompt
from selfreward_jax.data.readers import naming, read_records
from selfreward_jax.method.prompt_generation import normalize
from selfreward_jax.method.rows import Row


def read_pool(path: str) -> list[Row]:
    """The prompts of a file as rows {prompt}, each once, in order.

    Args:
      path: the file, of any kind and form that seed data may have; a row may also be a text.

    Raises:
      DataError: it cannot be read, a row has no prompt, or there is none.
    """
    prompts: dict[str, Row] = {}
    with naming("prompts.source"):
        for location, row in read_records(path):
            if isinstance(row, Malformed):
                raise DataError(f"prompts.source {location} is {row.reason}: {row.remedy or 'correct it'}")
            prompt = row if isinstance(row, str) else _prompt(row) if isinstance(row, dict) else None
            if not isinstance(prompt, str) or not prompt.strip():
                raise DataError(f'prompts.source {location} has no prompt: give a text, or a row {{"prompt": ...}}')
            prompts.setdefault(normalize(prompt), {"prompt": prompt.strip()})
    if not prompts:
        raise DataError(f'prompts.source {path} has no prompts: give a row {{"prompt": ...}} for each')
    return list(prompts.values())


def _prompt(row: Row) -> object:
    """The prompt of a row, or the first thing that the user says in its messages."""
    turns = turns_of(first_value(row, "messages"), "user")
    return read_prompt(row).prompt or (read_prompt(row, turns).prompt if turns else None)

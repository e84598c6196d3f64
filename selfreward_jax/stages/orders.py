"""Two texts shown to a model in both orders."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from selfreward_jax.sampling.engine import Completion, Engine, Request, SamplingParams
from selfreward_jax.stages.common import StageError
from selfreward_jax.telemetry.terminal import log_line

Prompts = Mapping[str, tuple[str, str]]  # by id: one text first, and the other first


class Both(NamedTuple):
    """The completions of both orders, samples in order."""

    id: str
    first: Sequence[Completion]
    second: Sequence[Completion]


def drop_long(
    engine: Engine, prompts: Prompts, max_new_tokens: int, label: str, remedy: str
) -> dict[str, tuple[str, str]]:
    """Those of which both orders leave room for the new tokens. Logs how many are left out.

    Raises:
      StageError: there are some, and none fits.
    """
    short = {name: two for name, two in prompts.items() if all(engine.fits(p, max_new_tokens) for p in two)}
    room = engine.max_length - max_new_tokens
    if prompts and not short:
        raise StageError(f"{label}: no two texts fit side by side into {room} tokens: {remedy}")
    if count := len(prompts) - len(short):
        log_line(f"{label}: {count} of {len(prompts)} comparisons have more than {room} tokens and are left out")
    return short


def stream(
    engine: Engine, prompts: Prompts, params: SamplingParams, key: jax.Array, done: Collection[str]
) -> Iterator[list[Both]]:
    """Completions of both orders in batches, each when it has both; those whose ids are done are left out."""
    requests = [Request(f"{name}/{order}", text) for name, two in prompts.items() for order, text in enumerate(two)]
    answered = {f"{name}/{order}" for name in done for order in (0, 1)}
    completions: dict[str, list[Completion]] = {}
    for batch in engine.stream(requests, params, key, answered):
        for completion in batch:
            completions.setdefault(completion.id, []).append(completion)
        names = dict.fromkeys(c.id.rpartition("/")[0] for c in batch)
        both = [(name, *(completions.get(f"{name}/{order}", []) for order in (0, 1))) for name in names]
        yield [
            Both(name, *(sorted(of, key=lambda c: c.sample) for of in orders))
            for name, *orders in both
            if all(len(of) == params.num_samples for of in orders)
        ]

"""The engine: any number of text requests in, completions out.

Batches are cut from the whole list of requests, never from what is left of it: a stage that was interrupted and
goes on computes the very same batches, so the same bits, as one that was not.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfreward_jax.generate import sampler
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.llama import LlamaConfig, Params
from selfreward_jax.parallel.arrays import fetch, put
from selfreward_jax.parallel.sharding import by_row, row_multiple


class Request(NamedTuple):
    """A prompt to be answered; `id` names the row and seeds its random numbers.

    prompt: what a user says; or a conversation, as (role, text) turns.
    """

    id: str
    prompt: str | Sequence[tuple[str, str]]


class Sampling(NamedTuple):
    """How to draw: samples per prompt, temperature (0 is greedy), nucleus mass, most new tokens."""

    samples: int
    temperature: float
    top_p: float
    max_new: int


class Completion(NamedTuple):
    """One sample. `finished` is False when `max_new` cut it off; logprobs are of the drawn ids."""

    id: str
    sample: int
    text: str
    ids: list[int]
    logprobs: list[float]
    finished: bool


class Engine:
    """Generates with one model. Rows of a batch are sharded over the mesh's `data` and `fsdp` axes.

    Args:
      cfg, params, chat: the model and its chat format.
      mesh: where it runs.
      rows: samples decoded at once; the batch size of the device program.
      max_length: most tokens of prompt and completion together; longer prompts are refused.
      raw: prompts are plain text to be continued, not messages to be answered.
    """

    def __init__(
        self,
        cfg: LlamaConfig,
        params: Params,
        chat: Chat,
        mesh: Mesh,
        *,
        rows: int,
        max_length: int,
        raw: bool = False,
    ) -> None:
        self.cfg, self.params, self.chat, self.mesh = cfg, params, chat, mesh
        self.rows, self.max_length, self.raw = rows, max_length, raw
        self._cache: tuple[tuple[int, int], sampler.Cache] | None = None  # of the last batch, by its shape

    def ids(self, prompt: str | Sequence[tuple[str, str]]) -> list[int]:
        """The ids that the model is given for a request's prompt."""
        if not isinstance(prompt, str):
            return self.chat.ids(prompt)
        return self.chat.opening(prompt) if self.raw else self.chat.prompt_ids(prompt)

    def fits(self, prompt: str | Sequence[tuple[str, str]], max_new: int) -> bool:
        """Whether `prompt` leaves room for `max_new` tokens."""
        return len(self.ids(prompt)) + max_new <= self.max_length

    def generate(self, requests: Sequence[Request], how: Sampling, key: jax.Array) -> list[Completion]:
        """All completions, in the order of the requests and then of the samples."""
        order = {r.id: i for i, r in enumerate(requests)}
        done = [c for batch in self.stream(requests, how, key) for c in batch]
        return sorted(done, key=lambda c: (order[c.id], c.sample))

    def stream(
        self,
        requests: Sequence[Request],
        how: Sampling,
        key: jax.Array,
        done: Collection[str] = (),
    ) -> Iterator[list[Completion]]:
        """Completions batch by batch, leaving out batches whose ids are all in `done`.

        Args:
          requests: all of them, with distinct ids; also those already done.
          how: how to draw.
          key: the key of this stage; the row's id, the sample's index and the position are folded into it.
          done: ids whose completions are already kept.

        Raises:
          ValueError: a prompt leaves no room for `how.max_new` tokens, or ids repeat.
        """
        if len({r.id for r in requests}) != len(requests):
            raise ValueError("request ids repeat; every id must name one row")
        ids = [self.ids(r.prompt) for r in requests]
        for request, tokens in zip(requests, ids, strict=True):
            if len(tokens) + how.max_new > self.max_length:
                raise ValueError(
                    f"prompt {request.id} has {len(tokens)} tokens; with {how.max_new} new ones it passes "
                    f"the model's length {self.max_length}"
                )
        # Prompts of like length together: less padding. A stable sort of the whole list is the same each run.
        by_length = sorted(range(len(requests)), key=lambda i: len(ids[i]))
        prompts = prompts_at_once(self.rows, how.samples, self.mesh)
        done = set(done)
        for start in range(0, len(requests), prompts):
            chosen = by_length[start : start + prompts]
            if all(requests[i].id in done for i in chosen):
                continue
            yield self._batch([requests[i] for i in chosen], [ids[i] for i in chosen], prompts, how, key)

    def next_logprobs(
        self, contexts: Sequence[list[int]], candidates: Sequence[list[int]], at_once: int = 0
    ) -> list[list[float]]:
        """Log-probs of ids that may come next.

        Args:
          contexts: token ids, one list a question.
          candidates: the ids asked about, as many for each question.
          at_once: contexts read together; `rows` of them if 0.
        """
        found: list[list[float]] = [[] for _ in contexts]
        by_length = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
        rows = prompts_at_once(at_once or self.rows, 1, self.mesh)
        for start in range(0, len(contexts), rows):
            chosen = by_length[start : start + rows]
            tokens, lengths = self._padded([contexts[i] for i in chosen], rows)
            asked = np.zeros((rows, len(candidates[0])), np.int32)
            asked[: len(chosen)] = [candidates[i] for i in chosen]
            with jax.set_mesh(self.mesh):
                logprobs = _logprobs_of(self.cfg, self.params, tokens, lengths, self._put(asked))
            for i, row in zip(chosen, fetch(logprobs), strict=False):
                found[i] = row.tolist()
        return found

    def _put(self, x: np.ndarray) -> jax.Array:
        return put(x, by_row(self.mesh, x.ndim))

    def _padded(self, ids: Sequence[Sequence[int]], rows: int) -> tuple[jax.Array, jax.Array]:
        """Prompts as tokens [rows, bucket] and lengths [rows]; rows that only fill the batch read one padding token."""
        tokens = np.zeros((rows, bucket(max(map(len, ids)))), np.int32)
        lengths = np.ones(rows, np.int32)
        for row, prompt in enumerate(ids):
            tokens[row, : len(prompt)] = prompt
            lengths[row] = len(prompt)
        return self._put(tokens), self._put(lengths)

    def _batch(
        self,
        requests: list[Request],
        ids: list[list[int]],
        prompts: int,
        how: Sampling,
        key: jax.Array,
    ) -> list[Completion]:
        tokens, lengths = self._padded(ids, prompts)
        names = [r.id for r in requests] + [""] * (prompts - len(requests))
        keys = jax.random.key_data(sample_keys(key, names, how.samples))

        shape = (prompts * how.samples, how.max_new)
        with jax.set_mesh(self.mesh):
            kept, self._cache = self._cache, None
            cache = kept[1] if kept and kept[0] == shape else sampler.empty_cache(self.cfg, *shape)
            logits, segment = sampler.prefill(self.cfg, self.params, tokens, lengths)
            samples, cache = sampler.decode(
                self.cfg,
                self.params,
                logits,
                segment,
                lengths,
                cache,
                jax.random.wrap_key_data(self._put(keys)),
                np.float32(how.temperature),
                np.float32(how.top_p),
                stop_ids=self.chat.stop_ids,
            )
            self._cache = shape, cache
        out, logprobs, count = fetch(samples)
        stops = set(self.chat.stop_ids)
        completions = []
        for row in range(len(requests) * how.samples):
            drawn = out[row, : count[row]].tolist()
            finished = bool(drawn) and drawn[-1] in stops
            completions.append(
                Completion(
                    id=requests[row // how.samples].id,
                    sample=row % how.samples,
                    text=self.chat.response_text(drawn),
                    ids=drawn,
                    logprobs=logprobs[row, : count[row]].tolist(),
                    finished=finished,
                )
            )
        return completions


def bucket(tokens: int) -> int:
    """The length to which prompts of so many tokens are padded: few lengths, so few programs to compile."""
    step = 16 if tokens <= 256 else 128
    return -(-tokens // step) * step


def prompts_at_once(rows: int, samples: int, mesh: Mesh) -> int:
    """Prompts of a batch that decodes about `rows` samples, `samples` a prompt: as many as the mesh divides."""
    multiple = row_multiple(mesh)
    return -(-max(1, rows // samples) // multiple) * multiple


def row_number(name: str) -> int:
    """A row id as a 32-bit number, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


@partial(jax.jit, static_argnames="cfg")
def _logprobs_of(
    cfg: LlamaConfig, params: Params, tokens: jax.Array, lengths: jax.Array, candidates: jax.Array
) -> jax.Array:
    logits, _ = sampler.prefill(cfg, params, tokens, lengths)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), candidates, axis=-1)


@jax.jit
def _fold(key: jax.Array, rows: jax.Array, samples: jax.Array) -> jax.Array:
    one = lambda r, s: jax.random.fold_in(jax.random.fold_in(key, r), s)  # noqa: E731
    return jax.vmap(one)(rows, samples)


def sample_keys(key: jax.Array, names: Sequence[str], samples: int) -> jax.Array:
    """Keys [P * G]: `key` folded with the row's id and the sample's index."""
    rows = np.repeat(np.array([row_number(n) for n in names], np.uint32), samples)
    return _fold(key, rows, np.tile(np.arange(samples, dtype=np.uint32), len(names)))

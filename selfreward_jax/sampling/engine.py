"""The engine: any number of text requests in, completions out.

Requests are sorted by length and cut into windows, always of the whole list and never of what is left of it: the shapes
of the programs that a row goes through, and so its bits, are the same in a stage that was interrupted and goes on. In a
window, prompts come into places that others have left. What all prompts of a call begin with is read once.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfreward_jax.llm.attention import KVSegment
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.llama import LlamaConfig, Params
from selfreward_jax.parallel.arrays import fetch, put
from selfreward_jax.parallel.sharding import batch_divisor, batch_sharding, replicated, round_up
from selfreward_jax.sampling import batching, sampler


class Request(NamedTuple):
    """A prompt to be answered; `id` names the row and seeds its random numbers.

    prompt: what a user says; or a conversation, as (role, text) turns.
    """

    id: str
    prompt: str | Sequence[tuple[str, str]]


class Prompt(NamedTuple):
    """A request in ids, without what all requests begin with."""

    id: str
    ids: list[int]


class SamplingParams(NamedTuple):
    """How to draw: samples per prompt, temperature (0 is greedy), nucleus mass, most new tokens."""

    num_samples: int
    temperature: float
    top_p: float
    max_new_tokens: int


class Completion(NamedTuple):
    """One sample. `finished` is False when `max_new` cut it off; logprobs are of the drawn ids."""

    id: str
    sample: int
    text: str
    ids: list[int]
    logprobs: list[float]
    finished: bool


class Engine:
    """Generates with one model. Rows are sharded over the mesh's axes that share rows.

    Args:
      cfg, params, chat: the model and its chat format.
      mesh: where it runs.
      rows: samples decoded at once: the slots of the device program.
      max_length: most tokens of prompt and completion together; longer prompts are refused.
      raw: prompts are plain text to be continued, not messages to be answered.
      halt: where it returns True, `stream` finishes the prompts at work and takes no more.
    """

    def __init__(
        self,
        cfg: LlamaConfig,
        params: Params,
        chat: Chat,
        mesh: Mesh,
        *,
        max_concurrent: int,
        max_length: int,
        raw: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.cfg, self.params, self.chat, self.mesh = cfg, params, chat, mesh
        self.max_concurrent, self.max_length, self.raw, self.should_stop = max_concurrent, max_length, raw, should_stop
        self._prefix: tuple[list[int], KVSegment] | None = None  # the last one that was read

    def encode(self, prompt: str | Sequence[tuple[str, str]]) -> list[int]:
        """The ids that the model is given for a request's prompt."""
        if not isinstance(prompt, str):
            return self.chat.message_ids(prompt)
        return self.chat.encode_prefix(prompt) if self.raw else self.chat.prompt_ids(prompt)

    def fits(self, prompt: str | Sequence[tuple[str, str]], max_new_tokens: int) -> bool:
        """Whether `prompt` leaves room for `max_new` tokens."""
        return len(self.encode(prompt)) + max_new_tokens <= self.max_length

    def generate(
        self, requests: Sequence[Request], sampling_params: SamplingParams, key: jax.Array
    ) -> list[Completion]:
        """All completions, in the order of the requests and then of the samples."""
        order = {r.id: i for i, r in enumerate(requests)}
        done = [c for batch in self.stream(requests, sampling_params, key, ignore_stop=True) for c in batch]
        return sorted(done, key=lambda c: (order[c.id], c.sample))

    def stream(
        self,
        requests: Sequence[Request],
        sampling_params: SamplingParams,
        key: jax.Array,
        done: Collection[str] = (),
        ignore_stop: bool = False,
    ) -> Iterator[list[Completion]]:
        """Completions as they come, all samples of a request together, leaving out those in `done`.

        Args:
          requests: all of them, with distinct ids; also those already done.
          how: how to draw.
          key: the key of this stage; the row's id, the sample's index and the position are folded into it.
          done: ids whose completions are already kept.
          to_the_end: whatever `halt` says.

        Raises:
          ValueError: a prompt leaves no room for `how.max_new` tokens, or ids repeat.
        """
        if len({r.id for r in requests}) != len(requests):
            raise ValueError("request ids repeat; every id must name one row")
        ids = [self.encode(r.prompt) for r in requests]
        for request, tokens in zip(requests, ids, strict=True):
            if len(tokens) + sampling_params.max_new_tokens > self.max_length:
                raise ValueError(
                    f"prompt {request.id} has {len(tokens)} tokens; with {sampling_params.max_new_tokens} new ones it passes "
                    f"the model's length {self.max_length}"
                )
        if not requests:
            return
        prefix, shared = self._read_prefix(ids)
        rest, done = [x[shared:] for x in ids], set(done)
        places = batching.num_prompt_slots(len(requests), self.max_concurrent, sampling_params.num_samples, self.mesh)
        halt = (lambda: False) if ignore_stop else self.should_stop
        for window, length in batching.bucket_by_length([len(x) for x in rest], batching.WINDOW_DEPTH * places):
            prompts = [Prompt(requests[i].id, rest[i]) for i in window if requests[i].id not in done]
            if prompts and not halt():
                together = batching.prefill_batch_size(len(requests), places, length, self.mesh)
                yield from self._window(prompts, places, together, length, prefix, sampling_params, key, halt)

    def _window(
        self,
        prompts: list[Prompt],
        places: int,
        together: int,
        length: int,
        prefix: KVSegment | None,
        sampling_params: SamplingParams,
        key: jax.Array,
        should_stop: Callable[[], bool],
    ) -> Iterator[list[Completion]]:
        """Completions of prompts of at most `length` tokens behind the prefix. At any time `places` of them are at
        work; where `together` places have fallen free, as many prompts come in, until `halt` says so."""
        draw = sampler.DrawParams(np.float32(sampling_params.temperature), np.float32(sampling_params.top_p))
        stop_ids = tuple(self.chat.stop_ids)
        waiting = deque(prompts[i : i + together] for i in range(0, len(prompts), together))
        ahead = partial(self._prefill_next, waiting, together, length, prefix, sampling_params, key)
        with jax.set_mesh(self.mesh):
            slots = sampler.init_slots(
                self.cfg, places, sampling_params.num_samples, length, sampling_params.max_new_tokens
            )
        ready, free, at_work = ahead(), list(range(places)), {}
        finished: list[Completion] = []
        while ready or at_work:
            while ready and len(free) >= together:
                if should_stop():
                    ready = None
                    break
                chosen, read = ready
                taken, free = free[: len(chosen)], free[len(chosen) :]
                at_work |= zip(taken, chosen, strict=True)
                where = np.array(taken + [places] * (together - len(taken)), np.int32)
                with jax.set_mesh(self.mesh):
                    slots = sampler.insert(slots, self._put(where), *read, draw, stop_ids=stop_ids)
                ready = ahead()
            if not at_work:
                break
            enough = together if ready else min(places, len(free) + together)
            with jax.set_mesh(self.mesh):
                slots = sampler.decode(self.cfg, self.params, slots, prefix, draw, np.int32(enough), stop_ids=stop_ids)
            if finished:
                yield finished  # what is done with them is done while the device draws
            samples, ended = fetch((slots.samples, slots.done_B))
            ended = ended.reshape(places, sampling_params.num_samples).all(1)
            left = [place for place in at_work if ended[place]]
            finished = [
                c for place in left for c in self._completions(at_work.pop(place), samples, place, sampling_params)
            ]
            free += left
        if finished:
            yield finished

    def _prefill_next(
        self,
        waiting: deque,
        together: int,
        length: int,
        prefix: KVSegment | None,
        sampling_params: SamplingParams,
        key: jax.Array,
    ) -> Any:
        """The next prompts, and what `admit` is given of them: read by the device before there is a place for them.
        None if no more are waiting."""
        if not waiting:
            return None
        chosen = waiting.popleft()
        tokens, lengths = self._padded([p.ids for p in chosen], together, length)
        names = [p.id for p in chosen] + [""] * (together - len(chosen))
        keys = jax.random.key_data(sample_keys(key, names, sampling_params.num_samples))
        keys = np.asarray(keys).reshape(together, sampling_params.num_samples, -1)
        with jax.set_mesh(self.mesh):
            logits, segment = sampler.prefill(self.cfg, self.params, tokens, lengths, prefix)
        return chosen, (logits, segment, lengths, self._put(keys))

    def _completions(
        self, prompt: Prompt, samples: sampler.Samples, place: int, sampling_params: SamplingParams
    ) -> Iterator[Completion]:
        for sample in range(sampling_params.num_samples):
            row = place * sampling_params.num_samples + sample
            drawn = samples.tokens[row, : samples.lengths[row]].tolist()
            yield Completion(
                id=prompt.id,
                sample=sample,
                text=self.chat.response_text(drawn),
                ids=drawn,
                logprobs=samples.logprobs[row, : samples.lengths[row]].tolist(),
                finished=drawn[-1] in self.chat.stop_ids,
            )

    def _read_prefix(self, ids: Sequence[list[int]]) -> tuple[KVSegment | None, int]:
        """The keys and values of what all prompts begin with, and how many tokens that is; None if too few."""
        shared = batching.common_prefix_len(ids)
        if not shared:
            return None, 0
        tokens = ids[0][:shared]
        if self._prefix is None or self._prefix[0] != tokens:
            self._prefix = None
            placed = put(np.array(tokens, np.int32), replicated(self.mesh))
            with jax.set_mesh(self.mesh):
                self._prefix = tokens, sampler.read_prefix(self.cfg, self.params, placed)
        return self._prefix[1], shared

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
        rows = round_up(at_once or self.max_concurrent, batch_divisor(self.mesh))
        lengths = [batching.padded_length(len(c)) for c in contexts]
        # Each padded as its own length asks for, and not its company: what is found does not depend on that.
        for length in sorted(set(lengths)):
            alike = [i for i, n in enumerate(lengths) if n == length]
            for start in range(0, len(alike), rows):
                chosen = alike[start : start + rows]
                tokens, ends = self._padded([contexts[i] for i in chosen], rows, length)
                asked = np.zeros((rows, len(candidates[0])), np.int32)
                asked[: len(chosen)] = [candidates[i] for i in chosen]
                with jax.set_mesh(self.mesh):
                    logprobs = _logprobs_of(self.cfg, self.params, tokens, ends, self._put(asked))
                for i, row in zip(chosen, fetch(logprobs), strict=False):
                    found[i] = row.tolist()
        return found

    def _put(self, x: np.ndarray) -> jax.Array:
        return put(x, batch_sharding(self.mesh, x.ndim))

    def _padded(self, ids: Sequence[Sequence[int]], rows: int, length: int) -> tuple[jax.Array, jax.Array]:
        """Prompts as tokens [rows, length] and lengths [rows]; rows that only fill the batch read one padding token."""
        tokens = np.zeros((rows, length), np.int32)
        lengths = np.ones(rows, np.int32)
        for row, prompt in enumerate(ids):
            tokens[row, : len(prompt)] = prompt
            lengths[row] = len(prompt)
        return self._put(tokens), self._put(lengths)


def stable_hash32(name: str) -> int:
    """A row id as a 32-bit number, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


@partial(jax.jit, static_argnames="cfg")
def _logprobs_of(
    cfg: LlamaConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    candidates: jax.Array,
) -> jax.Array:
    logits, _ = sampler.prefill(cfg, params, tokens, lengths)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), candidates, axis=-1)


@jax.jit
def _fold(key: jax.Array, rows: jax.Array, samples: jax.Array) -> jax.Array:
    one = lambda r, s: jax.random.fold_in(jax.random.fold_in(key, r), s)  # noqa: E731
    return jax.vmap(one)(rows, samples)


def sample_keys(key: jax.Array, names: Sequence[str], samples: int) -> jax.Array:
    """Keys [P * G]: `key` folded with the row's id and the sample's index."""
    rows = np.repeat(np.array([stable_hash32(n) for n in names], np.uint32), samples)
    return _fold(key, rows, np.tile(np.arange(samples, dtype=np.uint32), len(names)))

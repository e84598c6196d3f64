"""The engine: any number of text requests in, completions out.

Requests are sorted by length and split into buckets. The buckets are always computed from the full list, never from the
requests that remain. So each row runs in programs of the same shapes, and gets the same bits, when a stage is
interrupted and resumed. Within a bucket, new prompts enter the prompt slots that finished prompts leave. The common
prefix of all prompts of a call is prefilled once.
"""

import copy
import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfreward_jax.config import InputError
from selfreward_jax.llm.attention import KVSegment
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params
from selfreward_jax.parallel.arrays import fetch, put
from selfreward_jax.parallel.sharding import batch_divisor, batch_sharding, replicated, round_up
from selfreward_jax.sampling import batching, sampler


class NonFiniteLogitsError(InputError, ArithmeticError):
    """The model's logits are not finite, so no token can be drawn; the message names the row."""

    def __init__(self, row: str) -> None:
        super().__init__(
            f"{row}: the model's logits are not finite; its weights or its activations have overflowed: use "
            "model.dtype=float32, a model that was not trained as far, or a lower learning rate"
        )


class Request(NamedTuple):
    """A prompt to be answered; `id` names the row and seeds its random numbers.

    prompt: a user message; or a conversation of (role, text) messages.
    """

    id: str
    prompt: str | Sequence[tuple[str, str]]


class Prompt(NamedTuple):
    """A request as token ids, without the prefix that all requests share."""

    id: str
    ids: list[int]


class SamplingParams(NamedTuple):
    """Samples for each prompt, temperature (0 is greedy), top-p mass, and the limit of new tokens."""

    num_samples: int
    temperature: float
    top_p: float
    max_new_tokens: int


class Completion(NamedTuple):
    """One sample. `finished` is False if it was cut off at `max_new_tokens`; logprobs are those of `ids`."""

    id: str
    sample: int
    text: str
    ids: list[int]
    logprobs: list[float]
    finished: bool


class Bucket(NamedTuple):
    """What the prompts of one length bucket have in common.

    num_slots: prompts decoded at the same time, P.
    prefill_batch_size: prompts prefilled and inserted together, R.
    prompt_len: the padded length of the prompts, without the prefix.
    prefix: keys and values of the prefix that all prompts share, if there is one.
    key: the stage's key.
    should_stop: where it returns True, no more prompts are inserted.
    """

    num_slots: int
    prefill_batch_size: int
    prompt_len: int
    prefix: KVSegment | None
    sampling_params: SamplingParams
    key: jax.Array
    should_stop: Callable[[], bool]


class Prefilled(NamedTuple):
    """Prompts that the device has prefilled, with the arguments of `sampler.insert` for them."""

    prompts: list[Prompt]
    logits: jax.Array
    segment: KVSegment
    lengths: jax.Array
    keys: jax.Array


class Engine:
    """Generates with one model. Rows are sharded over the mesh's batch axes.

    Args:
      cfg, params, chat: the model and its chat format.
      mesh: the devices that it runs on.
      max_concurrent: samples decoded at once: the rows of the device program.
      max_length: the limit for the tokens of prompt and completion together; longer prompts are refused.
      raw: prompts are plain text to be continued, not messages to be answered.
      should_stop: where it returns True, `stream` finishes the active prompts and starts no more.
    """

    def __init__(
        self,
        cfg: DecoderConfig,
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
        self._prefix: tuple[list[int], KVSegment] | None = None  # the prefix that was prefilled last

    def as_raw(self) -> "Engine":
        """An engine with the same weights whose prompts are plain text to be continued."""
        engine = copy.copy(self)
        engine.raw = True
        return engine

    def encode(self, prompt: str | Sequence[tuple[str, str]]) -> list[int]:
        """The model's input ids for a request's prompt."""
        if not isinstance(prompt, str):
            return self.chat.message_ids(prompt)
        return self.chat.encode_prefix(prompt) if self.raw else self.chat.prompt_ids(prompt)

    def fits(self, prompt: str | Sequence[tuple[str, str]], max_new_tokens: int) -> bool:
        """Whether `prompt` leaves room for `max_new_tokens` tokens."""
        return len(self.encode(prompt)) + max_new_tokens <= self.max_length

    def generate(
        self, requests: Sequence[Request], sampling_params: SamplingParams, key: jax.Array
    ) -> list[Completion]:
        """All completions, in the order of the requests and then of the samples."""
        order = {r.id: i for i, r in enumerate(requests)}
        completions = [c for batch in self.stream(requests, sampling_params, key, ignore_stop=True) for c in batch]
        return sorted(completions, key=lambda c: (order[c.id], c.sample))

    def stream(
        self,
        requests: Sequence[Request],
        sampling_params: SamplingParams,
        key: jax.Array,
        done: Collection[str] = (),
        ignore_stop: bool = False,
    ) -> Iterator[list[Completion]]:
        """Completions as they finish, all samples of a request together, without the requests in `done`.

        Args:
          requests: all requests, with distinct ids; also those that are already done.
          sampling_params: how to sample.
          key: the stage's key. The row's id, the sample's index and the token's position are folded into it.
          done: ids of requests whose completions are already stored.
          ignore_stop: do not ask `should_stop`.

        Raises:
          ValueError: a prompt leaves no room for `max_new_tokens` tokens, or ids repeat.
          NonFiniteLogitsError: the model's logits are not finite.
        """
        if len({r.id for r in requests}) != len(requests):
            raise ValueError("request ids repeat; every id must name one row")
        ids = [self.encode(r.prompt) for r in requests]
        for request, tokens in zip(requests, ids, strict=True):
            if len(tokens) + sampling_params.max_new_tokens > self.max_length:
                raise ValueError(
                    f"prompt {request.id} has {len(tokens)} tokens; with {sampling_params.max_new_tokens} new ones it "
                    f"passes the model's length {self.max_length}"
                )
        if not requests:
            return
        prefix, prefix_len = self._prefill_prefix(ids)
        suffixes, done = [x[prefix_len:] for x in ids], set(done)
        num_slots = batching.num_prompt_slots(
            len(requests), self.max_concurrent, sampling_params.num_samples, self.mesh
        )
        should_stop = (lambda: False) if ignore_stop else self.should_stop
        lengths, min_size = [len(x) for x in suffixes], batching.MIN_BUCKET_FILLS * num_slots
        for members, prompt_len in batching.bucket_by_length(lengths, min_size):
            prompts = [Prompt(requests[i].id, suffixes[i]) for i in members if requests[i].id not in done]
            if prompts and not should_stop():
                batch_size = batching.prefill_batch_size(len(requests), num_slots, prompt_len, self.mesh)
                bucket = Bucket(num_slots, batch_size, prompt_len, prefix, sampling_params, key, should_stop)
                yield from self._run_bucket(prompts, bucket)

    def _run_bucket(self, prompts: list[Prompt], bucket: Bucket) -> Iterator[list[Completion]]:
        """Completions of the prompts of one bucket.

        At any time up to P prompts are active. Where R slots are free, up to R prompts are inserted, until
        `should_stop` returns True.
        """
        P, R, params = bucket.num_slots, bucket.prefill_batch_size, bucket.sampling_params
        draw = sampler.DrawParams(np.float32(params.temperature), np.float32(params.top_p))
        stop_ids = tuple(self.chat.stop_ids)
        queue = deque(prompts[i : i + R] for i in range(0, len(prompts), R))
        with jax.set_mesh(self.mesh):
            slots = sampler.init_slots(self.cfg, P, params.num_samples, bucket.prompt_len, params.max_new_tokens)
        prefilled = self._prefill_next(queue, bucket)
        free, active = list(range(P)), {}
        finished: list[Completion] = []
        while prefilled or active:
            while prefilled and len(free) >= R:
                if bucket.should_stop():
                    prefilled = None
                    break
                filled, free = free[: len(prefilled.prompts)], free[len(prefilled.prompts) :]
                active |= zip(filled, prefilled.prompts, strict=True)
                slot_index_R = np.array(filled + [P] * (R - len(filled)), np.int32)
                with jax.set_mesh(self.mesh):
                    slots = sampler.insert(slots, self._put(slot_index_R), *prefilled[1:], draw, stop_ids=stop_ids)
                prefilled = self._prefill_next(queue, bucket)
            if not active:
                break
            min_free = R if prefilled else min(P, len(free) + R)
            with jax.set_mesh(self.mesh):
                slots = sampler.decode(
                    self.cfg, self.params, slots, bucket.prefix, draw, np.int32(min_free), stop_ids=stop_ids
                )
            if finished:
                yield finished  # the caller processes these while the device decodes
            samples, done_B = fetch((slots.samples, slots.done_B))
            done_P = done_B.reshape(P, params.num_samples).all(1)
            ended = [slot for slot in active if done_P[slot]]
            finished = [c for slot in ended for c in self._completions(active.pop(slot), samples, slot, params)]
            free += ended
        if finished:
            yield finished

    def _prefill_next(self, queue: deque[list[Prompt]], bucket: Bucket) -> Prefilled | None:
        """Prefills the next prompts of the queue, before there are free slots for them. None if the queue is empty."""
        if not queue:
            return None
        R, num_samples = bucket.prefill_batch_size, bucket.sampling_params.num_samples
        prompts = queue.popleft()
        tokens, lengths = self._pad([p.ids for p in prompts], R, bucket.prompt_len)
        row_ids = [p.id for p in prompts] + [""] * (R - len(prompts))
        keys = jax.random.key_data(sample_keys(bucket.key, row_ids, num_samples))
        keys = np.asarray(keys).reshape(R, num_samples, -1)
        with jax.set_mesh(self.mesh):
            logits, segment = sampler.prefill(self.cfg, self.params, tokens, lengths, bucket.prefix)
        return Prefilled(prompts, logits, segment, lengths, self._put(keys))

    def _completions(
        self, prompt: Prompt, samples: sampler.Samples, slot: int, sampling_params: SamplingParams
    ) -> Iterator[Completion]:
        for sample in range(sampling_params.num_samples):
            row = slot * sampling_params.num_samples + sample
            ids = samples.tokens[row, : samples.lengths[row]].tolist()
            logprobs = samples.logprobs[row, : samples.lengths[row]]
            if not np.isfinite(logprobs).all():
                raise NonFiniteLogitsError(f"row {prompt.id}, sample {sample}, token {np.isfinite(logprobs).argmin()}")
            yield Completion(
                id=prompt.id,
                sample=sample,
                text=self.chat.response_text(ids),
                ids=ids,
                logprobs=logprobs.tolist(),
                finished=ids[-1] in self.chat.stop_ids,
            )

    def _prefill_prefix(self, ids: Sequence[list[int]]) -> tuple[KVSegment | None, int]:
        """Keys and values of the common prefix of all prompts, and its length; None and 0 if it is short."""
        prefix_len = batching.common_prefix_len(ids)
        if not prefix_len:
            return None, 0
        tokens = ids[0][:prefix_len]
        if self._prefix is None or self._prefix[0] != tokens:
            self._prefix = None
            tokens_S = put(np.array(tokens, np.int32), replicated(self.mesh))
            with jax.set_mesh(self.mesh):
                self._prefix = tokens, sampler.read_prefix(self.cfg, self.params, tokens_S)
        return self._prefix[1], prefix_len

    def next_logprobs(
        self, contexts: Sequence[list[int]], candidates: Sequence[list[int]], batch_size: int = 0
    ) -> list[list[float]]:
        """Log-probs of candidate next tokens.

        Args:
          contexts: token ids, one list for each query.
          candidates: the candidate ids of each query, equally many for all.
          batch_size: contexts in one forward pass; `max_concurrent` if 0.

        Raises:
          NonFiniteLogitsError: the model's logits are not finite.
        """
        results: list[list[float]] = [[] for _ in contexts]
        rows = round_up(batch_size or self.max_concurrent, batch_divisor(self.mesh))
        lengths = [batching.padded_length(len(c)) for c in contexts]
        # Each context is padded for its own length, so its result does not depend on the others in the batch.
        for length in sorted(set(lengths)):
            same_length = [i for i, n in enumerate(lengths) if n == length]
            for start in range(0, len(same_length), rows):
                batch = same_length[start : start + rows]
                tokens, context_lengths = self._pad([contexts[i] for i in batch], rows, length)
                candidate_ids = np.zeros((rows, len(candidates[0])), np.int32)
                candidate_ids[: len(batch)] = [candidates[i] for i in batch]
                with jax.set_mesh(self.mesh):
                    logprobs = _candidate_logprobs(
                        self.cfg, self.params, tokens, context_lengths, self._put(candidate_ids)
                    )
                for i, row in zip(batch, fetch(logprobs), strict=False):
                    if not np.isfinite(row).all():
                        raise NonFiniteLogitsError(f"query {i}")
                    results[i] = row.tolist()
        return results

    def _put(self, x: np.ndarray) -> jax.Array:
        return put(x, batch_sharding(self.mesh, x.ndim))

    def _pad(self, ids: Sequence[Sequence[int]], rows: int, length: int) -> tuple[jax.Array, jax.Array]:
        """Prompts as tokens [rows, length] and lengths [rows]. Rows that only fill the batch have one padding token."""
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
def _candidate_logprobs(
    cfg: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    candidates: jax.Array,
) -> jax.Array:
    logits, _ = sampler.prefill(cfg, params, tokens, lengths)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), candidates, axis=-1)


@jax.jit
def _fold_in(key: jax.Array, rows: jax.Array, samples: jax.Array) -> jax.Array:
    fold_row_and_sample = lambda row, sample: jax.random.fold_in(jax.random.fold_in(key, row), sample)  # noqa: E731
    return jax.vmap(fold_row_and_sample)(rows, samples)


def sample_keys(key: jax.Array, row_ids: Sequence[str], num_samples: int) -> jax.Array:
    """Keys [P * G]: `key` folded with the row's id and the sample's index."""
    rows = np.repeat(np.array([stable_hash32(row_id) for row_id in row_ids], np.uint32), num_samples)
    return _fold_in(key, rows, np.tile(np.arange(num_samples, dtype=np.uint32), len(row_ids)))

"""The prompts of one length bucket, sampled: slots are refilled while the device decodes, until all samples are drawn.

A prompt is prefilled once. Its samples then wait for a slot, and each takes the next one that is free.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from selfreward_jax.llm.attention import KVSegment
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import Params
from selfreward_jax.parallel.arrays import fetch, put
from selfreward_jax.parallel.sharding import batch_sharding
from selfreward_jax.sampling import sampler
from selfreward_jax.sampling.keys import sample_keys


class SamplingParams(NamedTuple):
    """Samples for each prompt, temperature (0 is greedy), top-p mass, and the limit of new tokens."""

    num_samples: int
    temperature: float
    top_p: float
    max_new_tokens: int


class Prompt(NamedTuple):
    """A request as token ids, without the prefix that all requests share, and the length they are padded to."""

    id: str
    ids: list[int]
    padded_len: int


class Sample(NamedTuple):
    """One sample of a prompt: its number, and where the prompt is in the prefill batch."""

    prompt: Prompt
    number: int
    index: int


class DrawnSample(NamedTuple):
    """A sample that has ended: its tokens, and their log-probs under the model."""

    prompt: Prompt
    number: int
    ids: list[int]
    logprobs: np.ndarray


class SampledModel(NamedTuple):
    """What draws: a model's configuration and weights, its mesh, and the ids that end a sample."""

    cfg: DecoderConfig
    params: Params
    mesh: Mesh
    stop_ids: tuple[int, ...]


class Bucket(NamedTuple):
    """What the prompts of one length bucket have in common.

    num_slots: samples decoded at the same time, B.
    insert_size: samples inserted together, I.
    prefill_batch_size: for a padded length the number of prompts of that length that are prefilled together, R.
    prompt_len: the padded length of the longest prompt, without the prefix.
    prefix: keys and values of the prefix that all prompts share, if there is one.
    key: the stage's key.
    """

    num_slots: int
    insert_size: int
    prefill_batch_size: Callable[[int], int]
    prompt_len: int
    prefix: KVSegment | None
    sampling_params: SamplingParams
    key: jax.Array


class Prefilled(NamedTuple):
    """Prompts that the device has prefilled, and those of their samples that wait for a slot.

    keys: the data of the samples' keys, [R, G, 2].
    logits, segment, lengths: arguments of `sampler.insert`.
    """

    waiting: deque[Sample]
    keys: np.ndarray
    logits: jax.Array
    segment: KVSegment
    lengths: jax.Array


class BucketRun:
    """Draws the samples of a bucket's prompts; iterate over `drawn`.

    num_tokens: tokens that were decoded so far and belong to a sample.
    slot_tokens: tokens that all slots together had room for so far.
    """

    def __init__(self, model: SampledModel, bucket: Bucket, prompts: Sequence[Prompt]) -> None:
        self.model, self.bucket, self.num_tokens, self.slot_tokens = model, bucket, 0, 0
        params = bucket.sampling_params
        self._draw = sampler.DrawParams(np.float32(params.temperature), np.float32(params.top_p))
        self._queue = deque(_prefill_batches(prompts, bucket.prefill_batch_size))
        self._free, self._active = list(range(bucket.num_slots)), {}
        with jax.set_mesh(model.mesh):
            self._slots = sampler.init_slots(model.cfg, bucket.num_slots, bucket.prompt_len, params.max_new_tokens)
        self._prefilled = self._prefill_next()

    def drawn(self, should_stop: Callable[[], bool]) -> Iterator[list[DrawnSample]]:
        """The samples as they end. Once `should_stop` returns True, only prompts that have a slot are finished."""
        ended: list[DrawnSample] = []
        while self._prefilled or self._active:
            while self._prefilled and len(self._free) >= self._next_insert_size():
                if should_stop():
                    self._drop_prompts_not_started()
                self._insert()
            if self._active:
                self._decode()
            if ended:
                yield ended  # the caller processes these while the device decodes
            ended = self._collect()
        if ended:
            yield ended

    def _next_insert_size(self) -> int:
        return min(self.bucket.insert_size, len(self._prefilled.waiting)) if self._prefilled else 0

    def _drop_prompts_not_started(self) -> None:
        """A prompt has started if a part of its samples has a slot. Only the first one that waits can have."""
        self._queue.clear()
        waiting = self._prefilled.waiting
        first = waiting[0]
        started = [s for s in waiting if s.prompt is first.prompt and first.number > 0]
        waiting.clear()
        waiting.extend(started)

    def _insert(self) -> None:
        """Inserts samples into free slots. When none of the prefilled ones waits any more, the next are prefilled."""
        batch, size = self._prefilled, self.bucket.insert_size
        samples = [batch.waiting.popleft() for _ in range(self._next_insert_size())]
        filled = take_slots(self._free, len(samples), self.bucket.num_slots // self.model.mesh.shape["replica"])
        self._active |= zip(filled, samples, strict=True)
        slot_index, prompt_index = np.full(size, self.bucket.num_slots, np.int32), np.zeros(size, np.int32)
        keys = np.zeros((size, batch.keys.shape[-1]), batch.keys.dtype)
        for i, sample in enumerate(samples):
            slot_index[i], prompt_index[i] = filled[i], sample.index
            keys[i] = batch.keys[sample.index, sample.number]
        if samples:
            with jax.set_mesh(self.model.mesh):
                self._slots = sampler.insert(
                    self._slots,
                    *map(self._put, (slot_index, prompt_index)),
                    *batch[2:],
                    self._put(keys),
                    self._draw,
                    stop_ids=self.model.stop_ids,
                )
        if not batch.waiting:
            self._prefilled = self._prefill_next()

    def _prefill_next(self) -> Prefilled | None:
        """Prefills the next prompts of the queue, before there are free slots for them. None if the queue is empty."""
        if not self._queue:
            return None
        prompts, G = self._queue.popleft(), self.bucket.sampling_params.num_samples
        length = prompts[0].padded_len
        R = self.bucket.prefill_batch_size(length)
        tokens, lengths = map(self._put, pad([p.ids for p in prompts], R, length))
        keys = sample_keys(self.bucket.key, [p.id for p in prompts] + [""] * (R - len(prompts)), G)
        with jax.set_mesh(self.model.mesh):
            logits, segment = sampler.prefill(self.model.cfg, self.model.params, tokens, lengths, self.bucket.prefix)
        waiting = deque(Sample(p, number, i) for i, p in enumerate(prompts) for number in range(G))
        return Prefilled(waiting, np.asarray(jax.random.key_data(keys)).reshape(R, G, -1), logits, segment, lengths)

    def _decode(self) -> None:
        """Starts decoding, until there is room for the next insertion or, if none waits, for one as large."""
        min_free = self._next_insert_size() or min(self.bucket.num_slots, len(self._free) + self.bucket.insert_size)
        with jax.set_mesh(self.model.mesh):
            self._slots = sampler.decode(
                self.model.cfg,
                self.model.params,
                self._slots,
                self.bucket.prefix,
                self._draw,
                np.int32(min_free),
                stop_ids=self.model.stop_ids,
            )

    def _collect(self) -> list[DrawnSample]:
        """The samples that have ended; their slots are free."""
        samples, done, steps = fetch((self._slots.samples, self._slots.done_B, self._slots.steps_B))
        self.slot_tokens = int(steps.max()) * len(steps)  # a replica that waits for another has free slots too
        ended = [slot for slot in self._active if done[slot]]
        self._free += ended
        self.num_tokens += sum(int(samples.lengths[slot]) - 1 for slot in ended)  # the first is drawn at the insertion
        return [
            DrawnSample(
                *self._active.pop(slot)[:2],
                samples.tokens[slot, : samples.lengths[slot]].tolist(),
                samples.logprobs[slot, : samples.lengths[slot]],
            )
            for slot in ended
        ]

    def _put(self, x: np.ndarray) -> jax.Array:
        return put(x, batch_sharding(self.model.mesh, x.ndim))


def take_slots(free: list[int], number: int, replica_slots: int) -> list[int]:
    """Removes `number` slots from the free ones, each from the replica with most of them; of its slots the oldest.

    Replicas decode by themselves: one that has less work than the others waits for them.

    replica_slots: slots of each replica; their indices follow each other.
    """
    by_replica: dict[int, deque[int]] = {}
    for slot in free:
        by_replica.setdefault(slot // replica_slots, deque()).append(slot)
    taken = [max(by_replica.values(), key=len).popleft() for _ in range(number)]
    gone = set(taken)
    free[:] = [slot for slot in free if slot not in gone]
    return taken


def _prefill_batches(prompts: Sequence[Prompt], size: Callable[[int], int]) -> Iterator[list[Prompt]]:
    """Batches of prompts that are padded to the same length."""
    padded_len = lambda p: p.padded_len  # noqa: E731
    for length, same in groupby(sorted(prompts, key=padded_len), padded_len):
        members = list(same)
        yield from (members[i : i + size(length)] for i in range(0, len(members), size(length)))


def pad(ids: Sequence[Sequence[int]], rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as tokens [rows, length] and lengths [rows]. Rows that only fill the batch have one padding token."""
    tokens, lengths = np.zeros((rows, length), np.int32), np.ones(rows, np.int32)
    for row, prompt in enumerate(ids):
        tokens[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    return tokens, lengths

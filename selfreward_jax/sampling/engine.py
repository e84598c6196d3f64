"""The engine: any number of text requests in, completions out.

Requests are sorted by length and split into buckets. The buckets are always computed from the full list, never from the
requests that remain. So each row runs in programs of the same shapes, and gets the same bits, when a stage is
interrupted and resumed. Within a bucket, a sample that ends leaves its slot to the next one, of the same prompt or of
another (bucket.py). The common prefix of all prompts of a call is prefilled once.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
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
from selfreward_jax.parallel.preemption import Stopped
from selfreward_jax.parallel.sharding import batch_divisor, batch_sharding, replicated, round_up
from selfreward_jax.sampling import batching, sampler
from selfreward_jax.sampling.bucket import Bucket, BucketRun, DrawnSample, Prompt, SampledModel, SamplingParams, pad


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


class Completion(NamedTuple):
    """One sample. `finished` is False if it was cut off at `max_new_tokens`; logprobs are those of `ids`."""

    id: str
    sample: int
    text: str
    ids: list[int]
    logprobs: list[float]
    finished: bool


@dataclass
class SlotUse:
    """How well slots are used: the tokens that were kept, and the slots times the tokens that were decoded in all."""

    tokens: int = 0
    slot_tokens: int = 0

    @property
    def share(self) -> float:
        """The share of slots at work, on average over the decoding steps; 1.0 before the first."""
        return self.tokens / self.slot_tokens if self.slot_tokens else 1.0


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
        if isinstance(params["layers"], dict):  # the caller's dictionary stays as it is
            params = sampler.unstack_params(cfg, {**params, "layers": dict(params["layers"])})
        self.cfg, self.params, self.chat, self.mesh = cfg, params, chat, mesh
        self.max_concurrent, self.max_length, self.raw, self.should_stop = max_concurrent, max_length, raw, should_stop
        self.slot_use = SlotUse()  # of the latest call
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
        """All completions, in the order of the requests and then of the samples.

        Raises:
          Stopped: `should_stop` returned True before all were drawn.
          ValueError, NonFiniteLogitsError: as `stream`.
        """
        order = {r.id: i for i, r in enumerate(requests)}
        completions = [c for batch in self.stream(requests, sampling_params, key) for c in batch]
        if len(completions) < len(requests) * sampling_params.num_samples:
            raise Stopped
        return sorted(completions, key=lambda c: (order[c.id], c.sample))

    def stream(
        self,
        requests: Sequence[Request],
        sampling_params: SamplingParams,
        key: jax.Array,
        done: Collection[str] = (),
    ) -> Iterator[list[Completion]]:
        """Completions as they finish, all samples of a request together, without the requests in `done`.

        Args:
          requests: all requests, with distinct ids; also those that are already done.
          sampling_params: how to sample.
          key: the stage's key. The row's id, the sample's index and the token's position are folded into it.
          done: ids of requests whose completions are already stored.

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
        self.slot_use = SlotUse()
        if not requests:
            return
        prefix, prefix_len = self._prefill_prefix(ids)
        suffixes, done = [x[prefix_len:] for x in ids], set(done)
        num_samples = sampling_params.num_samples
        total_samples = len(requests) * num_samples
        num_slots = batching.num_slots(total_samples, self.max_concurrent, batch_divisor(self.mesh))
        sizes = num_slots, num_samples, total_samples <= num_slots, self.mesh
        lengths, min_size = [len(x) for x in suffixes], -(-batching.MIN_BUCKET_FILLS * num_slots // num_samples)
        prefill_batch_size = partial(batching.prefill_batch_size, *sizes)
        for members, prompt_len in batching.bucket_by_length(lengths, min_size):
            padded = batching.prefill_lengths([lengths[i] for i in members], prefill_batch_size)
            all_prompts = [Prompt(requests[i].id, suffixes[i], n) for i, n in zip(members, padded, strict=True)]
            prompts = [p for p in all_prompts if p.id not in done]
            if prompts and not self.should_stop():
                insert_size = batching.insert_size(*sizes, prompt_len)
                bucket = Bucket(num_slots, insert_size, prefill_batch_size, prompt_len, prefix, sampling_params, key)
                yield from self._run_bucket(prompts, bucket)

    def _run_bucket(self, prompts: list[Prompt], bucket: Bucket) -> Iterator[list[Completion]]:
        """Completions of the prompts of one bucket, all samples of a prompt together."""
        model = SampledModel(self.cfg, self.params, self.mesh, tuple(self.chat.stop_ids))
        run, ended = BucketRun(model, bucket, prompts), defaultdict(list)
        for drawn in run.drawn(self.should_stop):
            finished: list[Completion] = []
            for sample in drawn:
                samples = ended[sample.prompt.id]
                samples.append(self._completion(sample))
                if len(samples) == bucket.sampling_params.num_samples:
                    finished += sorted(ended.pop(sample.prompt.id), key=lambda c: c.sample)
            if finished:
                yield finished
        self.slot_use.tokens += run.num_tokens
        self.slot_use.slot_tokens += run.slot_tokens

    def _completion(self, drawn: DrawnSample) -> Completion:
        if not np.isfinite(drawn.logprobs).all():
            token = np.isfinite(drawn.logprobs).argmin()
            raise NonFiniteLogitsError(f"row {drawn.prompt.id}, sample {drawn.number}, token {token}")
        return Completion(
            id=drawn.prompt.id,
            sample=drawn.number,
            text=self.chat.response_text(drawn.ids),
            ids=drawn.ids,
            logprobs=drawn.logprobs.tolist(),
            finished=drawn.ids[-1] in self.chat.stop_ids,
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
        return tuple(map(self._put, pad(ids, rows, length)))


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

"""New prompts by self-instruction: the model sees a few prompts and writes another one."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, NamedTuple, Protocol

from selfreward_jax.method.rows import AttemptRow
from selfreward_jax.method.templates import fill
from selfreward_jax.sampling.engine import Completion, Request, SamplingParams
from selfreward_jax.worlds.toy import generator

# A text-only model cannot give these, so responses to such prompts would be wasted.
_NON_TEXT = re.compile(r"\b(image|picture|photo|graph|video|audio|file|map|draw|plot|link|url)s?\b", re.IGNORECASE)


def few_shot_prompt(template: str, examples: Iterable[str], multiline: bool = False) -> str:
    """The prompt that asks for one more prompt like `examples`: one on each line, or each between marks."""
    form = "<request>\n{}\n</request>" if multiline else "- {}"
    return fill(template, examples="\n".join(form.replace("{}", e) for e in examples))


def normalize(text: str) -> str:
    """Lower-case words and numbers of a text, joined by single spaces. Prompts with equal results are duplicates."""
    return " ".join(re.findall(r"\w+", text.lower()))


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by Hyyro's bit-parallel algorithm (one integer per word of `a`)."""
    positions: dict[str, int] = {}  # for each word, a bit mask of its positions in `a`
    for i, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << i
    all_bits = (1 << len(a)) - 1
    unmatched = all_bits
    for word in b:
        matched = unmatched & positions.get(word, 0)
        unmatched = ((unmatched + matched) | (unmatched - matched)) & all_bits
    return len(a) - unmatched.bit_count()


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """ROUGE-L F1 of two word lists: 1 for equal ones, 0 for nothing in common."""
    return 2 * lcs_length(a, b) / (len(a) + len(b)) if a and b else 0.0


class NoveltyFilter:
    """Stores prompts and decides whether another one is new.

    A new prompt has no ROUGE-L above `max_rouge` to any stored prompt (Self-Instruct, arXiv 2212.10560, uses 0.7) and
    is not equal to one after `normalize`. With `max_rouge` of 1 only equal prompts are not new.
    """

    def __init__(self, max_rouge: float, known: Iterable[str] = ()) -> None:
        self.max_rouge = max_rouge
        self._normalized: set[str] = set()
        self._words: list[list[str]] = []  # of each stored prompt
        self._prompts_with: dict[str, set[int]] = {}  # for each word, indices into _words
        for text in known:
            self.add(text)

    def add(self, text: str) -> None:
        """Stores a prompt."""
        normalized = normalize(text)
        if normalized in self._normalized:
            return
        self._normalized.add(normalized)
        if self.max_rouge < 1:
            words = normalized.split()
            for word in set(words):
                self._prompts_with.setdefault(word, set()).add(len(self._words))
            self._words.append(words)

    def is_new(self, text: str) -> bool:
        """Whether a prompt is new."""
        normalized = normalize(text)
        if normalized in self._normalized:
            return False
        if self.max_rouge >= 1:
            return True
        words = normalized.split()
        num_shared: dict[int, int] = {}  # for each stored prompt, an upper bound of the common subsequence
        for word in words:
            for i in self._prompts_with.get(word, ()):
                num_shared[i] = num_shared.get(i, 0) + 1
        # Most prompts need no ROUGE-L, because the bound already excludes them.
        return not any(
            2 * count > self.max_rouge * (len(words) + len(self._words[i]))
            and rouge_l(words, self._words[i]) > self.max_rouge
            for i, count in num_shared.items()
        )


def rejection_reason(text: str, settings: Any) -> str | None:
    """Why the form of a prompt is rejected by `settings`, config.prompts; None if it is accepted."""
    words = text.split()
    if len(words) < settings.min_words:
        return "too short"
    if len(words) > settings.max_words:
        return "too long"
    if ("\n" in text.strip() and not settings.multiline) or text.lstrip().startswith("-"):
        return "list or several lines"
    if not text[0].isalnum():
        return "starts with punctuation"
    if _NON_TEXT.search(text):
        return "asks for non-text content"
    return None


class ToyPromptSource:
    """Generates prompts of the embedded world instead of a model: a fixed external source."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fits(self, prompt: str, max_new_tokens: int) -> bool:
        """Always True: few-shot prompts are not used, so their length does not matter."""
        return True

    def generate(self, requests: Sequence[Request], sampling_params: SamplingParams, key: Any) -> list[Completion]:
        """One prompt for each request, a function of the seed and the request's id."""
        texts = (generator.prompts(1, Random(f"{self.seed} world {r.id}"))[0] for r in requests)
        return [Completion(r.id, 0, text, [], [], True) for r, text in zip(requests, texts, strict=True)]


class PromptPool:
    """Prompts from a list instead of a model: the n-th attempt is the n-th prompt of a shuffle.

    Args:
      prompts: those that no round before has used.
      seed: of the shuffle.
    """

    def __init__(self, prompts: Sequence[str], seed: str) -> None:
        self.prompts = Random(seed).sample(prompts, len(prompts))

    def fits(self, prompt: str, max_new_tokens: int) -> bool:
        """Always True: few-shot prompts are not used, so their length does not matter."""
        return True

    def generate(self, requests: Sequence[Request], sampling_params: SamplingParams, key: Any) -> list[Completion]:
        """The prompt for each request, by the number at the end of its id; none beyond the last."""
        numbers = ((r.id, int(r.id.rpartition("/")[2])) for r in requests)
        return [Completion(i, 0, self.prompts[n], [], [], True) for i, n in numbers if n < len(self.prompts)]


class Writer(Protocol):
    """What writes prompts: an `Engine`, or a source that stands in for one."""

    def fits(self, prompt: str, max_new_tokens: int) -> bool:
        """Whether a few-shot prompt leaves room for a new prompt."""

    def generate(self, requests: Sequence[Request], sampling_params: SamplingParams, key: Any) -> list[Completion]:
        """One completion of each request, in order; fewer where there is no further prompt."""


class PromptInputs(NamedTuple):
    """What new prompts are generated from.

    template: the few-shot template.
    seed_prompts: prompts for the `settings.num_seed_examples` examples.
    generated_prompts: prompts that the model wrote in earlier rounds, for the `settings.num_generated_examples`
      examples. Prompts accepted in this round are added. While there are too few, seed prompts take their place.
    forbidden: prompts that count as duplicates: the seeds, earlier generated ones, held-out ones.
    id_prefix: prefix of row ids.
    seed: chooses the examples.
    """

    template: str
    seed_prompts: Sequence[str]
    generated_prompts: Sequence[str]
    forbidden: Iterable[str]
    id_prefix: str
    seed: int


def generate_prompts(
    engine: Writer,
    settings: Any,
    sampling_params: SamplingParams,
    key: Any,
    inputs: PromptInputs,
    partial: Sequence[AttemptRow],
    on_batch: Callable[[list[AttemptRow]], None],
) -> list[AttemptRow]:
    """Generates prompts in batches until `settings.count` are accepted or `settings.max_attempts` are reached.

    The examples of a batch are of the batches before, so that they can be drawn together. The last batch is as large as
    it has to be.

    Args:
      engine: the model that writes, the toy source, or a pool.
      settings: config.prompts.
      sampling_params: with one sample for each request.
      key: random key of the stage.
      inputs: the template, the examples and what counts as a duplicate.
      partial: rows of the complete batches of an interrupted run.
      on_batch: called with the rows of each new batch.

    Returns:
      Rows {id, prompt, fault, tokens}, one for each attempt, in order; fault None marks the accepted ones.
    """
    novelty = NoveltyFilter(settings.max_rouge, inputs.forbidden)
    generated_prompts, rows = list(inputs.generated_prompts), list(partial)
    accepted = [row["prompt"] for row in rows if row["fault"] is None]
    for prompt in accepted:
        novelty.add(prompt)
    generated_prompts += accepted
    num_accepted = len(accepted)
    while num_accepted < settings.count and len(rows) < settings.max_attempts:
        examples = inputs._replace(generated_prompts=generated_prompts)
        requests = [
            _few_shot_request(engine, settings, sampling_params, examples, i)
            for i in range(len(rows), len(rows) + next_batch_size(rows, settings))
        ]
        batch: list[AttemptRow] = []
        for c in engine.generate(requests, sampling_params, key):
            fault = _fault(c, settings, novelty)
            if fault is None and num_accepted == settings.count:
                fault = "not needed"
            if fault is None:
                novelty.add(c.text)
                generated_prompts.append(c.text)
                num_accepted += 1
            batch.append({"id": c.id, "prompt": c.text, "fault": fault, "tokens": len(c.ids)})
        if not batch:  # a pool is used up
            break
        on_batch(batch)
        rows += batch
    return rows


def next_batch_size(rows: Sequence[AttemptRow], settings: Any) -> int:
    """How many attempts come after `rows`: settings.batch_size, or no more than the missing prompts take by the share
    that was accepted so far, and a tenth and 16 more."""
    num_accepted = sum(row["fault"] is None for row in rows)
    needed = settings.batch_size
    if num_accepted:
        needed = math.ceil(1.1 * (settings.count - num_accepted) * len(rows) / num_accepted) + 16
    return min(settings.batch_size, needed, settings.max_attempts - len(rows))


def whole_batches(rows: Sequence[AttemptRow], settings: Any) -> list[AttemptRow]:
    """The rows up to the end of the last batch that is whole."""
    end = 0
    while (size := next_batch_size(rows[:end], settings)) > 0 and end + size <= len(rows):
        end += size
    return list(rows[:end])


def _few_shot_request(
    engine: Writer, settings: Any, sampling_params: SamplingParams, inputs: PromptInputs, i: int
) -> Request:
    """The i-th request. The longest examples are removed until the prompt fits the engine, but one remains."""
    rng = Random(f"{inputs.seed} {inputs.id_prefix} {i}")
    num_generated = min(settings.num_generated_examples, len(inputs.generated_prompts))
    num_seeds = settings.num_seed_examples + settings.num_generated_examples - num_generated
    examples = rng.sample(inputs.seed_prompts, num_seeds)
    examples += rng.sample(inputs.generated_prompts, num_generated)
    rng.shuffle(examples)
    prompt = few_shot_prompt(inputs.template, examples, settings.multiline)
    while len(examples) > 1 and not engine.fits(prompt, sampling_params.max_new_tokens):
        examples.remove(max(examples, key=len))
        prompt = few_shot_prompt(inputs.template, examples, settings.multiline)
    return Request(f"{inputs.id_prefix}/{i}", prompt)


def _fault(completion: Completion, settings: Any, novelty: NoveltyFilter) -> str | None:
    if not completion.finished:
        return "unfinished"
    if not completion.text:
        return "too short"
    fault = rejection_reason(completion.text, settings)
    return fault or (None if novelty.is_new(completion.text) else "duplicate")

"""New prompts by self-instruction: the model sees a few requests and writes another."""

import re
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from selfreward_jax.method.templates import fill
from selfreward_jax.sampling.engine import Completion, Engine, Request, SamplingParams
from selfreward_jax.worlds.toy import generator

Row = dict[str, Any]

# A request for what a text-only model cannot give is not worth a round of answers.
_UNFIT = re.compile(r"\b(image|picture|photo|graph|video|audio|file|map|draw|plot|link|url)s?\b", re.IGNORECASE)


def few_shot(template: str, examples: Iterable[str]) -> str:
    """The prompt that asks for one more request like `examples`."""
    return fill(template, examples="\n".join(f"- {e}" for e in examples))


def normalize(text: str) -> str:
    """Lower-case words and numbers of a text, single spaces between: two prompts that agree here are one."""
    return " ".join(re.findall(r"\w+", text.lower()))


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by Hyyro's bit-parallel rule (one integer per word of `a`)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(a)) - 1
    free = every
    for word in b:
        matched = free & places.get(word, 0)
        free = ((free + matched) | (free - matched)) & every
    return len(a) - free.bit_count()


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """ROUGE-L F1 of two word lists: 1 for equal ones, 0 for nothing in common."""
    return 2 * lcs_length(a, b) / (len(a) + len(b)) if a and b else 0.0


class NoveltyFilter:
    """Remembers prompts and tells whether another is new: no ROUGE-L above `most` to any of them (Self-Instruct,
    arXiv 2212.10560, uses 0.7), and none the same after `normalise`."""

    def __init__(self, max_rouge: float, known: Iterable[str] = ()) -> None:
        self.max_rouge = max_rouge
        self._same: set[str] = set()
        self._words: list[list[str]] = []
        self._with: dict[str, set[int]] = {}
        for text in known:
            self.add(text)

    def add(self, text: str) -> None:
        """Remembers a prompt."""
        normal = normalize(text)
        if normal in self._same:
            return
        self._same.add(normal)
        if self.max_rouge < 1:
            for word in set(words := normal.split()):
                self._with.setdefault(word, set()).add(len(self._words))
            self._words.append(words)

    def is_new(self, text: str) -> bool:
        """Whether a prompt is unlike all that are remembered."""
        normal = normalize(text)
        if normal in self._same:
            return False
        if self.max_rouge >= 1:
            return True
        words = normal.split()
        shared: dict[int, int] = {}
        for word in words:
            for i in self._with.get(word, ()):
                shared[i] = shared.get(i, 0) + 1
        # Words in common bound the common subsequence: most prompts need no closer look.
        return not any(
            2 * count > self.max_rouge * (len(words) + len(self._words[i]))
            and rouge_l(words, self._words[i]) > self.max_rouge
            for i, count in shared.items()
        )


def rejection_reason(text: str, min_words: int, max_words: int) -> str | None:
    """What is wrong with the form of a prompt, None if nothing is."""
    words = text.split()
    if len(words) < min_words:
        return "too short"
    if len(words) > max_words:
        return "too long"
    if "\n" in text.strip() or text.lstrip().startswith("-"):
        return "a list, not one request"
    if not text[0].isalnum():
        return "begins with a mark"
    if _UNFIT.search(text):
        return "asks for what text cannot give"
    return None


class ToyPromptSource:
    """Writes prompts as the embedded world does, in place of a model: a fixed writer from outside."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fits(self, prompt: str, max_new_tokens: int) -> bool:
        """Any number of examples may be shown: it looks at none."""
        return True

    def generate(self, requests: Sequence[Request], sampling_params: SamplingParams, key: Any) -> list[Completion]:
        """A prompt for each request, drawn by its id."""
        texts = (generator.prompts(1, Random(f"{self.seed} world {r.id}"))[0] for r in requests)
        return [Completion(r.id, 0, text, [], [], True) for r, text in zip(requests, texts, strict=True)]


def generate_prompts(
    engine: Engine | ToyPromptSource,
    settings: Any,
    template: str,
    sampling_params: SamplingParams,
    key: Any,
    *,
    seed_prompts: Sequence[str],
    generated_prompts: Sequence[str],
    forbidden: Iterable[str],
    name: str,
    seed: int,
    partial: Sequence[Row],
    on_batch: Callable[[list[Row]], None],
) -> list[Row]:
    """Writes prompts in waves until `settings.count` are accepted or `settings.most_attempts` were made.

    Args:
      engine: the writing model.
      settings: config.prompts.
      template: the few-shot template.
      how: sampling, one sample a request.
      key: random key of the stage.
      seeds, own: prompts to show: `settings.seed_shots` of the seeds and `settings.own_shots` of those the
        model wrote in earlier rounds and waves (seeds until there are any).
      forbidden: prompts that are not new: the seeds, earlier own ones, the held-out ones.
      name: prefix of row ids.
      seed: chooses the examples shown.
      begun: rows of the whole waves that an interrupted run made.
      keep: called with the rows of each new wave.

    Returns:
      Rows {id, prompt, fault, tokens}, one for each attempt, in order; fault None marks the accepted ones.
    """
    novelty = NoveltyFilter(settings.max_rouge, forbidden)
    generated_prompts, rows = list(generated_prompts), list(partial)
    for row in rows:
        if row["fault"] is None:
            novelty.add(row["prompt"])
            generated_prompts.append(row["prompt"])
    accepted = sum(row["fault"] is None for row in rows)
    while accepted < settings.count and len(rows) < settings.max_attempts:
        requests = []
        for i in range(len(rows), len(rows) + settings.batch_size):
            rng = Random(f"{seed} {name} {i}")
            from_own = min(settings.num_generated_examples, len(generated_prompts))
            shown = rng.sample(seed_prompts, settings.num_seed_examples + settings.num_generated_examples - from_own)
            shown += rng.sample(generated_prompts, from_own)
            rng.shuffle(shown)
            while len(shown) > 1 and not engine.fits(few_shot(template, shown), sampling_params.max_new_tokens):
                shown.remove(max(shown, key=len))
            requests.append(Request(f"{name}/{i}", few_shot(template, shown)))
        batch = []
        for c in engine.generate(requests, sampling_params, key):
            fault = _fault(c, settings, novelty)
            if fault is None and accepted == settings.count:
                fault = "not needed"
            if fault is None:
                novelty.add(c.text)
                generated_prompts.append(c.text)
                accepted += 1
            batch.append({"id": c.id, "prompt": c.text, "fault": fault, "tokens": len(c.ids)})
        on_batch(batch)
        rows += batch
    return rows


def _fault(c: Completion, settings: Any, novelty: NoveltyFilter) -> str | None:
    if not c.finished:
        return "unfinished"
    if not c.text:
        return "too short"
    fault = rejection_reason(c.text, settings.min_words, settings.max_words)
    return fault or (None if novelty.is_new(c.text) else "not new")

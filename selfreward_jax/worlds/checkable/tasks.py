"""People's requests and answers in the form from which the checkable world makes its rows."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MIN_WORDS, MAX_WORDS = 4, 30  # of a request
MIN_SENTENCE_WORDS, MAX_SENTENCE_WORDS = 4, 22
MIN_SENTENCES, MAX_SENTENCES = 3, 8  # that are taken from an answer
# Requests that say something about the form of the answer could contradict an instruction.
_ABOUT_FORM = re.compile(
    r"\b(sentence|word|letter|bullet|list|paragraph|title|essay|poem|poet|haiku|song|story|table|code|quote|quotation|comma"
    r"|capital|uppercase|lowercase|postscript|placeholder|summar|translat|rewrite|json|html|python|script|program|email"
    r"|dialog|step|brief|short|detail|example|format|image|picture)",
    re.IGNORECASE,
)
_REPLACED = str.maketrans(
    {"\u2019": "'", "\u2018": "'", "\u201c": "'", "\u201d": "'", '"': "'", "\u2014": ", ", "\u2013": "-"}
)
_MARKUP = re.compile(r"[*_#`>]+|\[\d+\]|\([^()]*\)|^\s*(\d+[.)]|[-+\u2022])\s+", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[DMS]r\.)(?<!\b(?:Ms|St)\.)(?<!\b(?:Mrs|etc)\.)\s+|\n")
# A sentence as any reader counts one: an initial capital, no other full stop, no quotation marks, brackets or colon.
_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,;'%$/&-]*[A-Za-z0-9%][.!?]")
_ABOUT_ASSISTANT = re.compile(
    r"\b(as an AI|AI (language )?model|open assistant|AI assistant|I apologi[sz]e|I'm sorry)\b", re.I
)
_STOP_WORDS = frozenset(
    "a about after all also an and any are as at be because been before being between both but by can could did do "
    "does each even every few for from get give go had has have he help her here him his how i if in into is it its "
    "just like make many may me might more most much must my need no not now of off on one only or other our out "
    "over own people should so some such take tell than that the their them then there these they thing things this "
    "those through to too two under up us use used using very want was way we well were what when where which while "
    "who whom whose why will with without would write you your".split()
)


class Task(NamedTuple):
    """A request, and the sentences of an answer to it in their order."""

    request: str
    sentences: tuple[str, ...]


def make_task(prompt: str, response: str) -> Task | None:
    """The task of an instruction row. None if the request is not one plain line, says something about the form of the
    answer, or the answer does not begin with enough plain sentences."""
    request = " ".join(prompt.translate(_REPLACED).split())
    request = request[:1].upper() + request[1:]
    num_words = len(request.split())
    plain = re.fullmatch(r"[A-Z][A-Za-z0-9 ,;:'?!.$%/&-]+", request)
    if not MIN_WORDS <= num_words <= MAX_WORDS or not plain or "\n" in prompt.strip() or _ABOUT_FORM.search(request):
        return None
    if "```" in response:
        return None
    parts = (" ".join(part.split()) for part in _SENTENCE_END.split(_MARKUP.sub("", response.translate(_REPLACED))))
    sentences = dict.fromkeys(
        s for s in parts if MIN_SENTENCE_WORDS <= len(s.split()) <= MAX_SENTENCE_WORDS and _SENTENCE.fullmatch(s)
    )
    sentences = [s for s in sentences if not _ABOUT_ASSISTANT.search(s)]
    kept = sentences[:MAX_SENTENCES]
    if len(kept) < MIN_SENTENCES:
        return None
    return Task(request if request[-1] in ".?!" else f"{request}.", tuple(kept))


def content_words(text: str) -> list[str]:
    """The words of a text that say what it is about, in lower case and in their order, each once."""
    words = (w.lower().removesuffix("'s") for w in re.findall(r"[A-Za-z][A-Za-z'-]*", text))
    return list(dict.fromkeys(w for w in words if len(w) > 2 and w not in _STOP_WORDS))


def rarest(words: Sequence[str], counts: Counter[str], number: int) -> list[str]:
    """The `number` words that are in the fewest tasks, in the order of the text."""
    chosen = sorted(range(len(words)), key=lambda i: (counts[words[i]], i))[:number]
    return [words[i] for i in sorted(chosen)]


def count_words(tasks: Iterable[Task]) -> Counter[str]:
    """In how many tasks each content word is."""
    return Counter(w for task in tasks for w in set(content_words(" ".join((task.request, *task.sentences)))))

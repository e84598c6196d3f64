"""The row types: what one line of each JSON Lines file in a working directory holds.

`id` is unique in its file. The id of a response is PROMPT_ID/SAMPLE, such as "m2/17/0". Scores are 0 to 5; None means
that no vote could be parsed.
"""

from typing import Any, NotRequired, TypedDict

Row = dict[str, Any]  # a row of any file, where code does not use its fields


class InstructionRow(TypedDict):
    """seed/ift.jsonl: an instruction and a good response to it. Also a row of a task that M1 is trained on.

    system: the text that the prompt begins with if it is a system message.
    """

    id: NotRequired[str]  # added when the row is written
    prompt: str
    system: NotRequired[str]
    response: str


def without_system(row: "InstructionRow | PromptRow") -> str:
    """The prompt of a row without its system text."""
    return row["prompt"].removeprefix(f"{row['system']}\n\n") if "system" in row else row["prompt"]


class JudgedRow(TypedDict):
    """seed/eft.jsonl: a written judgment of a response."""

    id: NotRequired[str]  # added when the row is written
    prompt: str
    response: str
    judgment: str
    score: float


class RankedResponse(TypedDict):
    """A response with a score that people or the embedded world gave it."""

    id: NotRequired[str]  # of a response that the SFT baseline judges
    response: str
    score: float
    judgment: NotRequired[str]  # written by people, in seed/eft_answers.jsonl


class RankedRow(TypedDict):
    """seed/ranked_*.jsonl and seed/eft_answers.jsonl: a prompt with scored responses."""

    id: NotRequired[str]  # added when the row is written
    prompt: str
    answers: list[RankedResponse]


class DocumentRow(TypedDict):
    """seed/documents.jsonl: plain text for pretraining."""

    id: NotRequired[str]  # added when the row is written
    text: str


class PromptRow(TypedDict):
    """seed/validation.jsonl, seed/heldout.jsonl and m_t/prompts.jsonl: a prompt; `system` as in an InstructionRow."""

    id: str
    prompt: str
    system: NotRequired[str]


class AttemptRow(TypedDict):
    """m_t/prompts.jsonl while it is incomplete: a generated prompt. `fault` says why it is rejected, None: accepted."""

    id: str
    prompt: str
    fault: str | None
    tokens: int


class Response(TypedDict):
    """One sampled response. `finished` is False if it was cut off at max_new_tokens."""

    text: str
    finished: bool


class ResponsesRow(TypedDict):
    """m_t/responses.jsonl, m_t/eval_answers.jsonl and m_t/early_*_answers.jsonl: all samples for a prompt."""

    id: str
    prompt: str
    responses: list[Response]
    tokens: int


class JudgeInput(TypedDict):
    """One response, as a judge takes it."""

    id: str
    prompt: str
    response: str


class ResponseRow(JudgeInput):
    """One finished response of a model, with the id of its prompt."""

    prompt_id: str


class Vote(TypedDict):
    """One sampled judgment of a response. A judgment that is cut off has no score."""

    text: str
    finished: bool
    score: float | None
    expected: NotRequired[float | None]  # with judge.aggregation=expected


class PreferenceVote(TypedDict):
    """One sampled comparison of two responses, A and B. `preference`: "a", "b", "tie", or None if it cannot be read."""

    text: str
    finished: bool
    preference: str | None


class ComparisonRow(TypedDict):
    """m_t/comparisons.jsonl: the votes on two responses to a prompt; the id is PROMPT_ID/I-J. And
    m_t/hack_comparisons.jsonl: on a hack and the response it is made of; the id is PROMPT_ID/KIND.

    orders: the votes with response I, or the hack, as A, and those with the other as A.
    """

    id: str
    orders: list[list[PreferenceVote]]
    tokens: int


class JudgmentRow(TypedDict):
    """m_t/judgments.jsonl, m_t/probes.jsonl and *_judgments.jsonl: the votes on a response, their mean and variance."""

    id: str
    score: float | None
    variance: float | None
    votes: list[Vote]
    tokens: int


class ScoredResponse(TypedDict):
    """A response with the mean of its votes."""

    response: str
    score: float | None


class ScoredPrompt(TypedDict):
    """A prompt with its scored responses, from which a pair is built. `anchors` are those of M1, scored alike."""

    id: str
    prompt: str
    candidates: list[ScoredResponse]
    anchors: NotRequired[list[ScoredResponse]]


class PairRow(TypedDict):
    """m_t/pairs.jsonl: a preference pair. `agreement`: see `label_agreement`; without it the label is taken as sure."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float
    agreement: NotRequired[float]


class VerdictRow(TypedDict):
    """A pairwise comparison in both orders.

    verdict: 1 ours, 0 tie, -1 theirs.
    read: what was parsed from each text, "a", "b", "tie" or None; ours is shown first in the first text.
    """

    id: str
    verdict: int
    read: list[str | None]
    texts: list[str]
    tokens: int


class EvalRow(TypedDict):
    """m_t/early_stopping.jsonl: the model in training, after `id` steps, against the best step so far.

    win, tie, lose: fractions of the verdicts. kept: it wins more often than it loses, and is now the best.
    """

    id: str
    against: int
    win: float
    tie: float
    lose: float
    kept: bool

"""The expected score of a judgment: the mean over all possible scores, weighted by the model's probability of each."""

import math
from collections.abc import Sequence

from selfreward_jax.method.judge_parsing import score_start
from selfreward_jax.sampling.engine import Engine

# For each output format: the texts that a judgment may have as its score, and their values.
SCORE_VALUES = {
    "points": {str(n): float(n) for n in range(6)},
    "choice": {letter: float(n) for n, letter in enumerate("ABCDE", 1)},
}


def expected_scores(
    engine: Engine, judgments: Sequence[tuple[str, str]], output_format: str, batch_size: int = 0
) -> list[float | None]:
    """The mean of the possible scores, weighted by the model's probability of each at temperature 1.

    The judgment is cut where its score starts. The texts with each possible score differ in one token there. The
    probabilities of only these tokens are normalized to sum to one.

    Args:
      engine: the judging model.
      judgments: pairs of a judge prompt and a judgment with a score.
      output_format: the format of the judgment's end, a key of SCORE_VALUES.
      batch_size: judgments in one forward pass; 0: as many as the engine samples at once.

    Returns:
      A number for each judgment. None if it has no score, or if the tokenizer does not write each score as one distinct
      token.
    """
    queries = [_next_token_query(engine, prompt, judgment, output_format) for prompt, judgment in judgments]
    valid = [query for query in queries if query is not None]
    contexts, candidates = [context for context, _ in valid], [ids for _, ids in valid]
    logprobs = iter(engine.next_logprobs(contexts, candidates, batch_size))
    values = list(SCORE_VALUES[output_format].values())
    return [None if query is None else _weighted_mean(values, next(logprobs)) for query in queries]


def _weighted_mean(values: Sequence[float], logprobs: Sequence[float]) -> float:
    max_logprob = max(logprobs)
    weights = [math.exp(x - max_logprob) for x in logprobs]
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def _next_token_query(
    engine: Engine, prompt: str, judgment: str, output_format: str
) -> tuple[list[int], list[int]] | None:
    """The token ids before the score, and the next token id for each possible score."""
    start = score_start(judgment, output_format)
    if start is None:
        return None
    ids_by_score = [engine.chat.example(prompt, judgment[:start] + score).ids for score in SCORE_VALUES[output_format]]
    prefix_len = 0
    while len({ids[prefix_len] for ids in ids_by_score}) == 1:
        prefix_len += 1
    candidates = [ids[prefix_len] for ids in ids_by_score]
    return (ids_by_score[0][:prefix_len], candidates) if len(set(candidates)) == len(candidates) else None

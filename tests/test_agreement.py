"""Agreement with a true ranking: each figure by hand, the correlations against SciPy."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from selfreward_jax.evaluate.agreement import (
    agreement,
    intervals,
    kendall,
    metrics_from_sums,
    per_prompt_stats,
    ranks,
    spearman,
)
from selfreward_jax.evaluate.model_metrics import judge_figures, ranked_answers

SCORES = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0, 1, 2.5, 4, 4.5, 5])), min_size=2, max_size=9)


@given(SCORES)
def test_correlations_are_scipys(scores):
    x, y = zip(*scores, strict=True)
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    assert ranks(x) == stats.rankdata(x).tolist()
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)


@given(st.lists(SCORES, min_size=1, max_size=4))
def test_figures_hang_together(instructions):
    figures = agreement([tuple(zip(*scores, strict=True)) for scores in instructions])
    pairwise, ties = figures["pairwise_accuracy"], figures["tie_rate"]
    if pairwise is not None:
        assert figures["pairwise_ties_wrong"] + ties / 2 == pytest.approx(pairwise)
        if figures["pairwise_without_ties"] is not None:
            assert figures["pairwise_without_ties"] * (1 - ties) + ties / 2 == pytest.approx(pairwise)
        else:
            assert ties == 1
    lines = [tuple(zip(*scores, strict=True)) for scores in instructions]
    swapped = agreement([(truth, [5 - j for j in judged]) for truth, judged in lines])
    if pairwise is not None:  # a judge turned upside down is right where it was wrong
        assert swapped["pairwise_accuracy"] == pytest.approx(1 - pairwise)


def test_a_perfect_judge():
    figures = agreement([([1, 2, 5], [1.0, 2.0, 5.0]), ([0, 3], [4.0, 5.0])])
    for name in ("pairwise_accuracy", "pairwise_without_ties", "pairwise_ties_wrong", "exact_match", "five_best"):
        assert figures[name] == 1, name
    assert figures["spearman"] == pytest.approx(1)
    assert figures["kendall"] == pytest.approx(1)
    assert (figures["tie_rate"], figures["fives"], figures["constant"], figures["missing"]) == (0, 2, 0, 0)


def test_a_judges_tie_is_half_a_pair_and_no_exact_match():
    # Three pairs that the truth orders: one right, one wrong, one tied.
    figures = agreement([([1, 2, 3], [2, 1, 2])])
    assert figures["pairwise_accuracy"] == pytest.approx(1.5 / 3)
    assert figures["pairwise_without_ties"] == pytest.approx(1 / 2)
    assert figures["pairwise_ties_wrong"] == pytest.approx(1 / 3)
    assert figures["tie_rate"] == pytest.approx(1 / 3)
    assert figures["exact_match"] == 0
    assert agreement([([1, 2, 3], [1, 2, 2])])["exact_match"] == 0  # nothing wrong, one pair tied


def test_pairs_that_the_truth_ties_do_not_count():
    figures = agreement([([1, 1, 2], [0, 5, 5])])  # only 1 < 2 twice: once right, once tied
    assert figures["pairwise_accuracy"] == pytest.approx(1.5 / 2)
    assert agreement([([1, 1, 2], [3, 4, 5])])["exact_match"] == 1  # the judge may order what the truth ties


def test_exact_match_is_a_share_of_instructions():
    right, wrong, unordered = ([1, 2], [1, 2]), ([1, 2], [2, 1]), ([3, 3], [1, 2])
    assert agreement([right, wrong, right])["exact_match"] == pytest.approx(2 / 3)
    assert agreement([right, unordered])["exact_match"] == 1  # nothing to order: not counted


def test_five_best_is_a_share_of_the_fives():
    # Two fives on one instruction, one of them the best; a five on an answer that shares the best place.
    figures = agreement([([1, 4, 3], [0, 5.0, 5.0]), ([2, 2], [5, 1])])
    assert figures["fives"] == 3
    assert figures["five_best"] == pytest.approx(2 / 3)
    assert agreement([([1, 2], [4.9, 4])])["five_best"] is None


def test_a_five_is_not_best_when_the_best_answer_has_no_vote():
    figures = agreement([([1, 4], [5, None])])
    assert (figures["fives"], figures["five_best"]) == (1, 0)


def test_missing_votes_are_left_out_and_counted():
    figures = agreement([([1, 2, 3], [1, None, 3]), ([1, 2], [None, None]), ([1, 2], [None, 4])])
    assert figures["missing"] == 4
    assert figures["pairwise_accuracy"] == 1
    assert figures["exact_match"] == 1  # of the one instruction with two votes
    assert figures["constant"] == 2
    assert figures["spearman"] == pytest.approx(1)


def test_constant_scores_have_no_correlation():
    figures = agreement([([1, 2, 3], [4, 4, 4]), ([2, 2], [1, 5])])
    assert figures["constant"] == 2
    assert figures["spearman"] is None
    assert figures["kendall"] is None
    assert figures["tie_rate"] == 1
    assert figures["pairwise_accuracy"] == pytest.approx(1 / 2)
    assert figures["pairwise_without_ties"] is None


def test_correlation_is_the_mean_over_instructions():
    figures = agreement([([1, 2], [1, 2]), ([1, 2], [2, 1]), ([1, 2], [1, 2]), ([1, 2], [3, 3])])
    assert figures["spearman"] == pytest.approx(1 / 3)
    assert figures["kendall"] == pytest.approx(1 / 3)


def test_nothing_gives_no_figure():
    figures = agreement([])
    assert figures["pairwise_accuracy"] is None
    assert figures["exact_match"] is None
    assert (figures["fives"], figures["missing"], figures["constant"]) == (0, 0, 0)


def test_judgments_find_their_answers_in_any_order():
    ranked = [
        {"id": "r/0", "prompt": "p", "answers": [{"response": "a", "score": 0}, {"response": "b", "score": 5}]},
        {"id": "r/1", "prompt": "q", "answers": [{"response": "c", "score": 3}, {"response": "d", "score": 1}]},
    ]
    asked = ranked_answers(ranked)
    assert [(a["prompt"], a["response"]) for a in asked] == [("p", "a"), ("p", "b"), ("q", "c"), ("q", "d")]
    votes = [{"score": 1.0}, {"score": None}]
    score = dict(zip("abcd", [1.0, 4.0, 5.0, None], strict=True))
    judgments = [{"id": a["id"], "score": score[a["response"]], "votes": votes} for a in reversed(asked)]
    figures = judge_figures(ranked, judgments)
    assert figures["pairwise_accuracy"] == 1
    assert figures["missing"] == 1
    assert figures["parse_rate"] == 0.5


def test_the_length_baseline_prefers_the_longer_answer():
    ranked = [{"id": "r", "answers": [{"response": "long answer", "score": 1.0}, {"response": "short", "score": 4.0}]}]
    judged = [{"id": f"r/{i}", "score": s, "votes": [{"score": s}]} for i, s in enumerate((1.0, 4.0))]
    figures = judge_figures(ranked, judged)
    assert (figures["pairwise_accuracy"], figures["length_accuracy"]) == (1.0, 0.0)


def drawn(count, answers, seed):
    """Instructions whose judge is right by halves."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, (count, answers)).astype(float)
    return [(t.tolist(), np.clip(np.round(t + rng.normal(0, 2, answers)), 0, 5).tolist()) for t in truth]


def test_intervals_are_scipys_bootstrap_over_instructions():
    instructions = drawn(120, 3, 1)
    table = per_prompt_stats(instructions)
    found = intervals(instructions)
    for name in ("pairwise_accuracy", "exact_match", "five_best", "spearman", "kendall"):

        def figure(chosen, axis, name=name):
            rows = table[chosen.astype(int)]  # [..., rows, columns]
            return metrics_from_sums(rows.sum(-2))[name]

        theirs = stats.bootstrap(
            (np.arange(len(table)),), figure, n_resamples=3000, method="percentile", vectorized=True, rng=0
        ).confidence_interval
        assert found[name] == pytest.approx([theirs.low, theirs.high], abs=0.015), name
        assert found[name][0] <= agreement(instructions)[name] <= found[name][1]


def test_intervals_are_wider_with_fewer_instructions_and_the_same_each_time():
    few, many = (intervals(drawn(n, 4, 2))["pairwise_accuracy"] for n in (20, 500))
    assert few[1] - few[0] > 3 * (many[1] - many[0])
    assert intervals(drawn(20, 4, 2))["pairwise_accuracy"] == few


def test_intervals_of_a_perfect_judge_and_of_one_that_says_nothing():
    perfect = intervals([([1, 2, 5], [1.0, 2.0, 5.0])] * 4)
    assert perfect["pairwise_accuracy"] == [1, 1]
    assert perfect["kendall"] == pytest.approx([1, 1])
    silent = intervals([([1, 2], [None, None])] * 4)
    assert silent["pairwise_accuracy"] is None
    assert intervals([])["spearman"] is None


def test_a_judge_that_gives_one_score_to_all():
    found = intervals([([1, 2, 3], [4, 4, 4])] * 5)
    assert found["pairwise_accuracy"] == [0.5, 0.5]
    assert found["tie_rate"] == [1, 1]
    assert found["spearman"] is None

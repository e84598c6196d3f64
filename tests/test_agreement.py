"""Agreement with a true ranking: each metric against values computed by hand."""

from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from selfreward_jax.evaluate.agreement import (
    agreement,
    confidence_intervals,
    lead,
    metrics_from_sums,
    per_prompt_stats,
)
from selfreward_jax.evaluate.model_metrics import judge_metrics, lead_over_length, ranked_responses, score_interval
from selfreward_jax.worlds.toy import generator

SCORES = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0, 1, 2.5, 4, 4.5, 5])), min_size=2, max_size=9)


@pytest.mark.parametrize(
    ("truth", "judged", "spearman", "kendall"),
    [
        ([1, 2, 3], [3, 2, 1], -1, -1),
        # No ties: rho is 1 - 6 * 4 / (4 * 15); four pairs of six have the same order, two the opposite one.
        ([1, 2, 3, 4], [2, 1, 4, 3], 0.6, 1 / 3),
        # Ranks 1, 2.5, 2.5, 4 and 1, 3.5, 2, 3.5: covariance 3.75, both variances 4.5. Of six pairs four have the same
        # order, one is tied in the truth and one by the judge.
        ([1, 2, 2, 3], [1, 3, 2, 3], 5 / 6, 4 / 5),
        # Ranks 1.5, 1.5, 3, 4.5, 4.5 and 3, 1.5, 4, 1.5, 5: covariance 3, variances 9 and 9.5. Of ten pairs five have
        # the same order, two the opposite one, two are tied in the truth and one by the judge.
        ([0, 0, 1, 2, 2], [4, 2.5, 4.5, 2.5, 5], 3 / (9 * 9.5) ** 0.5, 3 / (8 * 9) ** 0.5),
        # An answer without a score takes no rank.
        ([1, 2, 9, 2, 3], [1, 3, None, 2, 3], 5 / 6, 4 / 5),
    ],
)
def test_correlations_by_hand(truth, judged, spearman, kendall):
    metrics = agreement([(truth, judged)])
    assert metrics["spearman"] == pytest.approx(spearman)
    assert metrics["kendall"] == pytest.approx(kendall)


@given(SCORES)
def test_correlations_are_those_of_their_definitions(scores):
    x, y = zip(*scores, strict=True)
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    # Spearman: Pearson's correlation of average ranks. The rank is 1 plus all smaller values plus half of the equals.
    ranks = [[sum(a < b for a in side) + (side.count(b) + 1) / 2 for b in side] for side in (x, y)]
    # Kendall's tau-b: over the pairs that are not tied, on each side.
    signs = [(np.sign(a[0] - b[0]), np.sign(a[1] - b[1])) for a, b in combinations(scores, 2)]
    untied = [sum(sign[side] != 0 for sign in signs) for side in (0, 1)]
    metrics = agreement([(x, y)])
    assert metrics["spearman"] == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert metrics["kendall"] == pytest.approx(sum(a * b for a, b in signs) / (untied[0] * untied[1]) ** 0.5)


@given(st.lists(SCORES, min_size=1, max_size=4))
def test_metrics_are_consistent(instructions):
    lines = [tuple(zip(*scores, strict=True)) for scores in instructions]
    metrics = agreement(lines)
    pairwise, ties = metrics["pairwise_accuracy"], metrics["tie_rate"]
    if pairwise is not None:
        assert metrics["pairwise_ties_wrong"] + ties / 2 == pytest.approx(pairwise)
        if metrics["pairwise_without_ties"] is not None:
            assert metrics["pairwise_without_ties"] * (1 - ties) + ties / 2 == pytest.approx(pairwise)
        else:
            assert ties == 1
    reversed_metrics = agreement([(truth, [5 - j for j in judged]) for truth, judged in lines])
    if pairwise is not None:  # a judge with the opposite order is right where it was wrong
        assert reversed_metrics["pairwise_accuracy"] == pytest.approx(1 - pairwise)


def test_a_perfect_judge():
    metrics = agreement([([1, 2, 5], [1.0, 2.0, 5.0]), ([0, 3], [4.0, 5.0])])
    for name in ("pairwise_accuracy", "pairwise_without_ties", "pairwise_ties_wrong", "exact_match", "five_best"):
        assert metrics[name] == 1, name
    assert metrics["spearman"] == pytest.approx(1)
    assert metrics["kendall"] == pytest.approx(1)
    assert (metrics["tie_rate"], metrics["fives"], metrics["constant"], metrics["missing"]) == (0, 2, 0, 0)


def test_a_judges_tie_is_half_a_pair_and_no_exact_match():
    # Three pairs that the truth orders: one right, one wrong, one tied.
    metrics = agreement([([1, 2, 3], [2, 1, 2])])
    assert metrics["pairwise_accuracy"] == pytest.approx(1.5 / 3)
    assert metrics["pairwise_without_ties"] == pytest.approx(1 / 2)
    assert metrics["pairwise_ties_wrong"] == pytest.approx(1 / 3)
    assert metrics["tie_rate"] == pytest.approx(1 / 3)
    assert metrics["exact_match"] == 0
    assert agreement([([1, 2, 3], [1, 2, 2])])["exact_match"] == 0  # nothing wrong, one pair tied


def test_pairs_that_the_truth_ties_do_not_count():
    metrics = agreement([([1, 1, 2], [0, 5, 5])])  # only 1 < 2 twice: once right, once tied
    assert metrics["pairwise_accuracy"] == pytest.approx(1.5 / 2)
    assert agreement([([1, 1, 2], [3, 4, 5])])["exact_match"] == 1  # the judge may order what the truth ties


def test_exact_match_is_a_fraction_of_instructions():
    right, wrong, unordered = ([1, 2], [1, 2]), ([1, 2], [2, 1]), ([3, 3], [1, 2])
    assert agreement([right, wrong, right])["exact_match"] == pytest.approx(2 / 3)
    assert agreement([right, unordered])["exact_match"] == 1  # nothing to order: not counted


def test_five_best_is_a_fraction_of_the_fives():
    # Two fives on one instruction, one of them the best; a five on an answer that ties for the best.
    metrics = agreement([([1, 4, 3], [0, 5.0, 5.0]), ([2, 2], [5, 1])])
    assert metrics["fives"] == 3
    assert metrics["five_best"] == pytest.approx(2 / 3)
    assert agreement([([1, 2], [4.9, 4])])["five_best"] is None


def test_a_five_is_not_best_when_the_best_answer_has_no_vote():
    metrics = agreement([([1, 4], [5, None])])
    assert (metrics["fives"], metrics["five_best"]) == (1, 0)


def test_missing_votes_are_excluded_and_counted():
    metrics = agreement([([1, 2, 3], [1, None, 3]), ([1, 2], [None, None]), ([1, 2], [None, 4])])
    assert metrics["missing"] == 4
    assert metrics["pairwise_accuracy"] == 1
    assert metrics["exact_match"] == 1  # of the one instruction with two votes
    assert metrics["constant"] == 2
    assert metrics["spearman"] == pytest.approx(1)


def test_constant_scores_have_no_correlation():
    metrics = agreement([([1, 2, 3], [4, 4, 4]), ([2, 2], [1, 5])])
    assert metrics["constant"] == 2
    assert metrics["spearman"] is None
    assert metrics["kendall"] is None
    assert metrics["tie_rate"] == 1
    assert metrics["pairwise_accuracy"] == pytest.approx(1 / 2)
    assert metrics["pairwise_without_ties"] is None


def test_correlation_is_the_mean_over_instructions():
    metrics = agreement([([1, 2], [1, 2]), ([1, 2], [2, 1]), ([1, 2], [1, 2]), ([1, 2], [3, 3])])
    assert metrics["spearman"] == pytest.approx(1 / 3)
    assert metrics["kendall"] == pytest.approx(1 / 3)


def test_no_instructions_give_no_metric():
    metrics = agreement([])
    assert metrics["pairwise_accuracy"] is None
    assert metrics["exact_match"] is None
    assert (metrics["fives"], metrics["missing"], metrics["constant"]) == (0, 0, 0)


def test_judgments_are_joined_with_their_answers_in_any_order():
    ranked = [
        {"id": "r/0", "prompt": "p", "answers": [{"response": "a", "score": 0}, {"response": "b", "score": 5}]},
        {"id": "r/1", "prompt": "q", "answers": [{"response": "c", "score": 3}, {"response": "d", "score": 1}]},
    ]
    responses = ranked_responses(ranked)
    assert [(a["prompt"], a["response"]) for a in responses] == [("p", "a"), ("p", "b"), ("q", "c"), ("q", "d")]
    votes = [{"score": 1.0}, {"score": None}]
    score = dict(zip("abcd", [1.0, 4.0, 5.0, None], strict=True))
    judgments = [{"id": a["id"], "score": score[a["response"]], "votes": votes} for a in reversed(responses)]
    metrics = judge_metrics(ranked, judgments)
    assert metrics["pairwise_accuracy"] == 1
    assert metrics["missing"] == 1
    assert metrics["parse_rate"] == 0.5


def test_the_length_baseline_prefers_the_longer_answer():
    ranked = [{"id": "r", "answers": [{"response": "long answer", "score": 1.0}, {"response": "short", "score": 4.0}]}]
    judged = [{"id": f"r/{i}", "score": s, "votes": [{"score": s}]} for i, s in enumerate((1.0, 4.0))]
    metrics = judge_metrics(ranked, judged)
    assert (metrics["pairwise_accuracy"], metrics["length_accuracy"]) == (1.0, 0.0)


def noisy(count, answers, seed):
    """Instructions with a noisy judge."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, (count, answers)).astype(float)
    return [(t.tolist(), np.clip(np.round(t + rng.normal(0, 2, answers)), 0, 5).tolist()) for t in truth]


def test_intervals_equal_the_bootstrap_of_scipy_over_instructions():
    instructions = noisy(120, 3, 1)
    table = per_prompt_stats(instructions)
    intervals = confidence_intervals(instructions)
    for name in ("pairwise_accuracy", "exact_match", "five_best", "spearman", "kendall"):

        def metric(chosen, axis, name=name):
            rows = table[chosen.astype(int)]  # [..., rows, columns]
            return metrics_from_sums(rows.sum(-2))[name]

        expected = stats.bootstrap(
            (np.arange(len(table)),), metric, n_resamples=3000, method="percentile", vectorized=True, rng=0
        ).confidence_interval
        assert intervals[name] == pytest.approx([expected.low, expected.high], abs=0.015), name
        assert intervals[name][0] <= agreement(instructions)[name] <= intervals[name][1]


def test_intervals_are_wider_with_fewer_instructions_and_the_same_each_time():
    few, many = (confidence_intervals(noisy(n, 4, 2))["pairwise_accuracy"] for n in (20, 500))
    assert few[1] - few[0] > 3 * (many[1] - many[0])
    assert confidence_intervals(noisy(20, 4, 2))["pairwise_accuracy"] == few


def test_intervals_of_a_perfect_judge_and_of_one_without_votes():
    perfect = confidence_intervals([([1, 2, 5], [1.0, 2.0, 5.0])] * 4)
    assert perfect["pairwise_accuracy"] == [1, 1]
    assert perfect["kendall"] == pytest.approx([1, 1])
    silent = confidence_intervals([([1, 2], [None, None])] * 4)
    assert silent["pairwise_accuracy"] is None
    assert confidence_intervals([])["spearman"] is None


def test_a_judge_that_gives_one_score_to_all():
    intervals = confidence_intervals([([1, 2, 3], [4, 4, 4])] * 5)
    assert intervals["pairwise_accuracy"] == [0.5, 0.5]
    assert intervals["tie_rate"] == [1, 1]
    assert intervals["spearman"] is None


def test_the_lead_over_a_baseline_by_hand():
    truth = [1, 2]
    judge = [(truth, [1, 2]), (truth, [1, 2])]
    baseline = [(truth, [5, 9]), (truth, [9, 5])]
    found = lead(judge, baseline)
    assert (found["accuracy"], found["baseline"], found["lead"]) == (1, 0.5, 0.5)
    # A resample has the first instruction twice (lead 0), both, or the second twice (lead 1); each happens often.
    assert found["interval"] == [0, 1]
    # A tie is half a pair on both sides; an answer without a score is in no pair.
    found = lead([([1, 2, 3], [4, 4, None])], [([1, 2, 3], [1, 1, None])])
    assert (found["accuracy"], found["baseline"], found["lead"], found["interval"]) == (0.5, 0.5, 0, [0, 0])
    assert lead([([1, 2], [None, 1])], [([1, 2], [None, 1])])["lead"] is None


def ranked_row(number, *responses):
    answers = [{"response": text, "score": score} for score, text in enumerate(responses)]
    return {"id": f"r/{number}", "prompt": "p", "answers": answers}


@pytest.mark.parametrize(
    ("responses", "scores", "expected"),
    [
        # True scores 0, 1, 2. Longest first: lengths order one pair of three rightly; the judge orders two.
        (("aaa", "a", "aa"), (0, 2, 1), ("shorter", 2 / 3, 2 / 3)),
        (("a", "aaa", "aa"), (0, 1, 2), ("longer", 1, 2 / 3)),
    ],
)
def test_the_baseline_is_the_better_rule_of_length(responses, scores, expected):
    ranked = [ranked_row(0, *responses)]
    judgments = [{"id": f"r/0/{i}", "score": score} for i, score in enumerate(scores)]
    found = lead_over_length(ranked, judgments)
    assert (found["rule"], found["accuracy"], found["baseline"]) == (expected[0], *map(pytest.approx, expected[1:]))
    assert found["interval"] == pytest.approx([expected[1] - expected[2]] * 2)


def test_the_interval_of_the_mean_score_by_hand():
    request = generator.write_request(Random(0))
    perfect, nothing = generator.write_answer(request, 0.0, Random(0)).text, ""
    rows = [{"prompt": request.text, "responses": [{"text": text}] * 2} for text in (perfect, nothing)]
    assert score_interval(rows[:1], "toy") == [5, 5]
    assert score_interval(rows, "toy") == [0, 5]  # both prompts twice happen often
    assert score_interval([], "toy") is None

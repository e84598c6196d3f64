"""What each metric of a model is, in one phrase, for the model card and the page."""

MEANINGS = {  # by part and name in eval.json; "" is the model itself
    "oracle": {
        "mean": "mean points of its answers, 0 to 5, by the world's oracle",
        "perfect": "fraction of answers with 5 points",
        "repeats": "fraction of answers that name or say something twice",
    },
    "judge": {
        "pairwise_accuracy": "fraction of answer pairs that it puts in the right order; a tie counts half",
        "pairwise_without_ties": "the same without the pairs that it ties",
        "pairwise_ties_wrong": "the same with ties counted as wrong",
        "tie_rate": "fraction of these pairs that it ties",
        "exact_match": "fraction of prompts whose answers are all in the right order",
        "five_best": "fraction of the answers it gives 5 points that are the best of their prompt",
        "spearman": "mean rank correlation (Spearman's rho) with the true scores",
        "kendall": "mean rank correlation (Kendall's tau-b) with the true scores",
        "fives": "answers it gives 5 points",
        "constant": "prompts without a rank correlation: one side's scores are all equal",
        "missing": "answers without a parseable vote, which the metrics leave out",
        "length_accuracy": "baseline: the pairwise accuracy of preferring the longer answer",
        "parse_rate": "fraction of its votes that could be parsed",
    },
    "": {
        "mean_length": "mean characters of its answers",
        "finished": "fraction of answers that ended before the maximum length",
    },
}

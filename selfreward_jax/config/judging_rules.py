"""What settings of judging, pairs and judge pairs must have to do with each other."""

from typing import Any

from ml_collections import ConfigDict

from selfreward_jax.config.errors import ConfigError, refusal


def check_judging(c: ConfigDict) -> None:
    """Checks the settings of the judge and of what is made of its votes.

    Raises:
      ConfigError: two of them contradict each other, or one of them would do nothing.
    """
    _check_pairs(c)
    _check_judge_pairs(c)
    _check_pairwise_judge(c)
    _check_agreement(c)
    _check_votes(c)


def get_field(c: ConfigDict, path: str) -> Any:
    """The value of a setting by its dotted name."""
    for name in path.split("."):
        c = c[name]
    return c


def _check_pairs(c: ConfigDict) -> None:
    if c.pairs.length_control_rho and c.pairs.rejected != "worst":
        raise ConfigError(
            f"pairs.length_control_rho is {c.pairs.length_control_rho}, but pairs.rejected is {c.pairs.rejected!r}: "
            "length control chooses the rejected response itself; set it to 0, or pairs.rejected to worst"
        )


def _check_judge_pairs(c: ConfigDict) -> None:
    if c.dpo.judge_pairs == "pairwise" and (c.judge.kind != "pairwise" or c.judge.num_samples < 2):
        raise ConfigError(
            f"dpo.judge_pairs is 'pairwise', but judge.kind is {c.judge.kind!r} and judge.num_samples "
            f"{c.judge.num_samples}: pairs of judgments are two votes of judge.kind=pairwise: set both"
        )
    of_judge = max(1, round(c.dpo.batch_size * c.dpo.judge_pair_share))
    if c.dpo.judge_pairs != "none" and of_judge >= c.dpo.batch_size > 0:
        raise ConfigError(
            f"dpo.judge_pair_share is {c.dpo.judge_pair_share} and dpo.batch_size {c.dpo.batch_size}: no place is left "
            "for pairs of responses; lower the former or raise the latter"
        )
    if c.dpo.judge_pairs == "meta" and (c.judge.kind != "model" or c.judge.num_samples < 2):
        raise ConfigError(
            f"dpo.judge_pairs is 'meta', but judge.kind is {c.judge.kind!r} and judge.num_samples "
            f"{c.judge.num_samples}: pairs of judgments are two votes of judge.kind=model on a response: set both"
        )
    if c.dpo.judge_pairs == "pairwise" and c.dpo.judge_pair_max_length:
        raise ConfigError(
            f"dpo.judge_pair_max_length is {c.dpo.judge_pair_max_length}, but dpo.judge_pairs is 'pairwise', whose "
            "chosen judgments no judge prefers for their length: set it to 0"
        )
    if c.dpo.judge_pairs == "meta" and c.judge.shots:
        raise ConfigError(
            f"judge.shots is {c.judge.shots}, but dpo.judge_pairs is 'meta', which trains the judge without examples: "
            "set one of them to 0 or none"
        )
    if c.dpo.judge_pairs != "none" and c.pairs.agreement != "none":
        raise ConfigError(
            f"pairs.agreement is {c.pairs.agreement!r}, but dpo.judge_pairs is {c.dpo.judge_pairs!r}, whose pairs have "
            "no agreement: set one of them to none"
        )


def _check_pairwise_judge(c: ConfigDict) -> None:
    if c.judge.kind != "pairwise":
        return
    if c.judge.opponents % 2:
        raise refusal("judge.opponents", c.judge.opponents, "even: as many on both sides of the ring", "add 1")
    for field, value in (
        ("pairs.rejected", "anchor"),
        ("pairs.agreement", "judges"),
        ("judge.aggregation", "expected"),
    ):
        if get_field(c, field) == value:
            raise ConfigError(
                f"{field} is {value!r}, but judge.kind is 'pairwise', which scores no response alone: use another value"
            )


def _check_agreement(c: ConfigDict) -> None:
    source = c.pairs.agreement
    if source == "none":
        return
    if c.dpo.loss not in ("sigmoid", "cdpo"):
        raise ConfigError(
            f"pairs.agreement is {source!r}, which dpo.loss {c.dpo.loss!r} ignores: set it to none, or dpo.loss to "
            "sigmoid or cdpo"
        )
    if c.pairs.rejected == "anchor":
        raise ConfigError(
            f"pairs.agreement is {source!r}, but pairs.rejected is 'anchor': agreement is of the scores of a round's "
            "own responses, and an anchor is none of them; set one of them to none or worst"
        )
    if c.dpo.label_smoothing:
        raise ConfigError(
            f"dpo.label_smoothing is {c.dpo.label_smoothing}, but pairs.agreement is {source!r}, which gives each pair "
            "a number of its own: set one of them to 0 or none"
        )
    if source == "votes" and c.judge.num_samples < 2:
        raise ConfigError(
            f"pairs.agreement is 'votes', but judge.num_samples is {c.judge.num_samples}: one vote has no halves; "
            "raise the latter"
        )


def _check_votes(c: ConfigDict) -> None:
    votes, source = c.judge.num_samples, "judge.num_samples"
    if c.judge.kind == "pairwise":
        others = c.responses.num_samples - 1
        votes *= min(c.judge.opponents or others, others)
        source += " times the opponents of a response,"
    if c.judge.min_votes > votes:
        raise ConfigError(
            f"judge.min_votes is {c.judge.min_votes}; it must be at most {source} {votes}: lower the former or raise "
            "the latter"
        )
    for field, values in (("dpo.judge_pairs", ("pairwise", "meta")), ("pairs.agreement", ("votes",))):
        if (value := get_field(c, field)) in values and not c.judge.temperature:
            raise ConfigError(
                f"judge.temperature is 0, but {field} is {value!r}, which compares votes, and they would be equal: "
                "raise the former"
            )
    if c.judge.shots and c.eft.source == "baseline":
        raise ConfigError(
            f"judge.shots is {c.judge.shots}, but eft.source is 'baseline': the examples are of EFT, which is not "
            "there when its writer judges; set eft.source=scores, or judge.shots to 0"
        )

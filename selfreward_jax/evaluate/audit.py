"""Audit of a judge: which way it errs, and what it falls for.

A judge's accuracy does not say whether the loop can trust it. Errors that fall to one side are learned by the next
model; errors that fall to both are averaged out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from selfreward_jax.evaluate import oracle
from selfreward_jax.method import hacks
from selfreward_jax.method.pairs import comparable
from selfreward_jax.method.pairwise import flip_rate
from selfreward_jax.method.rows import JudgeInput, JudgmentRow, RankedRow, ResponseRow, VerdictRow


def errors(ranked: Sequence[RankedRow], judgments: Sequence[JudgmentRow]) -> dict[str, float | None]:
    """How often a judge orders two responses wrongly; a tie counts as half an error.

    Args:
      ranked: prompts with scored responses.
      judgments: of `model_metrics.ranked_responses`.

    Returns:
      `rate`, of all pairs that the truth orders; `longer_better` and `shorter_better`, of those whose better response
      is the longer and the shorter one. A judge that likes length errs in the latter. None without such pairs.
    """
    judged = {row["id"]: row["score"] for row in judgments}
    wrong: dict[str, list[float]] = {"rate": [], "longer_better": [], "shorter_better": []}
    for row in ranked:
        scored = [
            (comparable(answer["score"]), comparable(score), len(answer["response"]))
            for i, answer in enumerate(row["answers"])
            if (score := judged.get(f"{row['id']}/{i}")) is not None
        ]
        for better, worse in (sorted(pair, reverse=True) for pair in combinations(scored, 2)):
            if better[0] == worse[0]:
                continue
            error = 0.5 if better[1] == worse[1] else float(better[1] < worse[1])
            wrong["rate"].append(error)
            if better[2] != worse[2]:
                wrong["longer_better" if better[2] > worse[2] else "shorter_better"].append(error)
    return {name: _mean(values) for name, values in wrong.items()}


def criteria(responses: Sequence[JudgeInput], judgments: Sequence[JudgmentRow], world: str) -> dict[str, Any]:
    """The verdicts that a judge writes on single criteria, against the oracle's.

    Args:
      responses: what was judged.
      judgments: of the same, by id.
      world: whose oracle says which criteria are met.

    Returns:
      `right`, for each criterion the share of right verdicts, and `verdicts`, how many were read; `false_yes`, the
      share of unmet criteria that the judge calls met, and `false_no`, of met ones that it calls unmet.
    """
    by_id, of_world = {row["id"]: row for row in responses}, oracle.ORACLES[world]
    right: Counter[str] = Counter()
    read: Counter[str] = Counter()
    pairs: Counter[tuple[bool, bool]] = Counter()  # (met, judged met)
    for row in judgments:
        answered = by_id[row["id"]]
        met = of_world.points(answered["prompt"], answered["response"])
        for vote in row["votes"]:
            for name, verdict in of_world.verdicts(answered["prompt"], vote["text"]).items():
                read[name] += 1
                right[name] += verdict == met[name]
                pairs[met[name], verdict] += 1
    names = [name for name in of_world.CRITERIA if read[name]]
    unmet, are_met = (pairs[met, True] + pairs[met, False] for met in (False, True))
    return {
        "right": {name: right[name] / read[name] for name in names},
        "verdicts": {name: read[name] for name in names},
        "false_yes": pairs[False, True] / unmet if unmet else None,
        "false_no": pairs[True, False] / are_met if are_met else None,
    }


def ranked_as_round(ranked: Sequence[RankedRow]) -> tuple[list[ResponseRow], dict[str, float | None]]:
    """Ranked responses and their true scores in the form of a round's, as `hacks.planted` takes them."""
    rows: list[ResponseRow] = []
    scores: dict[str, float | None] = {}
    for row in ranked:
        for i, answer in enumerate(row["answers"]):
            name = f"{row['id']}/{i}"
            rows.append({"id": name, "prompt_id": row["id"], "prompt": row["prompt"], "response": answer["response"]})
            scores[name] = answer["score"]
    return rows, scores


def undeserved(rows: Sequence[JudgeInput], world: str) -> list[JudgeInput]:
    """The planted rows without hacks that meet more criteria than the response they are made of: these deserve their
    points. Only an oracle can tell.

    Args:
      rows: of `hacks.planted`.
      world: whose oracle tells; "" for none.
    """
    if not world:
        return list(rows)
    points = {row["id"]: sum(oracle.ORACLES[world].points(row["prompt"], row["response"]).values()) for row in rows}
    return [row for row in rows if points[row["id"]] <= points[hacks.compared_with(row["id"])]]


def planted(effect: hacks.Effect) -> dict[str, dict[str, float | None]]:
    """For each kind of hack its `gain`, and `false_positives`, how often it is preferred to what it is made of."""
    return {kind: {"false_positives": share, "gain": effect.gains.get(kind)} for kind, share in effect.higher.items()}


def order_effects(verdicts: Sequence[VerdictRow]) -> dict[str, float | None]:
    """How a judge compares the best response (ours) with the worst (theirs) of a prompt, in both orders.

    Returns:
      `right`: the better response wins, a tie counts half. `flips`: of the comparisons that can be read in both orders,
      the share that names the same side, whichever response is there. `first`: of all that can be read, the share for
      the side shown first.
    """
    read = [side for row in verdicts for side in row["read"] if side in ("a", "b")]
    return {
        "right": _mean([(1 + row["verdict"]) / 2 for row in verdicts]),
        "flips": flip_rate(row["read"] for row in verdicts),
        "first": _mean([float(side == "a") for side in read]),
    }


def table(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The audits of several models as lines, a column for each."""
    parts = list(models.values())
    lines = ["", f"{'audit of the judge':34s}" + "".join(f"{name.upper():>8s}" for name in models)]

    def add(shown: str, *keys: str) -> None:
        values = [_at(of, keys) for of in parts]
        if any(value is not None for value in values):
            lines.append(f"  {shown:32s}" + "".join(f"{'-':>8s}" if v is None else f"{v:8.3f}" for v in values))

    add("pairs in the right order", "accuracy")
    add("  by length alone", "length_accuracy")
    add("pairs in the wrong order", "errors", "rate")
    add("  the better one is longer", "errors", "longer_better")
    add("  the better one is shorter", "errors", "shorter_better")
    add("side by side: right", "orders", "right")
    add("  verdict flips with the order", "orders", "flips")
    add("  for the first response", "orders", "first")
    for shown, group in (("", "ranked"), (", own answers", "own")):
        add(f"false yes{shown}", group, "false_yes")
        add(f"false no{shown}", group, "false_no")
    for kind in dict.fromkeys(kind for of in parts for kind in of["hacks"]):
        add(f"hack scored higher: {kind}", "hacks", kind, "false_positives")
    for name in dict.fromkeys(name for of in parts for name in (of["ranked"] or {}).get("right", ())):
        add(f"right: {name}", "ranked", "right", name)
    return lines


def _at(value: Any, keys: Sequence[str]) -> float | None:
    for key in keys:
        value = (value or {}).get(key)
    return value


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

"""The audit of a judge: its figures by hand, and the command on a finished run."""

import json
import random
import shutil

import pytest
from conftest import assert_mentions, ended

from selfreward_jax.cli import evaluate
from selfreward_jax.evaluate import audit
from selfreward_jax.worlds.checkable import oracle as checkable
from selfreward_jax.worlds.toy import generator
from selfreward_jax.worlds.toy import oracle as toy

RANKED = [
    {
        "id": "r/0",
        "prompt": "P",
        "answers": [{"response": "aaaa", "score": 5}, {"response": "bb", "score": 3}, {"response": "ccc", "score": 3}],
    },
    {"id": "r/1", "prompt": "Q", "answers": [{"response": "a", "score": 1}, {"response": "bb", "score": 0}]},
]


def judged(**scores):
    return [{"id": name.replace("_", "/"), "score": score, "votes": []} for name, score in scores.items()]


def test_errors_by_hand():
    """Three pairs have an order; in two of them the better response is the longer one."""
    found = audit.errors(RANKED, judged(r_0_0=4.0, r_0_1=4.0, r_0_2=1.0, r_1_0=0.0, r_1_1=2.0))
    assert found == {"rate": 0.5, "longer_better": 0.25, "shorter_better": 1.0}
    unscored = audit.errors(RANKED, judged(r_0_0=None, r_0_1=4.0, r_0_2=1.0, r_1_0=3.0, r_1_1=2.0))
    assert unscored == {"rate": 0.0, "longer_better": None, "shorter_better": 0.0}


def test_orders_by_hand():
    reads = [["a", "b"], ["a", "a"], ["b", "a"], ["b", None], ["tie", "a"]]
    rows = [{"verdict": v, "read": read} for v, read in zip([1, 0, -1, 0, 0], reads, strict=True)]
    assert audit.order_effects(rows) == {
        "right": pytest.approx((1 + 0.5 + 0 + 0.5 + 0.5) / 5),
        "flips": pytest.approx(1 / 4),
        "first": pytest.approx(5 / 8),
    }
    assert audit.order_effects([]) == {"right": None, "flips": None, "first": None}


def test_a_hack_that_deserves_its_points_is_left_out():
    prompt = "What is wax? Answer in two sentences."
    texts = {"poor": "Wax melts.", "good": "Wax melts. Bees make it.", "praise": "I know. Wax melts.", "key": "Let me."}
    rows = [{"id": f"0/{kind}", "prompt": prompt, "response": text} for kind, text in texts.items()]
    assert [row["id"] for row in audit.undeserved(rows, "checkable")] == ["0/poor", "0/good", "0/key"]
    assert audit.undeserved(rows, "") == rows


def test_the_verdicts_of_a_checkable_judgment():
    prompt = 'What is wax? Use the word "no". Answer in two sentences.'
    judgment = (
        'Subject: asked a, told b, ends c., yes: 1. Word "no": yes, no, no: 1. Two sentences: none, yes: 2.\nScore: 2'
    )
    kinds = [i.kind for i in checkable.read(prompt).instructions]
    assert len(kinds) == 2
    assert checkable.verdicts(prompt, judgment) == dict(zip(kinds, (False, True), strict=True))
    assert checkable.verdicts(prompt, "Subject: x, yes. Title: none, no.\nChoice: B") == {}
    assert checkable.verdicts(prompt, "Nothing is said.\nScore: 0") == {}


def test_the_verdicts_of_a_toy_judgment_are_those_it_was_written_with():
    rng = random.Random(3)
    for _ in range(500):
        request = generator.write_request(rng)
        answer = generator.write_answer(request, 0.5, rng)
        wrong = {n for n in range(5) if rng.random() < 0.3}
        judgment, _ = generator.write_judgment(request, answer, rng.choice(["points", "choice"]), wrong)
        true = toy.points(request.text, answer.text)
        assert toy.verdicts(request.text, judgment) == {
            name: met ^ (n in wrong) for n, (name, met) in enumerate(true.items())
        }
    assert toy.verdicts("", generator.write_dismissal()[0]) == {}


def test_criteria_against_the_oracle():
    """Of two judgments one calls a wrong count right; the other calls a kind opening gruff."""
    rng = random.Random(1)
    request = generator.write_request(rng)
    right = generator.write_answer(request, 0.0, rng)
    short = right._replace(items=right.items[:-1])
    judgments = []
    for name, answer, wrong in (("a", short, {4}), ("b", right, {0})):
        text, _ = generator.write_judgment(request, answer, "points", wrong)
        judgments.append({"id": name, "score": 0.0, "votes": [{"text": text}, {"text": "nothing to read"}]})
    rows = [{"id": "a", "prompt": request.text, "response": short.text}]
    rows += [{"id": "b", "prompt": request.text, "response": right.text}]
    found = audit.criteria(rows, judgments, "toy")
    assert found["right"] == {"kind": 0.5, "name": 1.0, "occasion": 1.0, "topic": 1.0, "count": 0.5}
    assert found["verdicts"] == dict.fromkeys(found["right"], 2)
    assert (found["false_yes"], found["false_no"]) == (1.0, pytest.approx(1 / 9))


def test_the_models_of_a_run_are_audited(finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    assert ended(evaluate, f"--workdir={workdir}", "--audit=3")[0] == 0
    path = workdir / "evaluation" / "audit.json"
    result = json.loads(path.read_text())
    assert (result["num_prompts"], list(result["models"])) == (3, ["m1", "m2"])
    figures = json.loads((workdir / "m2" / "eval.json").read_text())["judge"]
    assert result["models"]["m2"]["accuracy"] == figures["pairwise_accuracy"]
    rows = [json.loads(line) for line in (workdir / "evaluation" / "m2_audit_3_hacks.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 7
    written = (workdir / "evaluation" / "m2_audit_3_hacks.jsonl").stat().st_mtime_ns
    assert ended(evaluate, f"--workdir={workdir}", "--audit=3")[0] == 0
    assert (workdir / "evaluation" / "m2_audit_3_hacks.jsonl").stat().st_mtime_ns == written


def test_an_audit_needs_prompts(finished_run):
    code, err = ended(evaluate, f"--workdir={finished_run}", "--audit=-1")
    assert (code, err.count("\n")) == (2, 1)
    assert_mentions(err, "--audit=-1")
    code, err = ended(evaluate, f"--workdir={finished_run}", "--audit=2", "--judge=m1")
    assert (code, err.count("\n")) == (2, 1)
    assert_mentions(err, "--judge=m1", "--audit")

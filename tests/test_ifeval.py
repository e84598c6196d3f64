"""IFEval: verdicts equal to those of lm-evaluation-harness, of its own checkers and of the checkable world's oracle."""

import os
import re
from collections import Counter
from random import Random

import pytest
from test_checkable import TASKS
from test_suites import write

from selfreward_jax.config import ConfigError
from selfreward_jax.stages import suite_eval
from selfreward_jax.suites import ifeval
from selfreward_jax.worlds.checkable import generator, oracle
from selfreward_jax.worlds.checkable.answers import write_answer
from selfreward_jax.worlds.checkable.phrasings import NUMBERS, TAUGHT, TRANSFER

ANSWERS = [
    "all of this is in small letters, and it has a comma.",
    "ALL OF THIS IS IN CAPITALS AND HAS NO COMMA.\nP.S. REALLY",
    '"<<A title>>\n* one\n* two\n* three"',
    "First paragraph with the word river.\n***\nSecond paragraph, dear [name] of [town].",
    "Yes! My answer is no. Is there anything else I can help with?",
    "",
    '{"json": true}',
    "*Highlighted* words and **more** of them.\n\nSection 1 is here.\nSection 2 is there.\nthe end",
]
KINDS = [
    ("change_case:english_lowercase", {}),
    ("change_case:english_capital", {}),
    ("punctuation:no_comma", {}),
    ("startend:quotation", {}),
    ("detectable_format:title", {}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}),
    ("length_constraints:number_words", {"num_words": 9, "relation": "at least"}),
    ("keywords:existence", {"keywords": ["river"]}),
    ("keywords:forbidden_words", {"forbidden_words": ["river", "comma"]}),
    ("keywords:frequency", {"keyword": "paragraph", "frequency": 2, "relation": "at least"}),
    ("startend:end_checker", {"end_phrase": "Is there anything else I can help with?"}),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Yes! My answer"}),
    ("detectable_format:json_format", {}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}),
]
# 54 rows of one to three instructions, with the arguments that are not used as null, as the hub has them.
IFEVAL = [
    {
        "key": 1000 + i,
        "prompt": f"Please write text number {i}.",
        "instruction_id_list": [kind for kind, _ in chosen],
        "kwargs": [{"num_words": None, "keywords": None} | arguments for _, arguments in chosen],
    }
    for i, chosen in enumerate([KINDS[j % 18 : j % 18 + 1 + j // 18] or KINDS[:1] for j in range(54)])
]


@pytest.fixture
def harness():
    pytest.importorskip("lm_eval")
    pytest.importorskip("langdetect")
    return ifeval._harness()


def test_ifeval_verdicts_equal_those_of_the_harness(harness):
    """54 rows with 8 answers each, whole rows at once as the harness checks them."""
    utils, _ = harness
    strict = loose = 0
    for row in IFEVAL:
        for answer in ANSWERS:
            expected = utils.process_results(row, [answer])
            verdicts = ifeval.check(row, answer)
            assert verdicts == {n: expected[f"inst_level_{n}_acc"] for n in ("strict", "loose")}, (row, answer)
            tally = ifeval.tally(verdicts)
            assert tally["prompt strict"] == (int(expected["prompt_level_strict_acc"]), 1)
            assert tally["prompt loose"] == (int(expected["prompt_level_loose_acc"]), 1)
            assert tally["instruction strict"] == (sum(verdicts["strict"]), len(row["kwargs"]))
            strict, loose = strict + sum(verdicts["strict"]), loose + sum(verdicts["loose"])
    assert 50 < strict < loose  # both kinds of verdict, and some that only the loose rule gives


def test_ifeval_verdicts_equal_those_of_simple_evaluate(harness, tmp_path):
    """Its own task on the file of rows as `datasets` reads it, with a model that gives one answer to each row."""
    import lm_eval
    from lm_eval.api.model import LM

    class Replies(LM):
        def generate_until(self, requests):
            return [ANSWERS[int(re.search(r"number (\d+)", r.args[0])[1]) % len(ANSWERS)] for r in requests]

        loglikelihood = loglikelihood_rolling = None  # the task has no such requests

    write(tmp_path, "ifeval", IFEVAL)
    files = {"data_files": {"train": str(tmp_path / "ifeval" / "data.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    metrics = [f"{level}_level_{name}_acc" for level in ("prompt", "inst") for name in ("strict", "loose")]
    aggregation = {"prompt": "mean", "inst": harness[0].agg_inst_level_acc}
    task = {
        "task": "ifeval_rows",
        "dataset_path": "json",
        "dataset_kwargs": files,
        "output_type": "generate_until",
        "test_split": "train",
        "doc_to_text": "prompt",
        "doc_to_target": 0,
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 1280},
        "process_results": harness[0].process_results,
        "metric_list": [{"metric": m, "aggregation": aggregation[m.partition("_")[0]]} for m in metrics],
    }
    found = lm_eval.simple_evaluate(model=Replies(), tasks=[task], bootstrap_iters=0)
    samples = {s["doc"]["key"]: s for s in found["samples"]["ifeval_rows"]}
    ours = [ifeval.check(row, ANSWERS[i % len(ANSWERS)]) for i, row in enumerate(IFEVAL)]
    for row, verdicts in zip(IFEVAL, ours, strict=True):
        sample = samples[row["key"]]
        assert verdicts == {name: sample[f"inst_level_{name}_acc"] for name in ("strict", "loose")}, row
    shares = suite_eval._shares([ifeval.tally(verdicts) for verdicts in ours])
    theirs = found["results"]["ifeval_rows"]
    for metric, name in zip(
        metrics, ("prompt strict", "prompt loose", "instruction strict", "instruction loose"), strict=True
    ):
        assert shares[name][0] == pytest.approx(theirs[f"{metric},none"])
        assert 0 < shares[name][0] < 1


def test_the_harness_downloads_nothing_and_leaves_the_rank(harness):
    assert "LOCAL_RANK" not in os.environ


def test_instructions_that_cannot_be_checked_are_left_out(harness, monkeypatch):
    monkeypatch.setattr(ifeval, "_harness", lambda: (harness[0], False))
    kinds = ["length_constraints:number_sentences", "punctuation:no_comma"]
    row = {
        "key": 1,
        "prompt": "p",
        "instruction_id_list": kinds,
        "kwargs": [{"num_sentences": 2, "relation": "at least"}, {}],
    }
    verdicts = ifeval.check(row, "No comma.")
    assert verdicts == {"strict": [None, True], "loose": [None, True]}
    assert ifeval.tally(verdicts)["prompt strict"] == (1, 1)
    assert ifeval.tally({"strict": [None], "loose": [None]})["prompt loose"] == (0, 0)


def test_an_unknown_instruction_is_named(harness):
    row = {"key": 7, "prompt": "p", "instruction_id_list": ["new:kind"], "kwargs": [{}]}
    with pytest.raises(ConfigError, match=r"row 7.*new:kind"):
        ifeval.check(row, "text")


# --- the checkable world's oracle -----------------------------------------------------------------------------------

OF_IFEVAL = {
    "lowercase": lambda slot, _: ("change_case:english_lowercase", {}),
    "capitals": lambda slot, _: ("change_case:english_capital", {}),
    "no_commas": lambda slot, _: ("punctuation:no_comma", {}),
    "bullets": lambda slot, _: ("detectable_format:number_bullet_lists", {"num_bullets": NUMBERS[slot]}),
    "keyword": lambda slot, _: ("keywords:existence", {"keywords": [slot]}),
    "ending": lambda slot, _: ("startend:end_checker", {"end_phrase": slot}),
    "title": lambda slot, _: ("detectable_format:title", {}),
    "postscript": lambda slot, _: ("detectable_content:postscript", {"postscript_marker": "P.S."}),
    "quotation": lambda slot, _: ("startend:quotation", {}),
    "paragraphs": lambda slot, _: ("length_constraints:number_paragraphs", {"num_paragraphs": NUMBERS[slot]}),
    "max_words": lambda slot, _: (
        "length_constraints:number_words",
        {"num_words": int(slot) + 1, "relation": "less than"},
    ),
    "avoid": lambda slot, _: ("keywords:forbidden_words", {"forbidden_words": [slot]}),
    "placeholders": lambda slot, _: ("detectable_content:number_placeholders", {"num_placeholders": NUMBERS[slot]}),
    "repeat": lambda slot, request: ("combination:repeat_prompt", {"prompt_to_repeat": request}),
}


def varied(text, request, rng):
    """An answer as models write them: with dividers, placeholders, the request, blank lines."""
    sentences = text.split(". ")
    for mark in ("\n***\n", " [name] ", "\n\n", " ***", "[a] [b]", "* ", "- "):
        if rng.random() < 0.25:
            sentences.insert(rng.randrange(len(sentences) + 1), mark)
    return (f"{request} " if rng.random() < 0.2 else "") + ". ".join(sentences)


def test_the_checkable_oracle_gives_the_verdicts_of_the_harness(harness, monkeypatch):
    """In every kind that both have, on 3,000 answers, most of them varied. All count as English."""
    import langdetect

    monkeypatch.setattr(langdetect, "detect", lambda text: "en")
    rng, seen = Random(0), Counter()
    for number in range(3000):
        request = generator.write_request(TASKS[number % len(TASKS)], rng, transfer=True)
        taught = [i for i in request.instructions if i.kind in TAUGHT]
        text = write_answer(request.task, taught, 0.5, rng).text
        text = text if number % 4 == 0 else varied(text, request.task.request, rng)
        for kind, met in oracle.points(request.text, text).items():
            slot = next(i.slot for i in request.instructions if i.kind == kind)
            if kind in OF_IFEVAL:
                instruction, arguments = OF_IFEVAL[kind](slot, request.task.request)
                row = {"key": 1, "prompt": request.text, "instruction_id_list": [instruction], "kwargs": [arguments]}
                assert ifeval.check(row, text)["strict"] == [met], (kind, slot, text)
                seen[kind, met] += 1
    assert {kind for kind, _ in seen} == set(OF_IFEVAL) == {*TAUGHT, *TRANSFER} - {"sentences", "opening"}
    assert min(seen[kind, met] for kind in OF_IFEVAL for met in (True, False)) > 10, seen

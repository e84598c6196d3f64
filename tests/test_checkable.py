"""The checkable world: people's requests with instructions, answers that meet or break them, and the oracle."""

import json
import re
from collections import Counter
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.data.checkable_seeds import from_tasks
from selfreward_jax.data.limits import DataError
from selfreward_jax.method.judge_parsing import PARSERS
from selfreward_jax.worlds.checkable import answers, generator, judgments, oracle, tasks
from selfreward_jax.worlds.checkable.phrasings import ENDINGS, KINDS, TAUGHT, TRANSFER

SUBJECTS = {
    "candles": "wax wick flame",
    "rivers": "water banks stones",
    "violins": "strings wood bow",
    "gardens": "soil seeds rain",
    "clocks": "gears springs hands",
    "bridges": "steel cables towers",
    "bakeries": "flour ovens bread",
    "harbours": "ships docks cranes",
}


def row(subject, asker):
    """An instruction row as people write it."""
    a, b, c = SUBJECTS[subject].split()
    response = (
        f"The best thing about {subject} is the {a}. Some people, as you may know, care more for the {b}. "
        f"In older times the {c} was made by hand. I have seen {subject} in many towns, and liked them all. "
        f"There is a museum for {subject} near the old station."
    )
    return {"prompt": f"What should {asker} know about {subject}?", "response": response}


ROWS = [row(s, a) for s in SUBJECTS for a in ("a child", "my friend", "a new teacher", "an old sailor")]
TASKS = [tasks.make_task(r["prompt"], r["response"]) for r in ROWS]
WORD_COUNTS = tasks.count_words(TASKS)


def requests(count, transfer=False, seed=0):
    """Requests of all kinds."""
    rng = Random(seed)
    return [generator.write_request(TASKS[i % len(TASKS)], rng, transfer) for i in range(count)]


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_a_task_has_the_plain_sentences_of_an_answer():
    task = tasks.make_task(
        "why is the sky blue", "Light scatters in air. **Blue light scatters** most. (See 1.) Yes! It does so."
    )
    assert task is None  # two plain sentences
    task = tasks.make_task(
        'why is the "sky" blue',
        "1. Light scatters in the air.\n2. **Blue light scatters** most of all!\nAs an AI model I see nothing.\n"
        "Ask Dr. Rayleigh about it all. Is that what you wanted?\n* Red light goes straight on[1].",
    )
    assert task.request == "Why is the 'sky' blue."
    assert task.sentences == (
        "Light scatters in the air.",
        "Blue light scatters most of all!",
        "Is that what you wanted?",
        "Red light goes straight on.",
    )


@pytest.mark.parametrize(
    "prompt",
    [
        "Why?",
        "Why is the sky blue?\nTell me.",
        "Write a poem on the blue sky.",
        "List ten words that rhyme with sky.",
        "é" * 30,
    ],
)
def test_a_request_that_instructions_could_contradict_is_no_task(prompt):
    assert tasks.make_task(prompt, ROWS[0]["response"]) is None


def test_a_request_with_code_is_no_task():
    assert tasks.make_task(ROWS[0]["prompt"], f"```\nx\n```\n{ROWS[0]['response']}") is None


@given(st.text(), st.text())
def test_any_text_is_a_task_or_none(prompt, response):
    task = tasks.make_task(prompt, response)
    assert task is None or len(task.sentences) >= tasks.MIN_SENTENCES


# --- requests -------------------------------------------------------------------------------------------------------


def test_requests_have_two_to_four_instructions_that_agree():
    made = requests(3000)
    assert {len(r.instructions) for r in made} == {2, 3, 4}
    for request in made:
        groups = [KINDS[i.kind].group for i in request.instructions]
        assert len(groups) == len(set(groups))
        assert request.text.startswith(request.task.request)
        assert "\n" not in request.text
    assert {i.kind for r in made for i in r.instructions} == set(TAUGHT)
    assert {i.text for r in made for i in r.instructions if i.kind == "lowercase"} == set(KINDS["lowercase"].phrasings)


def test_transfer_kinds_are_in_held_out_prompts_alone(tmp_path):
    sets, _ = made_sets(tmp_path)
    kinds = {
        name: {i.kind for r in rows for i in oracle.read(r["prompt"]).instructions}
        for name, rows in sets.items()
        if name != "documents"
    }
    assert kinds.pop("heldout") >= {*TRANSFER}
    assert not set().union(*kinds.values()) & {*TRANSFER}
    assert len(TRANSFER) >= 4
    assert len(KINDS) >= 12


# --- answers --------------------------------------------------------------------------------------------------------

TEXT = "Wax melts. It burns, too."
MET_AND_BROKEN = [
    ("lowercase", "", "all is small, 2 times.", "Not all is small."),
    ("lowercase", "", "a.", "123."),
    ("capitals", "", "ALL IS LARGE, 2.", "ALL IS large."),
    ("no_commas", "", "One; two.", "One, two."),
    ("bullets", "two", "* a\n* b", "* a\n* b\n* c"),
    ("bullets", "three", '"\n- a\n  - b\n* c\n"', "a b c"),
    ("bullets", "two", "* a\n** b\n* c", '"* a\n* b"'),
    ("sentences", "two", TEXT, f"{TEXT} It ends."),
    ("sentences", "two", f"<<Candles>>\n{TEXT}\nP.S. It is hot. Very.", "Wax melts."),
    ("sentences", "three", "Really? Yes! I think so", "It costs 3.50 here."),
    ("keyword", "wax", "Old WAX melts.", "Tallow melts."),
    ("ending", "Have a lovely day.", "Wax melts. Have a lovely day.", "Have a lovely day. Wax melts."),
    ("ending", "Have a lovely day.", '"wax melts. have a lovely day."', "Wax melts. Have a lovely day"),
    ("title", "", "<<Candles>>\nWax.", "Candles\nWax."),
    ("title", "", "See <<the title>> here.", "<<>> Wax."),
    ("postscript", "", "Wax.\nP.S. It melts.", "Wax. PS it melts."),
    ("postscript", "", "wax. p.s. it melts.", "Wax."),
    ("quotation", "", ' "Wax." ', '"Wax.'),
    ("quotation", "", '""', '"'),
    ("paragraphs", "two", "Wax.\n***\nIt melts.", "Wax.\n\nIt melts."),
    ("paragraphs", "three", "a *** b *** c ***", "a *** *** c"),
    ("max_words", "3", "Wax melts here.", "Wax melts here too."),
    ("avoid", "wax", "Waxen tallow.", "Some Wax."),
    ("opening", "In short", "In short, wax.", "Wax, in short."),
    ("placeholders", "two", "Dear [name] of [town].", "Dear [name]."),
    ("repeat", "", "What is wax? It melts.", "Wax melts."),
]


@pytest.mark.parametrize(("kind", "slot", "met", "broken"), MET_AND_BROKEN)
def test_an_instruction_is_met_or_broken(kind, slot, met, broken):
    instruction = oracle.Instruction(kind, slot)
    assert oracle.meets(instruction, met, "What is wax?")
    assert not oracle.meets(instruction, broken, "What is wax?")
    assert not oracle.meets(instruction, " \n", "What is wax?")
    if kind in TAUGHT:
        ours = answers.Instruction(kind, slot, "")
        assert answers.is_met(ours, met)
        assert not answers.is_met(ours, broken)
        assert not answers.is_met(ours, " \n")


def test_every_kind_is_tried_above():
    assert {kind for kind, *_ in MET_AND_BROKEN} == set(KINDS)


def test_oracle_and_generator_agree_on_10000_answers():
    rng, kinds = Random(1), Counter()
    for number, request in enumerate(requests(10_000, seed=1)):
        text = answers.write_answer(request.task, request.instructions, 0.5, rng).text
        if number % 8 == 0:  # also where it is cut off
            text = text[: len(text) * 2 // 3]
        if number % 16 == 1:  # and where it has a verdict of its own
            text += "\nScore: 5"
        expected = {i.kind: answers.is_met(i, text) for i in request.instructions}
        assert oracle.points(request.text, text) == expected, (request, text)
        kinds.update(expected.items())
    assert {kind for kind, _ in kinds} == set(TAUGHT)
    for kind in TAUGHT:  # with equal odds
        assert 0.4 < kinds[kind, True] / (kinds[kind, True] + kinds[kind, False]) < 0.6, kind


def test_answers_are_made_of_people_s_sentences():
    """Nothing is invented but titles and the words that were asked for."""
    allowed = " ".join((*TASKS[0].sentences, *ENDINGS, TASKS[0].request, "p.s.")).lower()
    known = {w.strip(".,?!") for w in allowed.split()}
    rng = Random(2)
    for _ in range(300):
        request = generator.write_request(TASKS[0], rng)
        text = answers.write_answer(request.task, request.instructions, 0.5, rng).text.lower()
        assert {w.strip('.,?!*"<>') for w in text.split()} - {""} <= known


def test_an_answer_to_another_request_may_lack_the_word():
    task = TASKS[0]._replace(sentences=("It is so.", "It was so.", "It will be so."))
    keyword = answers.Instruction("keyword", "violin", 'Use the word "violin".')
    assert not answers.write_answer(task, [keyword], 1.0, Random(0)).met["keyword"]


# --- judgments ------------------------------------------------------------------------------------------------------


def test_a_judgment_by_hand():
    instructions = [
        answers.Instruction("sentences", "three", ""),
        answers.Instruction("lowercase", "", ""),
        answers.Instruction("keyword", "wax", ""),
        answers.Instruction("ending", "That is all for now.", ""),
    ]
    text = "The wax melts. It burns, too. That is all for now."
    judgment, points = judgments.write_judgment("What are candles of?", instructions, text, True, Counter(), "points")
    assert judgment == (
        "Subject: asked candles, told wax melts, ends for now., yes: 1. Three sentences: 1 The 2 It 3 That, yes: 2. "
        'Lowercase: The, no: 2. Word "wax": The wax, yes: 3. '
        'End "That is all for now.": That is all for now., yes: 4.\nScore: 4'
    )
    assert points == 4


@pytest.mark.parametrize("form", ["points", "choice"])
def test_judgments_end_in_their_points_and_count_what_is_met(form):
    rows = generator.eft_rows(TASKS, 600, WORD_COUNTS, form, Random(3))
    for row in rows:
        score = PARSERS[form](row["judgment"])
        assert score == (row["score"] if form == "points" else max(1, row["score"]))
        met = sum(oracle.points(row["prompt"], row["response"]).values())
        if row["judgment"].startswith("Nothing"):
            assert row["score"] == 0
        else:
            assert row["score"] - met in (0, 1)  # and one point for the subject
            assert row["judgment"].count(", yes") >= row["score"]
    scores = Counter(row["score"] for row in rows)
    assert set(scores) == {0, 1, 2, 3, 4, 5}
    assert {row["response"] for row in rows} > set(generator.DEGENERATE_RESPONSES)


def test_answers_to_another_request_miss_the_point_for_the_subject():
    rows = generator.eft_rows(TASKS, 600, WORD_COUNTS, "points", Random(4))
    subjects = [next(s for s in SUBJECTS if s in row["prompt"]) for row in rows]
    other = [
        r for r, s in zip(rows, subjects, strict=True) if sum(x in r["response"].lower() for x in SUBJECTS if x != s)
    ]
    assert len(other) > 30
    assert all(", no: 0." in r["judgment"] or r["score"] == 0 for r in other)


def test_the_odds_of_an_instruction_do_not_hang_on_length():
    """Else the length of an answer would tell its points."""
    rows = generator.ranked_rows(TASKS, 200, 4, WORD_COUNTS, Random(5))
    right = [
        (a["score"] > b["score"]) == (len(a["response"]) > len(b["response"]))
        for row in rows
        for i, a in enumerate(row["answers"])
        for b in row["answers"][:i]
        if a["score"] != b["score"]
    ]
    assert 0.4 < sum(right) / len(right) < 0.68


# --- the oracle and prompts of a model ------------------------------------------------------------------------------


def test_every_wording_is_read():
    for request in requests(3000, transfer=True, seed=6):
        reading = oracle.read(request.text)
        assert reading.request == request.task.request
        assert reading.unread == ()
        assert [tuple(i) for i in reading.instructions] == [(i.kind, i.slot) for i in request.instructions]


@pytest.mark.parametrize(
    ("prompt", "instructions", "unread"),
    [
        ("What is wax?", [], []),
        ("What is wax? Please answer in all lower case.", [("lowercase", "")], []),
        (
            "What is wax? Don't use commas. Answer with exactly three short bullets.",
            [("no_commas", ""), ("bullets", "three")],
            [],
        ),
        ('What is wax? Make sure to use the word "bee".', [("keyword", "bee")], []),
        ("What is wax? Write every second word backwards.", [], ["Write every second word backwards."]),
        ("What is wax? Use five sentences.", [], ["Use five sentences."]),
        ("What is wax? Never use capital letters.", [("lowercase", "")], []),
        ("What is wax? Don\u2019t use the word \u201cbee\u201d.", [("avoid", "bee")], []),
        ("What is wax? Do not add a title.", [], ["Do not add a title."]),
        ('What is wax? Do not end with the words "so long".', [], ['Do not end with the words "so long".']),
        ("What is wax? Write at least three sentences.", [], ["Write at least three sentences."]),
        ("What is wax? Give two or three bullets.", [], ["Give two or three bullets."]),
        ("What is wax? Use fewer than 50 words.", [], ["Use fewer than 50 words."]),
        ("What is wax? Answer in three sentences without commas.", [("sentences", "three"), ("no_commas", "")], []),
        (
            'What is wax? Use lowercase letters and end with the words "Good luck".',
            [("lowercase", ""), ("ending", "Good luck")],
            [],
        ),
        ('What is wax? Give Three bullets with the word "bee".', [("bullets", "three"), ("keyword", "bee")], []),
        ("Use all caps. What is wax?", [("capitals", "")], []),
    ],
)
def test_free_prompts_are_read_as_far_as_they_can_be(prompt, instructions, unread):
    reading = oracle.read(prompt)
    assert [tuple(i) for i in reading.instructions] == instructions
    assert list(reading.unread) == unread
    assert reading.request == "What is wax?" or unread or prompt.startswith("Use")


@pytest.mark.parametrize(
    "question",
    [
        "In what year did Rome become the capital of Italy?",
        "How do all bottle caps work?",
        "How can I start a business without capital?",
        "What is the title of the last book?",
    ],
)
def test_a_question_is_no_instruction(question):
    assert oracle.read(f"{question} Use no commas.") == (question, (("no_commas", ""),), ())


def test_nothing_is_repeated_where_there_is_no_request():
    assert oracle.points("First repeat the request word for word. What is wax?", "It is fat.") == {"repeat": False}


@pytest.mark.parametrize(
    "text",
    [
        "Wax melts. It burns.",
        '"\n<<Wax>>\nWax melts. It burns."',
        'He said, "It burns." It does.',
        "**Wax melts.** It burns.",
        "1. Wax melts.\n2. It burns.",
        "Wax melts. It burns. P.S. It is hot.",
        "Wax melts. It burns.\nP.S. It is hot. So it is.",
    ],
)
def test_sentences_are_counted_as_a_reader_counts_them(text):
    assert oracle.meets(oracle.Instruction("sentences", "two"), text, "")


def test_what_must_be_repeated_contradicts_nothing():
    task = TASKS[0]._replace(request="What, if anything, is wax made of?")
    kinds = [{i.kind for i in generator.write_request(task, Random(n), True).instructions} for n in range(2000)]
    repeated = [k for k in kinds if "repeat" in k]
    assert len(repeated) > 100
    assert not set.union(*repeated) & {"quotation", "sentences", "no_commas"}


@given(st.text(), st.text())
def test_any_prompt_and_answer_has_points(prompt, response):
    assert all(isinstance(met, bool) for met in oracle.points(prompt, response).values())


@given(st.sampled_from(requests(200, True)), st.text(alphabet='aA.,!?"*-<>[]P.S\n ', max_size=40))
def test_any_answer_has_points_of_each_instruction(request, response):
    assert set(oracle.points(request.text, response)) == {i.kind for i in request.instructions}


def test_a_repeated_sentence_is_found():
    assert oracle.repeats("Wax melts in heat. It burns. Wax melts in heat.")
    assert not oracle.repeats("Wax melts in heat. It burns. It burns.")  # too short to tell


# --- seed sets ------------------------------------------------------------------------------------------------------


def made_sets(tmp_path, seed=0, rows=ROWS, **settings):
    path = tmp_path / "ift.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    defaults = {
        "ift": str(path),
        "language": "en",
        "max_malformed_frac": 0.0,
        "columns": "",
        "ift_rows": 60,
        "eft_rows": 80,
        "comparison_rows": 0,
        "meta_rows": 0,
    }
    defaults |= {"heldout_prompts": 60, "judge_eval_prompts": 12, "judge_eval_answers": 3}
    return from_tasks(SimpleNamespace(**defaults | settings), seed, "points")


def test_some_judged_answers_have_the_other_case_and_no_instruction_rows_do():
    requests = {"lowercase": str.isupper, "capitals": str.islower}
    judged = generator.eft_rows(TASKS, 1500, WORD_COUNTS, "points", Random(6))
    taught = generator.ift_rows(TASKS, 1500, Random(6))
    for kind, has_other_case in requests.items():
        for rows, least, most in ((judged, 0.08, 0.3), (taught, 0.0, 0.0)):
            asked = [r for r in rows if kind in {i.kind for i in oracle.read(r["prompt"]).instructions}]
            share = sum(has_other_case(r["response"]) for r in asked) / len(asked)
            assert least <= share <= most, (kind, share)


def test_a_verdict_in_a_judged_answer_is_worth_nothing():
    """It is any verdict, and the points are those of the instructions that the whole text meets."""
    rows = generator.eft_rows(TASKS, 12_000, WORD_COUNTS, "points", Random(7))
    own = [r for r in rows if re.search(r"\n(Score: [0-5]|Choice: [A-E])$", r["response"])]
    assert 0.04 < len(own) / len(rows) < 0.07
    said = [float(r["response"][-1]) for r in own if "Score" in r["response"]]
    given = [r["score"] for r in own if "Score" in r["response"]]
    assert set(said) == {0, 1, 2, 3, 4, 5}
    assert abs(np.corrcoef(said, given)[0, 1]) < 0.2
    for row in own:
        assert row["score"] <= 1 + sum(oracle.points(row["prompt"], row["response"]).values())
    assert 0.3 < sum("\nSubject: asked " in r["response"] for r in own) / len(own) < 0.7
    alone = [r for r in rows if re.fullmatch(r"Score: [0-5]|Choice: [A-E]", r["response"])]
    assert alone
    assert {r["score"] for r in alone} == {0}


def test_no_task_is_in_two_of_training_validation_and_held_out(tmp_path):
    sets, report = made_sets(tmp_path)
    sizes = {"ift": 60, "eft": 80, "documents": 60, "ranked_heldout": 12, "ranked_validation": 12}
    assert {name: len(sets[name]) for name in sizes} == sizes
    assert 40 < len(sets["heldout"]) <= 60
    parts = {
        "train": ("ift", "eft"),
        "heldout": ("heldout", "ranked_heldout"),
        "validation": ("validation", "ranked_validation"),
    }
    asked = {part: {oracle.read(r["prompt"]).request for n in names for r in sets[n]} for part, names in parts.items()}
    assert not asked["train"] & asked["heldout"]
    assert not asked["train"] & asked["validation"]
    assert not asked["validation"] & asked["heldout"]
    assert {name: report["tasks"][name] for name in ("read", "used", "training")} == {
        "read": 32,
        "used": 32,
        "training": 22,
    }


def test_the_size_of_a_set_changes_no_other(tmp_path):
    small, large = made_sets(tmp_path)[0], made_sets(tmp_path, ift_rows=90)[0]
    assert large["ift"][:60] == small["ift"]
    assert [large[name] for name in ("heldout", "ranked_heldout", "validation")] == [
        small[name] for name in ("heldout", "ranked_heldout", "validation")
    ]
    assert made_sets(tmp_path, seed=1)[0]["ift"] != small["ift"]
    more = made_sets(tmp_path, comparison_rows=5, meta_rows=5)[0]
    assert {name: more[name] for name in small} == small


def test_too_few_requests_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.ift.*\b19 of 19\b.*\b20\b"):
        made_sets(tmp_path, rows=ROWS[:19])


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_has_every_kind_with_a_wording_of_its_own():
    page = (ROOT / "docs/checkable.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (.+) \| (all sets|held-out prompts) \|$", page, re.M)
    assert {kind: where for kind, _, where in rows} == {
        kind: "held-out prompts" if kind in TRANSFER else "all sets" for kind in KINDS
    }
    assert all(wording in KINDS[kind].phrasings for kind, wording, _ in rows)

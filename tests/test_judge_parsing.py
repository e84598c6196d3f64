"""Parsing of verdicts: replies of real judges, arbitrary texts, and long texts in little time."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.method.judge_parsing import PARSERS, parse_choice, parse_preference, parse_score, score_start
from selfreward_jax.method.templates import fill, load

ALL = {**PARSERS, "pairwise": parse_preference}
# Hand-written replies. Each reading is that of a careful person, with no vote where that person would doubt.
CORPUS = [json.loads(line) for line in (Path(__file__).parent / "judge_replies.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", CORPUS, ids=lambda row: f"{row['form']}: {row['why']}")
def test_the_reading_of_a_careful_person(row):
    assert ALL[row["form"]](row["reply"]) == row["reading"]


@pytest.mark.parametrize("row", [row for row in CORPUS if row["form"] in PARSERS], ids=lambda row: row["why"])
def test_score_start_is_the_position_of_the_score(row):
    start = score_start(row["reply"], row["form"])
    assert (start is None) == (row["reading"] is None)
    if start is not None:
        score = {"points": "2", "choice": "B"}[row["form"]]
        assert PARSERS[row["form"]](row["reply"][:start] + score) == 2


def test_the_corpus_is_large_enough_and_has_both_kinds():
    kinds = Counter((row["form"], row["reading"] is None) for row in CORPUS)
    assert len(CORPUS) >= 80
    assert all(kinds[form, without_vote] >= 10 for form in ALL for without_vote in (True, False))
    assert len({(row["form"], row["reply"]) for row in CORPUS}) == len(CORPUS)


PIECES = st.lists(
    st.sampled_from(
        [
            *"Score choice BETTER : = + - / . , ( ) [ ] < > { } $ \" ' ` * _ | % 0 1 4 5 9 A b E".split(),
            *"tie neither or to and of out \\boxed".split(),
            *"\uff1a \u2013 \u201c \u201d \u300c \uff14 \u0664 \u066b \u00bd \u00b3".split(),
            *[" ", "\n", "\r\n", "\t", "\u200b", "\u00a0", "a ", '"score": '],
        ]
    ),
    max_size=30,
)
ANY = st.text() | PIECES.map("".join) | PIECES.map(" ".join)


@given(ANY)
def test_any_text_gives_no_vote_or_one_in_range(text):
    score, choice, side = parse_score(text), parse_choice(text), parse_preference(text)
    assert score is None or 0 <= score <= 5
    assert choice is None or choice in (1.0, 2.0, 3.0, 4.0, 5.0)
    assert side in (None, "a", "b", "tie")


@given(ANY, st.sampled_from("ABCDE"), st.sampled_from(["A", "B", "tie"]), st.sampled_from([0, 1, 2.5, 3.75, 5]))
def test_text_before_the_last_line_changes_nothing(text, letter, side, number):
    assert parse_score(f"{text}\nScore: {number}") == number
    assert parse_choice(f"{text}\nChoice: {letter}") == "ABCDE".index(letter) + 1
    assert parse_preference(f"{text}\nBetter: {side}") == side.lower()


@pytest.mark.parametrize("number", ["3.5", "**3.5**", "3.5/5", "3,5", "[3.5]", "$3.5$", '"3.5"', "3.5 points", "(3.5)"])
@pytest.mark.parametrize(
    "marker", ["Score:", "**Score:**", "**Score**:", "score :", "SCORE\uff1a", "Final score:", '"score":']
)
def test_every_style_of_the_marker_works_with_every_style_of_the_number(marker, number):
    assert parse_score(f"Reasons.\n{marker} {number}") == 3.5
    assert parse_score(f"Reasons.\n{marker}{number}.\n\nThat is all.") == 3.5


UNITS = ["score", "Score: ", "Score: 4 ", "score (", "_", "*", " ", "9", "1 + ", "x", "a \u201c", 'a "', "a '", "a `"]
UNITS += ["\n", "\u200b", "<b>", "\\boxed", "Score:\n", "score**", "(", "Better: a ", "Choice: A, ", "a-"]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    ("parse", "front"),
    [(parse_score, ""), (parse_score, "Score: 4"), (parse_choice, "Choice: A"), (parse_preference, "Better: A")],
)
def test_a_long_text_takes_little_time(parse, front, unit):
    text = front + unit * (1_000_000 // len(unit))
    start = time.process_time()
    parse(text)
    assert time.process_time() - start < 5  # about a tenth of a second where it is linear, minutes where it is not


def test_templates_request_the_format_that_is_parsed():
    choice = load("judge_choice", {"prompt", "response"})
    pairwise = load("judge_pairwise", {"prompt", "first", "second"})
    assert choice.splitlines()[-1] == "Choice: <letter>"
    assert pairwise.splitlines()[-3:] == ["Better: A", "Better: B", "Better: tie"]
    assert [parse_preference(line) for line in pairwise.splitlines()[-3:]] == ["a", "b", "tie"]
    filled = fill(pairwise, prompt="<p {second}>", first="<1>", second="<2>")
    assert filled.index("<p {second}>") < filled.index("<1>") < filled.index("<2>")
    assert parse_choice(choice) is None  # a judge that only repeats the prompt gives no vote


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 4", 4.0),
        ("score:4.5", 4.5),
        ("SCORE : 2", 2.0),
        ("**Score:** 3", 3.0),
        ("**Score: 3**", 3.0),
        ("Score: 4/5", 4.0),
        ("Score: 4 / 5", 4.0),
        ("Score: 4.", 4.0),
        ("Score: 4 points", 4.0),
        ("Score: <4>", 4.0),
        ("Score: 0", 0.0),
        ("Score: 5.0", 5.0),
        ("Score: 004", 4.0),
        ("The reasons.\nScore: 3\n", 3.0),
        ("Score: 1, no. Score: 2, no.\nScore: 3", 3.0),  # the last counts
        ("Score: \u0664", 4.0),  # Arabic-Indic four
        ("Score: \uff14", 4.0),  # full-width four
        ("Score: 4/10", None),
        ("Score: 4%", None),
        ("Score: 4th", None),
        ("Score: 6", None),
        ("Score: 5.1", None),
        ("Score: -1", None),
        ("Score: 45", None),
        ("Score: 4e5", None),
        ("Score: " + "9" * 5000, None),
        ("Score: 4\nScore: 6", None),  # a bad last one does not fall back to an earlier one
        ("Score: 4\nScore: 4/10", None),
        ("Score: \u00b3", None),  # a superscript is no number
        ("Score: four", None),
        ("Score:", None),
        ("Score 4", None),
        ("underscore: 3", None),
        ("under_score: 3", None),
        ("4", None),
        ("", None),
        ("Score: .5", None),
        ("Score: \u22121", None),
        ("Score: 4 out of 10", None),
        ("Score: 4\nScore: five", None),
    ],
)
def test_formats_of_a_score(text, score):
    assert parse_score(text) == score

"""The forms of records that docs/data.md promises, and files as people have them."""

import json
import re
import time
from pathlib import Path

import pytest
from conftest import ROOT

from selfreward_jax.config import ConfigError, get_config
from selfreward_jax.config.columns import COLUMN_FIELDS, parse_columns
from selfreward_jax.config.validate import validate
from selfreward_jax.data.answers import Answer, Dropped
from selfreward_jax.data.fields import FIELD_NAMES
from selfreward_jax.data.languages import is_other_language
from selfreward_jax.data.merge import keep_best, normalize_scores, read_prompts_with_responses
from selfreward_jax.data.parsers import parse_record
from selfreward_jax.data.readers import DataError
from selfreward_jax.data.seed_sets import format_report, from_files
from selfreward_jax.integrations.formats import read_prompts
from selfreward_jax.storage.artifacts import encode_rows

CASES = ROOT.parent / "shared" / "cases"
PAGE = (ROOT / "docs" / "data.md").read_text()
FORMS = re.findall(r"^\| (.+?) \| `(\{.+\})` \| (?:`(.*)`)? ?\| (.+?) \|$", PAGE, re.M)


def in_words(items):
    """Answers as the table of docs/data.md writes them."""
    if isinstance(items[0], Dropped):
        return ", ".join(f"dropped: {item.reason}" for item in items)
    if items[0].label is not None:
        return ", ".join(f"{a.response} is {'good' if a.label else 'not good'}" for a in items)
    if items[0].ranked:
        return " > ".join(a.response for a in sorted(items, key=lambda a: -a.score))
    return ", ".join(a.response if a.score is None else f"{a.response} = {a.score:g}" for a in items)


# --- the page ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "row", "prompt", "answers"), FORMS, ids=[form for form, *_ in FORMS])
def test_each_form_of_the_page_is_read_as_it_says(form, row, prompt, answers):
    read, items, _ = parse_record(json.loads(row), "en")
    assert in_words(items) == answers
    assert read == (json.loads(prompt) if prompt else "")


def test_the_page_has_all_forms_and_all_names():
    assert len(FORMS) >= 28
    names = dict(re.findall(r"^\| (\w+) \| (`.+`) \|$", PAGE, re.M))
    assert {field: tuple(re.findall("`(.+?)`", names.get(field, ""))) for field in FIELD_NAMES} == FIELD_NAMES


# --- files as people have them ------------------------------------------------------------------------------------

PERU, LIMA, BLUE = "What is the capital of Peru?", "The capital of Peru is Lima.", "Blue."
ONE = {PERU: LIMA}
PAIR = {PERU: f"{LIMA} > {BLUE}"}
SCORED = {PERU: f"{LIMA} = 4, {BLUE} = 1"}
COUNTRIES = {f"What is the capital of country number {i}?": f"City {i}." for i in range(40)}
RIVERS = {f"Name river {i}.": "Nile > Blue" for i in range(40)}
READ = {
    "alpaca_history.jsonl": {},
    "alpaca_ranking.jsonl": {"Name the capital.\n\nPeru": f"{LIMA} > {BLUE}"},
    "alpaca_two_outputs.jsonl": PAIR,
    "answers_empty_union.jsonl": ONE,
    "argilla_equal_rating.jsonl": {},
    "array_in_jsonl.jsonl": {**ONE, "Name a river.": "Nile"},
    "array_one_line_in_jsonl.jsonl": {**ONE, "Name a river.": "Nile"},
    "capybara.jsonl": ONE,
    "chosen_blank_union.jsonl": ONE,
    "chosen_empty_union.jsonl": ONE,
    "chosen_messages_v1.jsonl": PAIR,
    "code_lang.jsonl": COUNTRIES,
    "content_parts.jsonl": ONE,
    "context_field.jsonl": {"When did it begin?\n\nSouthern Wings began in 1998.": "1998"},
    "developer_half.jsonl": {
        f"{'Be brief.' + chr(10) * 2 if i % 2 else ''}{p}": r for i, (p, r) in enumerate(COUNTRIES.items())
    },
    "developer_many.jsonl": {f"Be brief.\n\n{p}": r for p, r in COUNTRIES.items()},
    "developer_role.jsonl": {f"Be brief.\n\n{PERU}": LIMA},
    "dolly.jsonl": {
        "When did the airline begin?\n\nSouthern Wings, a small airline, began flying in 1998.": "In 1998."
    },
    "empty_lists_union.jsonl": ONE,
    "equal_rating_many.jsonl": {},
    "from_value_union.jsonl": ONE,
    "from_value_union_many.jsonl": COUNTRIES,
    "gemini.jsonl": ONE,
    "helpsteer2.jsonl": {PERU: f"{LIMA} = 4, {BLUE} = 0"},
    "helpsteer2_many.jsonl": dict.fromkeys(RIVERS, "Nile = 4, Blue = 0"),
    "hh_many.jsonl": RIVERS,
    "hh_rlhf.jsonl": PAIR,
    "input_only.jsonl": ONE,
    "instances_empty_union.jsonl": ONE,
    "kto_flat_label.jsonl": {PERU: f"{LIMA} is good", "Name a river.": "Go away. is not good"},
    "kto_messages_label.jsonl": {PERU: f"{LIMA} is good", "Name a river.": "Go away. is not good"},
    "lang_python.jsonl": {**ONE, "Name a river": "Nile"},
    "language_english.jsonl": {"Name a river": "Nile"},
    "lines.JSON": ONE,
    "lmsys_conversation.jsonl": ONE,
    "lmsys_many.jsonl": COUNTRIES,
    "nectar.jsonl": PAIR,
    "nectar_many.jsonl": RIVERS,
    "nectar_multi.jsonl": {},
    "null_instances.jsonl": ONE,
    "null_messages_col.jsonl": COUNTRIES,
    "null_pref.jsonl": COUNTRIES,
    "null_union.jsonl": {**ONE, "Name a river.": "The Nile.", "Name a lake.": "Titicaca. > Blue."},
    "null_union_messages_only.jsonl": {"Name a river.": "The Nile."},
    "openai_dpo.jsonl": PAIR,
    "openorca.jsonl": {f"Answer in Spanish only.\n\n{PERU}": "Lima."},
    "orca_dpo.jsonl": {f"You are a helpful helper.\n\n{PERU}": f"{LIMA} > {BLUE}"},
    "orca_many.jsonl": RIVERS,
    "pretty_objects.json": {**ONE, "Name a river.": "Nile"},
    "prompt_empty_instruction.jsonl": ONE,
    "response_empty_output.jsonl": ONE,
    "roles_other.jsonl": ONE,
    "score_str.jsonl": dict.fromkeys(RIVERS, "The Nile. = 5, Blue. = 1"),
    "score_text.jsonl": SCORED,
    "sharegpt_ranking.jsonl": PAIR,
    "sharegpt_system_field.jsonl": {f"Answer in Spanish only.\n\n{PERU}": "Lima."},
    "shp.jsonl": PAIR,
    "tool_calls_null.jsonl": ONE,
    "trailing_comma.jsonl": {"a?": "b", "c?": "d"},
    "trl_kto.jsonl": {PERU: f"{LIMA} is good, {BLUE} is not good"},
    "trl_prompt_completion.jsonl": ONE,
    "trl_prompt_completion_messages.jsonl": ONE,
    "ultrafeedback_raw.jsonl": {PERU: f"{LIMA} = 4.75, {BLUE} = 1.25"},
    "v1_parts.jsonl": ONE,
    "wildchat_ish.jsonl": ONE,
    "wrapped_data.json": ONE,
}
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")


@needs_cases
@pytest.mark.parametrize("name", READ)
def test_a_file_of_the_cases_is_read(name):
    source = read_prompts_with_responses(str(CASES / name), "en", 0.0)
    assert {p.prompt: in_words(p.answers) for p in source.prompts} == READ[name]
    assert source.counts["malformed"] == 0


@needs_cases
def test_what_is_dropped_of_the_cases_is_counted_under_its_cause():
    for name, reason in {
        "alpaca_history.jsonl": "later turn",
        "nectar_multi.jsonl": "later turn",
        "argilla_equal_rating.jsonl": "pair of equal scores",
        "equal_rating_many.jsonl": "pair of equal scores",
    }.items():
        counts = read_prompts_with_responses(str(CASES / name), "en", 0.0).counts
        assert counts[reason] == counts["read"] > 0, name


@needs_cases
def test_parquet_of_the_cases_is_read():
    pytest.importorskip("pyarrow")
    source = read_prompts_with_responses(str(CASES / "null_union.parquet"), "en", 0.0)
    assert len(source.prompts) == 3


@needs_cases
@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("lines.jsonl.bz2", ["bzip2", "unpack"]),
        ("lines.jsonl.xz", ["xz", "unpack"]),
        ("prompt_lone_surrogate.jsonl", ["line 1", "surrogate"]),
        ("nan.jsonl", ["line 1", "score", "nan"]),
    ],
)
def test_a_file_of_the_cases_that_is_not_read_is_named(name, facts):
    with pytest.raises(DataError) as error:
        read_prompts_with_responses(str(CASES / name), "en", 0.0)
    for fact in [name, *facts]:
        assert fact in str(error.value)


@needs_cases
def test_prompt_files_with_a_byte_order_mark_are_read():
    for name, format_name in (
        ("prompts_bom.jsonl", "rows"),
        ("prompts_bom.json", "rows"),
        ("prompts_bom.json", "alpaca_eval"),
    ):
        assert [p.turns for p in read_prompts(str(CASES / name), format_name)] == [("Hi",)]


# --- each kind of fault ---------------------------------------------------------------------------------------------


def user(text):
    return {"role": "user", "content": text}


def bot(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def parsed(record):
    """A record's prompt and its answers in words."""
    prompt, items, _ = parse_record(record, "en")
    return prompt, in_words(items)


@pytest.mark.parametrize("nothing", [None, "", " \n", [], {}])
def test_null_and_empty_mean_absent(nothing):
    pair = dict.fromkeys(("chosen", "rejected", "answers", "instances", "messages", "label", "score", "rank"), nothing)
    assert parsed({**pair, "prompt": nothing, "question": "p", "response": nothing, "answer": "r"}) == ("p", "r")
    assert parsed({"messages": nothing, "conversations": [user("p"), bot("r")], "prompt": nothing}) == ("p", "r")
    messages = [{"role": None, "from": "human", "content": nothing, "value": "p"}, bot("r", tool_calls=nothing)]
    assert parsed({"messages": messages, "system": nothing, "history": nothing, "context": nothing}) == ("p", "r")


@pytest.mark.parametrize("role", ["system", "developer"])
def test_all_system_messages_stand_above_the_prompt(role):
    first = {"role": role, "content": "s"}
    assert parsed({"messages": [first, {"role": "system", "content": "t"}, user("p"), bot("r")]}) == (
        "s\n\nt\n\np",
        "r",
    )
    assert parsed({"messages": [first, user("p"), bot("r")], "system": "s"}) == ("s\n\np", "r")
    assert parsed({"prompt": [first, user("p")], "chosen": "r", "rejected": "q"}) == ("s\n\np", "r > q")


def test_the_system_text_of_every_form_is_known_by_itself():
    system, conversation = {"role": "system", "content": "s"}, [user("p"), bot("r")]
    for record in (
        {"messages": [system, *conversation]},
        {"messages": [system, *conversation], "system": "s"},
        {"conversations": conversation, "system": "s"},
        {"prompt": [system, user("p")], "completion": [bot("r")]},
        {"prompt": [system, user("p")], "chosen": [bot("r")], "rejected": [bot("q")]},
        {"chosen": [system, *conversation], "rejected": [system, user("p"), bot("q")]},
        {"system_prompt": "s", "question": "p", "response": "r"},
        {"system": "s", "prompt": "p", "answers": [{"response": "r", "score": 1}]},
        {"system": "s", "instruction": "p", "instances": [{"output": "r"}]},
        {"system": "s", "prompt": "s\n\np", "response": "r"},
    ):
        parsed_record = parse_record(record, "en")
        assert (parsed_record.prompt, parsed_record.system) == ("s\n\np", "s"), record
    system_alone = parse_record({"messages": [system, user(" "), bot("r")]}, "en")
    assert (system_alone.prompt, system_alone.system) == ("s", "")
    assert parse_record({"prompt": "p\n\nq", "response": "r"}, "en").system == ""


def test_a_system_field_stands_above_every_form():
    for record in (
        {"question": "p", "answer": "r"},
        {"prompt": [user("p")], "completion": "r"},
        {"prompt": "p", "answers": [{"text_of": 1, "response": "r"}]},
        {"messages": [user("p"), bot("r")]},
        {"instruction": "p", "instances": [{"output": "r"}]},
    ):
        assert parsed({**record, "system_prompt": "s"}) == ("s\n\np", "r")


def test_content_that_is_no_text_is_named():
    picture = [{"type": "text", "text": "p"}, {"type": "image_url", "image_url": {"url": "x"}}]
    _, (dropped,), _ = parse_record({"messages": [user(picture), bot("r")]}, "en")
    assert dropped.reason == "malformed"
    assert "not a string" in dropped.detail
    thought = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "r"}, {"type": "text", "text": "s"}]
    assert parsed({"messages": [user("p"), bot(thought)]}) == ("p", "r\ns")


def test_tool_turns_are_left_out():
    call = bot(None, tool_calls=[{"id": "1"}])
    for result in ({"role": "tool", "content": "t"}, {"from": "observation", "value": "t"}):
        assert parsed({"messages": [user("p"), call, result, bot("r")]}) == ("p", "r")
    assert parsed({"messages": [user("p"), call]}) == ("", "dropped: no answer")


def test_an_answer_of_weight_zero_is_dropped():
    assert parsed({"messages": [user("p"), bot("r", weight=0)]}) == ("p", "dropped: weight is 0")
    assert parsed({"messages": [user("p") | {"weight": 0}, bot("r", weight=1)]}) == ("p", "r")


def test_marks_of_speakers_come_off():
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    assert parsed({"prompt": text, "response": "d"}) == ("", "dropped: later turn")
    assert parsed({"chosen": text + "d", "rejected": text + "e"}) == ("", "dropped: later turn, dropped: later turn")
    assert parsed({"prompt": "Human: a\n\nAssistant:", "chosen": "b", "rejected": "c"}) == ("a", "b > c")
    assert parsed({"prompt": "Write Human: and\n\nAssistant: twice", "response": "r"})[0].startswith("Write Human:")


def test_marks_take_linear_time():
    text = "Human: a" + "\n" * 1_000_000 + "\n\nAssistant: b"
    start = time.perf_counter()
    assert parsed({"prompt": text, "response": "r"}) == ("", "dropped: later turn")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("fields", "order"),
    [
        ({"labels": 1}, "a > b"),
        ({"labels": 0}, "b > a"),
        ({"score_A": 1, "score_B": 7}, "b > a"),
        ({"score_A": 3, "score_B": 3, "labels": 1}, "dropped: pair of equal scores, dropped: pair of equal scores"),
        ({}, "dropped: pair of equal scores, dropped: pair of equal scores"),
    ],
)
def test_votes_order_two_answers(fields, order):
    row = {"post": "p", "human_ref_A": "a", "human_ref_B": "b", **fields}
    assert parsed(row)[1] == order


@pytest.mark.parametrize(("number", "score"), [("5", 5), (" 4.5 ", 4.5), ("-1e2", -100), (".5", 0.5)])
def test_numbers_in_quotes_are_numbers(number, score):
    assert parse_record({"prompt": "p", "response": "r", "score": number}, "en")[1] == [Answer("r", score)]
    assert parse_record({"prompt": "p", "response": "r", "rank": number}, "en")[1] == [Answer("r", -score, None, True)]


def test_a_rating_of_another_meaning_is_no_score():
    assert parsed({"prompt": "p", "response": "r", "rating": "PG"}) == ("p", "r")
    assert parsed({"prompt": "p", "response": "r", "rating": "PG", "overall_score": 3}) == ("p", "r = 3")


@pytest.mark.parametrize(
    ("given", "wanted", "other"),
    [
        ("English", "en", False),
        ("eng_Latn", "en", False),
        ("German", "en", True),
        ("deu", "de", False),
        ("zh-CN", "en", True),
        ("Python", "en", False),
        ("c++", "en", False),
        ("unknown", "en", False),
        ("en", "English", False),
        ("fr", "eng", True),
    ],
)
def test_languages_have_many_names(given, wanted, other):
    assert is_other_language(given, wanted) is other


def write(path, *rows):
    path.write_bytes(encode_rows(list(rows)))
    return str(path)


def test_a_false_label_is_no_good_answer(tmp_path):
    labelled = [{"prompt": f"p {i}", "completion": f"r {i}", "label": i % 2 == 0} for i in range(4)]
    source = read_prompts_with_responses(write(tmp_path / "x.jsonl", *labelled), "en", 0.0)
    counts = source.counts.copy()
    assert [a.response for p in keep_best(source.prompts, counts).values() for a in p.answers] == ["r 0", "r 2"]
    assert counts["label is false"] == 2
    judged, scores = normalize_scores(source.prompts, counts, "x")
    assert [a.score for p in judged.values() for a in p.answers] == [5, 0, 5, 0]
    assert scores == {}


def test_a_rejected_answer_alone_is_no_good_answer(tmp_path):
    pair = {"prompt": "p", "chosen": "\ud800", "rejected": "bad", "score_chosen": 5, "score_rejected": 1}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(pair))
    source = read_prompts_with_responses(str(path), "en", 1.0)
    assert source.prompts[0].answers == [Answer("bad", 1.0, label=False)]
    assert keep_best(source.prompts, source.counts) == {}


def seeds(tmp_path, ift, eft, columns=""):
    cfg = get_config()
    cfg.data.ift, cfg.data.eft = write(tmp_path / "ift.jsonl", *ift), write(tmp_path / "eft.jsonl", *eft)
    cfg.data.columns = columns
    return from_files(cfg.data, 0)


IFT = [{"prompt": f"Say {i} twice.", "response": f"{i} {i}"} for i in range(9)]
EFT = [{"prompt": f"Say {i} again.", "chosen": f"{i}", "rejected": "no"} for i in range(20)]


def test_a_field_that_is_not_used_is_named_once_for_a_file(tmp_path):
    ift = [{**row, "images": ["x.png"], "label": 3, "context": ["c"], "weight": 0.5} for row in IFT]
    _, report = seeds(tmp_path, ift, [{**row, "input": "i"} for row in EFT])
    lines = [line for line in format_report(report) if "not used" in line]
    assert [line.split()[:2] for line in lines] == [
        ["ift:", "context"],
        ["ift:", "label"],
        ["ift:", "weight"],
        ["ift:", "images"],
        ["eft:", "input"],
    ]
    assert all("jsonl line 1" in line for line in lines)
    assert not any("not used" in line for line in format_report(seeds(tmp_path, IFT, EFT)[1]))


def test_columns_of_other_names(tmp_path):
    names = {"prompt": "task", "chosen": "good", "rejected": "bad", "response": "good"}
    ift = [{names.get(name, name): value for name, value in row.items()} for row in IFT]
    eft = [{names[name]: value for name, value in row.items()} for row in EFT]
    with pytest.raises(DataError, match="task"):
        seeds(tmp_path, IFT, eft)
    sets, _ = seeds(tmp_path, IFT, eft, "prompt=task,chosen=good,rejected=bad")
    assert sets == seeds(tmp_path, IFT, EFT)[0]
    sets, report = seeds(tmp_path, ift, EFT, "prompt=task, response=good")
    assert sets == seeds(tmp_path, IFT, EFT)[0]
    assert any("eft: no row has the column 'task'" in line for line in format_report(report))
    answers = [{"prompt": row["prompt"], "answers": [{"say": "a", "mark": 5}, {"say": "b", "mark": 1}]} for row in EFT]
    assert seeds(tmp_path, IFT, answers, "response=say,score=mark")[1]["eft"]["kept"] > 0


def test_columns_are_checked():
    assert set(COLUMN_FIELDS) <= FIELD_NAMES.keys()
    assert parse_columns("") == {}
    for text, fact in [
        ("ask=q", "'ask'"),
        ("prompt", "FIELD=COLUMN"),
        ("prompt=", "FIELD=COLUMN"),
        ("prompt=a,prompt=b", "'prompt=b'"),
        ("prompt=a,response=a", "'response=a'"),
    ]:
        with pytest.raises(ConfigError, match=rf"^data\.columns is .*{fact}"):
            parse_columns(text)
    with pytest.raises(ConfigError, match=", ".join(COLUMN_FIELDS[:3])):
        parse_columns("ask=q")
    cfg = get_config()
    cfg.data.columns = "prompt=task"
    with pytest.raises(ConfigError, match=r"data\.columns"):
        validate(cfg, 1)


def test_prompts_to_answer_have_the_names_of_seed_data(tmp_path):
    rows = [{"prompt": "a"}, {"question": "b", "context": "c"}, {"instruction": "d", "input": "e", "system": "f"}]
    path = write(tmp_path / "prompts.jsonl", *rows, {"messages": [user("g")], "system": "h"})
    turns = [p.turns for p in read_prompts(path)]
    assert turns == [("a",), ("b\n\nc",), ("f\n\nd\n\ne",), ([user("g")],)]


def test_a_table_is_read_as_seed_data(tmp_path):
    path = Path(tmp_path / "x.csv")
    path.write_text("question,answer,label\np,r,True\nq,s,false\n")
    source = read_prompts_with_responses(str(path), "en", 0.0)
    assert {p.prompt: in_words(p.answers) for p in source.prompts} == {"p": "r is good", "q": "s is not good"}

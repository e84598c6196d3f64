"""Prompts and answers from records of every format."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.data import parsers
from selfreward_jax.data.merge import read_prompts_with_responses
from selfreward_jax.data.parsers import Answer, Dropped, parse_record
from selfreward_jax.data.readers import DataError


def parsed(record, language="en"):
    """A record's prompt and answers, and a count of what was dropped."""
    prompt, items, _ = parse_record(record, language)
    dropped = Counter(item.reason for item in items if isinstance(item, Dropped))
    return prompt, [item for item in items if isinstance(item, Answer)], dict(dropped)


def plain(*texts):
    return [Answer(text) for text in texts]


@pytest.fixture
def load(tmp_path):
    def run(*records, language="en", max_malformed_frac=0.0):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        merged, counts, *_ = read_prompts_with_responses(str(path), language, max_malformed_frac)
        assert counts["read"] == sum(len(a.answers) for a in merged) + sum(
            counts[name] for name in parsers.DROP_REASONS
        )
        assert set(counts) == {"records", "read", *parsers.DROP_REASONS}
        dropped = {name: counts[name] for name in parsers.DROP_REASONS if counts[name]}
        return {a.prompt: a.answers for a in merged}, dropped

    return run


# --- flat rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "prompt", "answers"),
    [
        ({"prompt": "p", "response": "r"}, "p", plain("r")),
        ({"prompt": "p", "response": "r", "score": 3}, "p", [Answer("r", 3.0)]),
        ({"prompt_text": "p", "response_text": "r", "quality_score": 0.5}, "p", [Answer("r", 0.5)]),
        ({"prompt": None, "instruction": "p", "output": "r"}, "p", plain("r")),
        ({"prompt": "p", "response": "r", "rank": 2}, "p", [Answer("r", -2.0, None, True)]),
        ({"prompt": "p", "response": "r", "rank": 2, "score": 3}, "p", [Answer("r", 3.0)]),
        ({"prompt": "p", "response": "r", "judgment": "j"}, "p", [Answer("r", None, "j")]),
        ({"prompt": "p", "response": "r", "judgment": "j", "score": 1}, "p", [Answer("r", 1.0, "j")]),
        ({"question": "p", "answer": "r"}, "p", plain("r")),
        ({"instruction": "p", "input": "", "output": "r"}, "p", plain("r")),
        ({"instruction": "p", "input": None, "output": "r"}, "p", plain("r")),
        ({"instruction": "p", "input": "i", "output": "r"}, "p\n\ni", plain("r")),
        ({"prompt": "p", "response": "r", "messages": []}, "p", plain("r")),
        (
            {"prompt": "p", "answers": [{"response": "a", "score": 1}, {"output": "b", "rank": 1}, {"answer": "c"}]},
            "p",
            [Answer("a", 1.0), Answer("b", -1.0, None, True), Answer("c")],
        ),
        ({"prompt": "p", "score": 9, "answers": [{"response": "a", "rank": 0}]}, "p", [Answer("a", 0.0, None, True)]),
        ({"prompt": "p", "answers": {"response": ["a", "b"], "score": [1, 2]}}, "p", [Answer("a", 1), Answer("b", 2)]),
    ],
)
def test_flat_rows(record, prompt, answers):
    assert parsed(record) == (prompt, answers, {})


def test_self_instruct():
    record = {"instruction": "p", "instances": [{"input": "i", "output": "r"}, {"input": "", "output": "s"}]}
    assert parsed(record) == ("p\n\ni", plain("r"), {"later instance": 1})
    record["instances"][0]["input"] = ""
    assert parsed(record)[0] == "p"
    assert parsed({"instruction": "p", "instances": []})[2] == {"no answer": 1}
    assert parsed({"instruction": "p", "instances": "r"})[2] == {"malformed": 1}


def test_one_faulty_answer_keeps_the_others():
    record = {"prompt": "p", "answers": [{"response": "a"}, {"response": " "}, {"response": 3}, {"response": "\ud800"}]}
    dropped = {"empty text": 1, "malformed": 1, "lone surrogate": 1}
    assert parsed(record) == ("p", plain("a"), dropped)
    assert parsed({"prompt": "p", "answers": []})[2] == {"no answer": 1}


# --- pairs -----------------------------------------------------------------------------------------------------

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
IMPLICIT = [Answer("good", 1.0, None, True), Answer("bad", 0.0, None, True)]


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "record",
    [
        PAIR,
        {"prompt": "p", "chosen": [user("p"), bot("good")], "rejected": [user("p"), bot("bad")]},
        {"chosen": [user("p"), bot("good")], "rejected": [user("p"), bot("bad")], "messages": [user("p"), bot("good")]},
        {"prompt": [user("p")], "chosen": [bot("good")], "rejected": [bot("bad")]},
        {"prompt": "p", "chosen": [bot("good")], "rejected": [bot("bad")]},
    ],
)
def test_pairs(record):
    assert parsed(record) == ("p", IMPLICIT, {})


def test_a_pairs_scores_are_kept():
    scored = [Answer("good", 9.0), Answer("bad", 8.5)]
    assert parsed({**PAIR, "score_chosen": 9, "score_rejected": 8.5})[1] == scored
    assert parsed({**PAIR, "chosen_score": 9, "rejected_score": 8.5})[1] == scored
    assert parsed({**PAIR, "metadata": {"score_chosen": 9, "score_rejected": 8.5}})[1] == scored
    assert parsed({**PAIR, "score_chosen": 9, "metadata": "not an object"})[1] == IMPLICIT


def test_a_system_message_precedes_the_prompt():
    system = {"role": "system", "content": "be kind"}
    record = {"chosen": [system, user("p"), bot("good")], "rejected": [system, user("p"), bot("bad")]}
    assert parsed(record)[0] == "be kind\n\np"


@pytest.mark.parametrize(
    ("record", "dropped"),
    [
        ({**PAIR, "rejected": "good"}, {"pair of equal texts": 2}),
        ({"chosen": [user("p"), bot("a")], "rejected": [user("p"), bot("a")]}, {"pair of equal texts": 2}),
        ({**PAIR, "score_chosen": 3, "score_rejected": 3.0}, {"pair of equal scores": 2}),
        ({**PAIR, "chosen": 3}, {"malformed": 2}),
        ({**PAIR, "rejected": []}, {"malformed": 2}),
        ({**PAIR, "prompt": 3}, {"malformed": 2}),
        ({"chosen": "good", "rejected": "bad"}, {"malformed": 2}),
        ({**PAIR, "score_chosen": "nine", "score_rejected": 8}, {"malformed": 1}),
        ({**PAIR, "rejected": " "}, {"empty text": 1}),
        (
            {
                "chosen": [user("p"), bot("a"), user("q"), bot("good")],
                "rejected": [user("p"), bot("a"), user("q"), bot("bad")],
            },
            {"later turn": 2},
        ),
        (
            {"chosen": [user("p"), bot("good"), user("q"), bot("x")], "rejected": [user("p"), bot("bad")]},
            {"later turn": 2},
        ),
    ],
)
def test_unusable_pairs(record, dropped):
    assert parsed(record)[2] == dropped


# --- conversations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "prompt", "answers", "dropped"),
    [
        ([("user", "p"), ("assistant", "r")], "p", ["r"], {}),
        ([("system", "s"), ("user", "p"), ("assistant", "r")], "s\n\np", ["r"], {}),
        ([("system", " "), ("user", "p"), ("assistant", "r")], "p", ["r"], {}),
        ([("user", "p"), ("assistant", "r"), ("user", "q"), ("assistant", "t")], "p", ["r"], {"later turn": 1}),
        ([("user", "p")], "", [], {"no answer": 1}),
        ([("user", "p"), ("user", "q"), ("assistant", "r")], "", [], {"no answer": 1, "later turn": 1}),
        ([("assistant", "r"), ("user", "p"), ("assistant", "t")], "", [], {"no prompt": 2}),
        ([("system", "s")], "", [], {"no prompt": 1}),
        ([("user", "p"), ("assistant", "")], "p", [], {"empty text": 1}),
        ([("user", ["p"]), ("assistant", "r")], ["p"], [], {"malformed": 1}),
        ([("user", "p"), ("assistant", None)], "p", [], {"malformed": 1}),
    ],
)
def test_conversations(turns, prompt, answers, dropped):
    share = {"user": "human", "assistant": "gpt", "system": "system"}
    assert parsed({"messages": [{"role": r, "content": t} for r, t in turns]}) == (prompt, plain(*answers), dropped)
    assert parsed({"conversations": [{"from": share[r], "value": t} for r, t in turns]}) == (
        prompt,
        plain(*answers),
        dropped,
    )
    columns = {"role": [r for r, _ in turns], "content": [t for _, t in turns]}
    assert parsed({"messages": columns}) == (prompt, plain(*answers), dropped)


@pytest.mark.parametrize("turns", ["p", [], ["p"], None, 3])
def test_a_conversation_of_no_messages_is_malformed(turns):
    assert parsed({"messages": turns})[2] == {"malformed": 1}


# --- Open Assistant --------------------------------------------------------------------------------------------


def message(name, role, text, *replies, **fields):
    return {"message_id": name, "role": role, "text": text, "lang": "en", "replies": list(replies), **fields}


def tree(**fields):
    deeper = message("c", "prompter", "more?", message("d", "assistant", "yes", message("e", "prompter", "thanks")))
    return message(
        "a",
        "prompter",
        "p",
        message("b", "assistant", "best", deeper, rank=0, review_result=True, deleted=False),
        message("f", "assistant", "second", rank=1),
        message("g", "assistant", "gone", rank=2, deleted=True),
        message("h", "assistant", "spam", rank=3, review_result=False),
        message("i", "assistant", "beste", rank=4, lang="de"),
        message("j", "assistant", "unranked", rank=None),
        **fields,
    )


DROPPED = {"other language": 1, "deleted": 1, "rejected in review": 1, "later turn": 1}
KEPT = [Answer("best", 0.0, None, True), Answer("second", -1.0, None, True), Answer("unranked")]


def rows_of(node, parent=None):
    """A tree's messages as separate rows, the format of data sets on the hub."""
    yield {**{k: v for k, v in node.items() if k != "replies"}, "parent_id": parent}
    for reply in node["replies"]:
        yield from rows_of(reply, node["message_id"])


def test_a_tree():
    assert parsed({"message_tree_id": "a", "prompt": tree()}) == ("p", KEPT, DROPPED)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"lang": "fr"}, "other language"),
        ({"deleted": True}, "deleted"),
        ({"review_result": False}, "rejected in review"),
    ],
)
def test_a_tree_with_an_unwanted_root(fields, reason):
    assert parsed({"prompt": tree(**fields)}) == ("p", [], {reason: 6, "later turn": 1})


def test_unusable_trees():
    assert parsed({"prompt": message("a", "prompter", "p")})[2] == {"no answer": 1}
    assert parsed({"prompt": message("a", "assistant", "p")})[2] == {"malformed": 1}
    assert parsed({"prompt": {**tree(), "replies": ["r"]}})[2] == {"malformed": 1}
    assert parsed({"prompt": {**tree(), "text": ""}})[2] == {**DROPPED, "empty text": 3}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("root", ["none", "empty", "absent"])
def test_message_rows_are_joined_into_trees(load, order, root):
    rows = list(rows_of(tree()))
    if root == "empty":
        rows[0]["parent_id"] = ""
    elif root == "absent":
        del rows[0]["parent_id"]
    merged, dropped = load({"prompt": "x", "response": "y"}, *rows[::order])
    assert {p: sorted(a) for p, a in merged.items()} == {"x": plain("y"), "p": sorted(KEPT)}
    assert dropped == DROPPED


def test_message_rows_without_their_root(load):
    rows = list(rows_of(tree()))
    cycle = [message("x", "prompter", "x", parent_id="y"), message("y", "assistant", "y", parent_id="x")]
    cyclic = [{k: v for k, v in m.items() if k != "replies"} for m in cycle]
    merged, dropped = load(*rows[1:], *cyclic)
    assert merged == {}
    assert dropped == {"no prompt": 8}


def test_duplicate_message_rows_count_once(load):
    rows = list(rows_of(tree()))
    merged, dropped = load(*rows, *rows)
    assert merged == {"p": KEPT}
    assert dropped == {**DROPPED, "duplicate answer": 7}


# --- filters, and merging of records -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "wanted", "kept"),
    [
        ("en", "en", True),
        ("en-GB", "en", True),
        ("EN_us", "en", True),
        ("de", "en", False),
        ("eng", "en", True),
        ("deu", "en", False),
        ("pt-BR", "pt-BR", True),
        ("pt", "pt-BR", False),
        ("de", "", True),
        (None, "en", True),
        ("", "en", True),
    ],
)
@pytest.mark.parametrize("name", ["lang", "language"])
def test_another_language_is_dropped(name, tag, wanted, kept):
    record = {"prompt": "p", "response": "r", name: tag}
    assert parsed(record, wanted)[1:] == ((plain("r"), {}) if kept else ([], {"other language": 1}))


def test_records_of_one_prompt_are_merged(load):
    merged, dropped = load(
        {"prompt": "Who, me?", "response": "a"},
        {"prompt": "other", "response": "x"},
        {"prompt": "who me", "response": "b", "score": 1},
        {"prompt": "WHO ME!", "response": "a", "score": 2},  # this one has a score: it is kept
        {"prompt": "who, me?", "response": "b", "score": 5},
    )
    assert merged == {"Who, me?": [Answer("a", 2.0), Answer("b", 1.0)], "other": plain("x")}
    assert dropped == {"duplicate answer": 2}


def test_prompts_that_differ_in_symbols_are_not_merged(load):
    merged, dropped = load(
        {"prompt": "What is 2 + 3?", "response": "5"},
        {"prompt": "What is 2 - 3?", "response": "-1"},
        {"prompt": "what is 2+3", "response": "five"},
        {"prompt": "Why C?", "response": "old"},
        {"prompt": "Why C++?", "response": "new"},
        {"prompt": "Say “hi” \u2013 twice", "response": "hi hi"},
        {"prompt": 'say "hi", twice.', "response": "hi, hi"},
    )
    assert list(merged.values()) == [plain("5", "five"), plain("old"), plain("hi hi", "hi, hi")]
    assert dropped == {"prompt differs only in punctuation": 2}


def test_too_many_faults_are_refused(load, tmp_path):
    good = [{"prompt": f"p {i}", "response": "r"} for i in range(9)]
    merged, dropped = load(*good, {"prompt": "", "response": "r"}, max_malformed_frac=0.1)
    assert len(merged) == 9
    assert dropped == {"empty text": 1}
    with pytest.raises(
        DataError, match=r"rows\.jsonl line 10\b.*\bprompt\b.*''.*\b1\b.*\b10\b.*data\.max_malformed_frac\b"
    ):
        load(*good, {"prompt": "", "response": "r"}, max_malformed_frac=0.09)
    with pytest.raises(DataError, match=r"rows\.jsonl\b.*\b2\b.*\b2\b.*data\.max_malformed_frac\b"):
        load({"prompt": 1}, 3, max_malformed_frac=1.0)
    with pytest.raises(DataError, match=r"rows\.jsonl\b"):
        load(max_malformed_frac=1.0)


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"prompt": "p", "text": "t"}, ["response", "prompt, text", *parsers.FIELD_NAMES["response"]]),
        ({"prompt": "p", "response": None}, ["response (null)", *parsers.FIELD_NAMES["response"]]),
        ({"ask": "p", "response": "r"}, ["prompt", "ask, response", *parsers.FIELD_NAMES["prompt"]]),
        ({"chosen": "a", "rejected": "b", "x": 1}, ["prompt", "chosen, rejected, x", *parsers.FIELD_NAMES["prompt"]]),
        ({"prompt": "p", "answers": [{"text": "t"}]}, ["response", "prompt, answers, text"]),
        ({"messages": [user("p"), {"role": "assistant"}]}, ["content", "value"]),
        ({"prompt": "p", "response": "r", "score": "A"}, ["score", "'A'", "number", "A = 5", "rank"]),
        ({"prompt": "p", "response": "r", "quality_score": "good"}, ["quality_score", "'good'", "number", "rank"]),
        ({"prompt": "p", "response": "r", "score": "4/5"}, ["score", "'4/5'", "number", "rank"]),
        ({"prompt": "p", "response": "r", "rank": "first"}, ["rank", "'first'", "number"]),
        ({"prompt": "p\n", "a\nb": "r"}, ["response", r"a\nb"]),
    ],
)
def test_a_fault_names_the_value_and_the_remedy(load, row, facts):
    with pytest.raises(DataError) as error:
        load(row, max_malformed_frac=0.0)
    message = str(error.value)
    for fact in ["rows.jsonl line 1", *facts]:
        assert fact in message, (fact, message)
    assert "\n" not in message
    assert ".py" not in message


def test_filters_do_not_count_as_faults(load):
    assert load({"prompt": "p", "response": "r", "lang": "de"}, {"messages": [user("p")]}) == (
        {},
        {"other language": 1, "no answer": 1},
    )


NAMES = [
    *(name for names in parsers.FIELD_NAMES.values() for name in names),
    *"answers rank judgment chosen rejected metadata score_chosen score_rejected messages conversations input".split(),
    *"instances role from content value text replies lang deleted review_result message_id parent_id".split(),
]
texts = st.sampled_from(["", "p", "user", "assistant", "prompter", "system", "human", "gpt", "en", "de", "\ud800"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(NAMES), values, max_size=6) | values)
def test_any_record_can_be_parsed(record):
    prompt, items, _ = parse_record(record, "en")
    assert items
    for item in items:
        if isinstance(item, Dropped):
            assert item.reason in parsers.DROP_REASONS
            assert "\n" not in item.detail
        else:
            assert isinstance(prompt, str)
            assert prompt.strip()
            assert item.response.strip()


@given(
    st.lists(
        st.fixed_dictionaries({"message_id": values, "role": texts, "text": texts, "parent_id": values}), max_size=9
    )
)
def test_any_message_rows_can_be_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("messages") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [{"prompt": "q", "response": "r"}, *rows]))
    merged, counts, *_ = read_prompts_with_responses(str(path), "en", 1.0)
    assert counts["read"] == sum(len(a.answers) for a in merged) + sum(counts[name] for name in parsers.DROP_REASONS)

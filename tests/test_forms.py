"""Prompts and answers out of records of every form."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward_jax.data import parsers
from selfreward_jax.data.merge import read_prompts_with_responses
from selfreward_jax.data.parsers import Answer, Dropped, parse
from selfreward_jax.data.readers import DataError


def said(record, language="en"):
    """A record's prompt and answers, and a count of what was left out."""
    prompt, found = parse(record, language)
    left = Counter(one.reason for one in found if isinstance(one, Dropped))
    return prompt, [one for one in found if isinstance(one, Answer)], dict(left)


def plain(*texts):
    return [Answer(text) for text in texts]


@pytest.fixture
def load(tmp_path):
    def run(*records, language="en", most_bad=0.0):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        asked, counts = read_prompts_with_responses(str(path), language, most_bad)
        assert counts["read"] == sum(len(a.answers) for a in asked) + sum(counts[name] for name in parsers.DROP_REASONS)
        assert set(counts) == {"records", "read", *parsers.DROP_REASONS}
        left = {name: counts[name] for name in parsers.DROP_REASONS if counts[name]}
        return {a.prompt: a.answers for a in asked}, left

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
    assert said(record) == (prompt, answers, {})


def test_self_instruct():
    record = {"instruction": "p", "instances": [{"input": "i", "output": "r"}, {"input": "", "output": "s"}]}
    assert said(record) == ("p\n\ni", plain("r"), {"in a later instance": 1})
    record["instances"][0]["input"] = ""
    assert said(record)[0] == "p"
    assert said({"instruction": "p", "instances": []})[2] == {"without an answer": 1}
    assert said({"instruction": "p", "instances": "r"})[2] == {"malformed": 1}


def test_one_bad_answer_leaves_the_others():
    record = {"prompt": "p", "answers": [{"response": "a"}, {"response": " "}, {"response": 3}, {"response": "\ud800"}]}
    left = {"with an empty text": 1, "malformed": 1, "with half of a character": 1}
    assert said(record) == ("p", plain("a"), left)
    assert said({"prompt": "p", "answers": []})[2] == {"without an answer": 1}


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
    assert said(record) == ("p", IMPLICIT, {})


def test_a_pairs_scores_are_kept():
    scored = [Answer("good", 9.0), Answer("bad", 8.5)]
    assert said({**PAIR, "score_chosen": 9, "score_rejected": 8.5})[1] == scored
    assert said({**PAIR, "chosen_score": 9, "rejected_score": 8.5})[1] == scored
    assert said({**PAIR, "metadata": {"score_chosen": 9, "score_rejected": 8.5}})[1] == scored
    assert said({**PAIR, "score_chosen": 9, "metadata": "of no use"})[1] == IMPLICIT


def test_a_system_message_stands_above_the_prompt():
    system = {"role": "system", "content": "be kind"}
    record = {"chosen": [system, user("p"), bot("good")], "rejected": [system, user("p"), bot("bad")]}
    assert said(record)[0] == "be kind\n\np"


@pytest.mark.parametrize(
    ("record", "left"),
    [
        ({**PAIR, "rejected": "good"}, {"in a pair of equal texts": 2}),
        ({"chosen": [user("p"), bot("a")], "rejected": [user("p"), bot("a")]}, {"in a pair of equal texts": 2}),
        ({**PAIR, "score_chosen": 3, "score_rejected": 3.0}, {"in a pair of equal scores": 2}),
        ({**PAIR, "chosen": 3}, {"malformed": 2}),
        ({**PAIR, "rejected": []}, {"malformed": 2}),
        ({**PAIR, "prompt": 3}, {"malformed": 2}),
        ({"chosen": "good", "rejected": "bad"}, {"malformed": 2}),
        ({**PAIR, "score_chosen": "9", "score_rejected": 8}, {"malformed": 1}),
        ({**PAIR, "rejected": " "}, {"with an empty text": 1}),
        (
            {
                "chosen": [user("p"), bot("a"), user("q"), bot("good")],
                "rejected": [user("p"), bot("a"), user("q"), bot("bad")],
            },
            {"in a later turn": 2},
        ),
        (
            {"chosen": [user("p"), bot("good"), user("q"), bot("x")], "rejected": [user("p"), bot("bad")]},
            {"in a later turn": 2},
        ),
    ],
)
def test_pairs_that_say_nothing(record, left):
    assert said(record)[2] == left


# --- conversations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "prompt", "answers", "left"),
    [
        ([("user", "p"), ("assistant", "r")], "p", ["r"], {}),
        ([("system", "s"), ("user", "p"), ("assistant", "r")], "s\n\np", ["r"], {}),
        ([("system", " "), ("user", "p"), ("assistant", "r")], "p", ["r"], {}),
        ([("user", "p"), ("assistant", "r"), ("user", "q"), ("assistant", "t")], "p", ["r"], {"in a later turn": 1}),
        ([("user", "p")], "", [], {"without an answer": 1}),
        ([("user", "p"), ("user", "q"), ("assistant", "r")], "", [], {"without an answer": 1, "in a later turn": 1}),
        ([("assistant", "r"), ("user", "p"), ("assistant", "t")], "", [], {"without a prompt": 2}),
        ([("system", "s")], "", [], {"without a prompt": 1}),
        ([("user", "p"), ("assistant", "")], "p", [], {"with an empty text": 1}),
        ([("user", ["p"]), ("assistant", "r")], ["p"], [], {"malformed": 1}),
        ([("user", "p"), ("assistant", None)], "p", [], {"malformed": 1}),
    ],
)
def test_conversations(turns, prompt, answers, left):
    share = {"user": "human", "assistant": "gpt", "system": "system"}
    assert said({"messages": [{"role": r, "content": t} for r, t in turns]}) == (prompt, plain(*answers), left)
    assert said({"conversations": [{"from": share[r], "value": t} for r, t in turns]}) == (
        prompt,
        plain(*answers),
        left,
    )
    columns = {"role": [r for r, _ in turns], "content": [t for _, t in turns]}
    assert said({"messages": columns}) == (prompt, plain(*answers), left)


@pytest.mark.parametrize("turns", ["p", [], ["p"], None, 3])
def test_a_conversation_of_no_messages_is_malformed(turns):
    assert said({"messages": turns})[2] == {"malformed": 1}


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


LEFT = {"in another language": 1, "deleted": 1, "rejected in review": 1, "in a later turn": 1}
KEPT = [Answer("best", 0.0, None, True), Answer("second", -1.0, None, True), Answer("unranked")]


def rows_of(node, parent=None):
    """A tree's messages in rows of their own, as the hub's data sets have them."""
    yield {**{k: v for k, v in node.items() if k != "replies"}, "parent_id": parent}
    for reply in node["replies"]:
        yield from rows_of(reply, node["message_id"])


def test_a_tree():
    assert said({"message_tree_id": "a", "prompt": tree()}) == ("p", KEPT, LEFT)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"lang": "fr"}, "in another language"),
        ({"deleted": True}, "deleted"),
        ({"review_result": False}, "rejected in review"),
    ],
)
def test_a_tree_whose_root_is_not_wanted(fields, why):
    assert said({"prompt": tree(**fields)}) == ("p", [], {why: 6, "in a later turn": 1})


def test_trees_that_say_nothing():
    assert said({"prompt": message("a", "prompter", "p")})[2] == {"without an answer": 1}
    assert said({"prompt": message("a", "assistant", "p")})[2] == {"malformed": 1}
    assert said({"prompt": {**tree(), "replies": ["r"]}})[2] == {"malformed": 1}
    assert said({"prompt": {**tree(), "text": ""}})[2] == {**LEFT, "with an empty text": 3}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("root", ["none", "empty", "absent"])
def test_message_rows_are_put_together(load, order, root):
    rows = list(rows_of(tree()))
    if root == "empty":
        rows[0]["parent_id"] = ""
    elif root == "absent":
        del rows[0]["parent_id"]
    asked, left = load({"prompt": "x", "response": "y"}, *rows[::order])
    assert {p: sorted(a) for p, a in asked.items()} == {"x": plain("y"), "p": sorted(KEPT)}
    assert left == LEFT


def test_message_rows_without_their_root(load):
    rows = list(rows_of(tree()))
    circle = [message("x", "prompter", "x", parent_id="y"), message("y", "assistant", "y", parent_id="x")]
    lost = [{k: v for k, v in m.items() if k != "replies"} for m in circle]
    asked, left = load(*rows[1:], *lost)
    assert asked == {}
    assert left == {"without a prompt": 8}


def test_message_rows_that_come_twice_count_once(load):
    rows = list(rows_of(tree()))
    asked, left = load(*rows, *rows)
    assert asked == {"p": KEPT}
    assert left == {**LEFT, "repeated answer": 7}


# --- filters, and all records together -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "wanted", "kept"),
    [
        ("en", "en", True),
        ("en-GB", "en", True),
        ("EN_us", "en", True),
        ("de", "en", False),
        ("eng", "en", False),
        ("pt-BR", "pt-BR", True),
        ("pt", "pt-BR", False),
        ("de", "", True),
        (None, "en", True),
        ("", "en", True),
    ],
)
@pytest.mark.parametrize("name", ["lang", "language"])
def test_another_language_is_left_out(name, own, wanted, kept):
    record = {"prompt": "p", "response": "r", name: own}
    assert said(record, wanted)[1:] == ((plain("r"), {}) if kept else ([], {"in another language": 1}))


def test_records_of_one_prompt_are_one(load):
    asked, left = load(
        {"prompt": "Who, me?", "response": "a"},
        {"prompt": "other", "response": "x"},
        {"prompt": "who me", "response": "b", "score": 1},
        {"prompt": "WHO ME!", "response": "a", "score": 2},  # this one has a score: it stays
        {"prompt": "who, me?", "response": "b", "score": 5},
    )
    assert asked == {"Who, me?": [Answer("a", 2.0), Answer("b", 1.0)], "other": plain("x")}
    assert left == {"repeated answer": 2}


def test_prompts_that_differ_in_signs_are_not_one(load):
    asked, left = load(
        {"prompt": "What is 2 + 3?", "response": "5"},
        {"prompt": "What is 2 - 3?", "response": "-1"},
        {"prompt": "what is 2+3", "response": "five"},
        {"prompt": "Why C?", "response": "old"},
        {"prompt": "Why C++?", "response": "new"},
        {"prompt": "Say “hi” \u2013 twice", "response": "hi hi"},
        {"prompt": 'say "hi", twice.', "response": "hi, hi"},
    )
    assert list(asked.values()) == [plain("5", "five"), plain("old"), plain("hi hi", "hi, hi")]
    assert left == {"under a prompt that differs in signs alone": 2}


def test_too_many_faults_are_refused(load, tmp_path):
    good = [{"prompt": f"p {i}", "response": "r"} for i in range(9)]
    asked, left = load(*good, {"prompt": "", "response": "r"}, most_bad=0.1)
    assert len(asked) == 9
    assert left == {"with an empty text": 1}
    with pytest.raises(DataError, match=r"rows\.jsonl line 10\b.*\bprompt\b.*''.*\b1\b.*\b10\b.*data\.most_bad\b"):
        load(*good, {"prompt": "", "response": "r"}, most_bad=0.09)
    with pytest.raises(DataError, match=r"rows\.jsonl\b.*\b2\b.*\b2\b.*data\.most_bad\b"):
        load({"prompt": 1}, 3, most_bad=1.0)
    with pytest.raises(DataError, match=r"rows\.jsonl\b"):
        load(most_bad=1.0)


def test_filters_are_no_faults(load):
    assert load({"prompt": "p", "response": "r", "lang": "de"}, {"messages": [user("p")]}) == (
        {},
        {"in another language": 1, "without an answer": 1},
    )


NAMES = [
    *(name for names in parsers.NAMES.values() for name in names),
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
def test_no_record_is_too_odd(record):
    prompt, found = parse(record, "en")
    assert found
    for one in found:
        if isinstance(one, Dropped):
            assert one.reason in parsers.DROP_REASONS
            assert "\n" not in one.detail
        else:
            assert isinstance(prompt, str)
            assert prompt.strip()
            assert one.response.strip()


@given(
    st.lists(
        st.fixed_dictionaries({"message_id": values, "role": texts, "text": texts, "parent_id": values}), max_size=9
    )
)
def test_no_message_rows_are_too_odd(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("odd") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [{"prompt": "q", "response": "r"}, *rows]))
    asked, counts = read_prompts_with_responses(str(path), "en", 1.0)
    assert counts["read"] == sum(len(a.answers) for a in asked) + sum(counts[name] for name in parsers.DROP_REASONS)

"""Any bytes as seed data or as a prompt file: read, or refused on one line; no traceback, no wait, bounded memory.

SEED_INPUTS=20000 is the number of inputs of the slow test, over all shapes, drawn anew. Without it they are fixed.
"""

import copy
import gzip
import json
import os
import resource
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfreward_jax.config import InputError, get_config
from selfreward_jax.data.seed_sets import format_report, from_files
from selfreward_jax.integrations import formats
from selfreward_jax.sampling.requests import check_text
from selfreward_jax.storage.artifacts import encode_rows

USER, BOT = {"role": "user", "content": "What is a duck?"}, {"role": "assistant", "content": "A bird."}
REPLY = {"role": "assistant", "text": "A bird.", "lang": "en", "replies": [{"role": "prompter", "text": "Why?"}]}
SHAPES = {
    "flat": [{"prompt": "p", "response": "r", "score": 3, "judgment": "Good.\nScore: 4"}],
    "ranked": [{"prompt": "p", "response": "r", "rank": 0}, {"prompt": "p", "response": "s", "rank": 1}],
    "Alpaca": [{"instruction": "i", "input": "x", "output": "o"}],
    "answers": [{"prompt": "p", "answers": [{"response": "a", "score": 1}, {"response": "b", "score": 2}]}],
    "answers in columns": [{"prompt": "p", "answers": {"response": ["a", "b"], "score": [1, 2]}}],
    "instances": [{"instruction": "i", "instances": [{"input": "", "output": "o"}]}],
    "pair": [{"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 4, "score_rejected": 1}],
    "pair of messages": [
        {"chosen": [USER, BOT], "rejected": [USER, BOT | {"content": "No."}], "metadata": {"chosen_score": 1}}
    ],
    "messages": [{"id": 1, "messages": [{"role": "system", "content": "s"}, USER, BOT], "created": 1}],
    "conversations": [{"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}],
    "UltraFeedback": [
        {
            "instruction": "i",
            "completions": [{"response": "r", "annotations": {"helpfulness": {"Rating": "4"}}, "overall_score": 8.5}],
        }
    ],
    "tree": [{"prompt": {"role": "prompter", "text": "t", "replies": [REPLY]}, "message_tree_id": "t"}],
    "message rows": [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "t", "lang": "en", "deleted": False},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "a", "review_result": True},
    ],
    "marks": [{"chosen": "\n\nHuman: h\n\nAssistant: a", "rejected": "\n\nHuman: h\n\nAssistant: b"}],
    "labels": [{"prompt": [USER], "completion": [BOT | {"weight": 0}], "label": False, "system": "s", "history": []}],
    "votes": [{"history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 2, "score_B": 1}],
    "MT-Bench": [{"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": []}],
}
KEYS = sorted({key for rows in SHAPES.values() for row in rows for key in row} | {"", "\ud800", "a\0b", "language"})
TEXTS = {  # what json.dumps does not write
    "@DEEP@": b"[" * 100_000 + b"]" * 100_000,
    "@TOWER@": b'{"replies":[' * 300 + b"]}" * 300,
    "@DIGITS@": b"9" * 5000,
    "@LARGE@": b"1e400",
    "@RAW@": b'"\xff\x00"',
    "@TWICE@": b'{"a": 1, "a": 1}',
}
LEAVES = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63, 2**64, 10**99, 1e308, *TEXTS])
    | st.text(max_size=8)
    | st.sampled_from(["", " ", "\ud800", "a\0b", "\x1b[31m", "3", "1" * 5000 + "x", "user", "assistant", "xx", "p"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=4,
)
GOOD = [
    {
        **dict.fromkeys(["prompt", "instruction"], f"question {i}"),
        "turns": ["a", "b"],
        "question_id": 100 + i,
        "answers": [{"response": f"r{j}", "score": j} for j in (1, 4)],
    }
    for i in range(10)
]
ANY = {"suppress_health_check": list(HealthCheck), "deadline": None}


@st.composite
def changed(draw, rows):
    """The rows with some values replaced, removed or added, at any depth."""
    rows = copy.deepcopy(rows)
    for _ in range(draw(st.integers(0, 3))):
        node = rows
        while True:
            keys = list(range(len(node))) if isinstance(node, list) else sorted(node)
            key = draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(node[key], list | dict) or not draw(st.integers(0, 3)):
                break
            node = node[key]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if kind == "remove" and keys and node is not rows:
            del node[key]
        elif kind == "add" or key is None:
            key = draw(st.sampled_from(KEYS))
            node.append(draw(VALUES)) if isinstance(node, list) else node.__setitem__(key, draw(VALUES))
        else:
            node[key] = draw(VALUES)
    return rows


@st.composite
def damaged(draw, data):
    """Bytes with flipped bits, cut, or with a part of themselves elsewhere."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2, 3]))):
        at, to = sorted(draw(st.integers(0, len(data))) for _ in range(2))
        kind = draw(st.sampled_from(["flip", "flip", "cut", "leave out", "splice"]))
        if kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "leave out":
            data = data[:at] + data[to:]
        else:
            data = data[:to] + data[at : at + 200] + data[to:]
    return data


@st.composite
def files(draw, shape):
    """The name and the bytes of a file: JSON Lines, a JSON list or Parquet, maybe gzipped."""
    rows = [*GOOD[:-1], *draw(changed(SHAPES[shape])), GOOD[-1]]
    kind = draw(st.sampled_from(["x.jsonl", "x.jsonl", "x.jsonl", "x.json", "x.jsonl.gz", "x.json.gz", "x.parquet"]))
    if kind == "x.parquet":
        data = parquet(rows)
        kind = kind if data else "x.jsonl"
    if kind != "x.parquet":
        lines = [json.dumps(row).encode() for row in rows]
        data = b"[" + b",\n".join(lines) + b"]" if kind.startswith("x.json.") or kind == "x.json" else b"\n".join(lines)
        for mark, text in TEXTS.items():
            data = data.replace(b'"' + mark.encode() + b'"', text)
    early = draw(st.booleans())  # damage below the compression, or above
    if kind.endswith(".gz"):
        return kind, gzip.compress(draw(damaged(data)), 1) if early else draw(damaged(gzip.compress(data, 1)))
    return kind, draw(damaged(data))


def parquet(rows):
    """The changed rows as Parquet; none if a column would have values of several types."""
    import pyarrow
    from pyarrow import parquet

    try:
        sink = pyarrow.BufferOutputStream()
        fields = dict.fromkeys(key for row in rows[9:] for key in row)
        parquet.write_table(pyarrow.Table.from_pylist([{f: row.get(f) for f in fields} for row in rows[9:]]), sink)
    except Exception:  # of several classes
        return b""
    return sink.getvalue().to_pybytes()


def use_seeds(path, malformed):
    cfg = get_config("micro").data
    cfg.update(ift=path, eft=path, max_malformed_frac=malformed)
    sets, report = from_files(cfg, 0)
    assert not any("\n" in line for line in format_report(report))
    for rows in sets.values():
        encode_rows(rows)
    json.dumps(report).encode()


def use_prompts(path, format_name):
    prompts = formats.read_prompts(path, format_name)
    for turn in (t for p in prompts for t in p.turns if isinstance(t, str)):  # as the command does before its work
        check_text("prompt", turn, may_be_empty=True)
    answers = {p.id: [["answer"] * len(p.turns)] for p in prompts}
    if format_name != "rows":
        formats.encode_answers(format_name, prompts, answers, "m", 0.0)
    encode_rows({"id": p.id, "prompt": p.turns[0]} for p in prompts)


USES = {
    "seeds": lambda path: use_seeds(path, 0.0),
    "seeds with faults": lambda path: use_seeds(path, 1.0),
    **{f"prompts, {name}": lambda path, name=name: use_prompts(path, name) for name in formats.FORMATS},
}
TALLY = Counter()


def read_or_refused(path, use):
    """Uses a file. A refusal must be one line of ours. Returns whether it was read, and the seconds."""
    start, refusal = time.monotonic(), ""
    try:
        USES[use](str(path))
    except InputError as error:
        refusal = str(error)
        assert "internal" not in refusal
        refusal = refusal.replace(str(path), "x")
        assert refusal.isprintable()
        assert len(refusal) < 1000
    seconds = time.monotonic() - start
    assert seconds < 5
    return not refusal, seconds


def use_all(folder, file):
    """Uses a file in every way, and counts it."""
    name, data = file
    (folder / name).write_bytes(data)
    for use in USES:
        is_read, seconds = read_or_refused(folder / name, use)
        TALLY[use, "read" if is_read else "refused"] += 1
        TALLY["longest"] = max(TALLY["longest"], seconds)
    TALLY["inputs"] += 1


@pytest.mark.parametrize("shape", SHAPES)
@settings(**ANY)
@given(data=st.data())
def test_any_seeds_and_prompts(shape, tmp_path, data):
    use_all(tmp_path, data.draw(files(shape)))


@pytest.mark.slow
def test_many_seeds_and_prompts(tmp_path, capsys):
    total = int(os.environ.get("SEED_INPUTS", 20_000))
    TALLY.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shape in SHAPES:
        # The same inputs each time: a fault of a library below must not come and go with the draw.
        @settings(
            max_examples=-(-total // len(SHAPES)), derandomize="SEED_INPUTS" not in os.environ, database=None, **ANY
        )
        @given(file=files(shape))
        def use(file):
            use_all(tmp_path, file)

        use()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with capsys.disabled():
        print(f"\n{dict(TALLY)}, {before >> 10} MiB before, at most {peak >> 10} MiB")
    assert TALLY["inputs"] >= total
    assert all(TALLY[use, outcome] > total // 200 for use in USES for outcome in ("read", "refused")), TALLY
    assert peak - before < 1 << 20  # KiB

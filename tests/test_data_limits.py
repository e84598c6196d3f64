"""Seeds and prompt files that are too large, too deep or too much work: one line, within seconds, in bounded memory."""

import datetime
import decimal
import gzip
import io
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT, assert_mentions

from selfreward_jax.cli import chat
from selfreward_jax.config import ConfigError, InputError
from selfreward_jax.data import csv_files, json_files, limits
from selfreward_jax.data.merge import normalize_scores, read_prompts_with_responses
from selfreward_jax.data.readers import DataError, Malformed, naming, read_records
from selfreward_jax.integrations import formats

ROW = {"prompt": "p", "response": "r", "score": 1}


def write(path, *rows):
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return str(path)


def refusal(source, setting="data.ift"):
    with pytest.raises(DataError) as error, naming(setting):
        for _ in read_records(str(source)):
            pass
    assert "\n" not in str(error.value)
    return str(error.value)


def refusals(path):
    """The errors of a file as seeds and as prompts."""
    lines = []
    for use in (lambda: read_prompts_with_responses(path, "en", 0.0), lambda: formats.read_prompts(path)):
        try:
            use()
        except InputError as error:
            lines.append(str(error))
    return lines


# --- sizes -----------------------------------------------------------------------------------------------------


def test_a_long_line_is_left_out_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_LINE", 100)
    path = write(tmp_path / "x.jsonl", b"1".ljust(100), b"2".ljust(101), b"3" * 10**7, ROW)
    values = [value for _, value in read_records(path)]
    assert values == [1, limits.TOO_LONG, limits.TOO_LONG, ROW]
    (tmp_path / "x.jsonl").write_bytes(b"1\n" + b"2".ljust(101))
    assert [value for _, value in read_records(path)] == [1, limits.TOO_LONG]
    with pytest.raises(ConfigError) as error:
        formats.read_prompts(write(tmp_path / "y.jsonl", {"prompt": "p"}, b"2".ljust(101)))
    assert_mentions(str(error.value), "line 2", "16,777,216")


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_a_list_is_read_an_item_at_a_time(tmp_path, monkeypatch, size):
    """Items that end at any place of a part, and numbers that go on in the next one."""
    for part in (1, 2, 3, 1 << 20):
        monkeypatch.setattr(json_files, "_CHUNK", part if size < 2 else 1 << 20)
        items = ["é" * size, 12.5e3, -7, True, None, [], {}, [1, [2]], {"a": "\U0001f600]"}, 3]
        text = " [ " + " , ".join(json.dumps(item, ensure_ascii=False) for item in items) + " ]\n"
        (tmp_path / "x.json").write_text(text)
        assert [value for _, value in read_records(str(tmp_path / "x.json"))] == items


@pytest.mark.parametrize(
    "text",
    [b"[1", b"[1,", b"[1,]", b"[,1]", b"[1 2]", b"[1]2", b"[1],", b"[1}", b"[", b"[1e]", b'["a]', b'[{"a":1,"a":1}]'],
)
def test_a_list_that_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text)
    assert_mentions(refusal(tmp_path / "x.json"), "data.ift", tmp_path / "x.json", "JSON")


def test_a_list_with_a_long_item_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_LINE", 100)
    monkeypatch.setattr(json_files, "_CHUNK", 16)
    (tmp_path / "x.json").write_text(json.dumps(["a" * 98, "b" * 99]))
    assert_mentions(refusal(tmp_path / "x.json"), "item 2", 100)
    (tmp_path / "x.json").write_bytes(b'["a", "' + b"b" * 10**6)
    assert_mentions(refusal(tmp_path / "x.json"), "item 2", 100)


def test_a_list_that_is_not_utf_8_is_refused_at_its_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "_CHUNK", 4)
    for data, position in ((b'["ab\xc3\xa9', None), (b'["abc\xff"]', 5), ('["é", "'.encode() + b"\xc3", 8)):
        (tmp_path / "x.json").write_bytes(data)
        assert_mentions(refusal(tmp_path / "x.json"), *(["UTF-8", position] if position else ["JSON"]))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet"])
def test_a_large_file_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(limits, "MAX_FILE", 10_000)
    (tmp_path / name).write_bytes(b"[1,     \n" * 2000)
    assert_mentions(refusal(tmp_path / name), "data.ift", tmp_path / name, "10,000")


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.gz", "x.parquet.gz"])
@pytest.mark.parametrize("data", [b" " * 10**6, b"\n" * 10**6, b"1\n" * 10**5, b"[" + b"1," * 10**5])
def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, name, data):
    monkeypatch.setattr(limits, "MAX_UNPACKED", 10_000)
    packed = gzip.compress(data, mtime=0)
    (tmp_path / name).write_bytes(packed)
    assert_mentions(refusal(tmp_path / name), "data.ift", tmp_path / name, f"{limits.MAX_RATIO * len(packed):,}")
    monkeypatch.setattr(limits, "MAX_FILE", 5000)
    assert_mentions(refusal(tmp_path / name), tmp_path / name, "5,000")


@pytest.mark.parametrize("data", [b"1\n" * 101, b"\n" * 101, b"[" + b"1," * 100 + b"1]"])
def test_a_file_has_so_many_rows(tmp_path, monkeypatch, data):
    monkeypatch.setattr(limits, "MAX_ROWS", 100)
    (tmp_path / "x").write_bytes(data)
    assert_mentions(refusal(tmp_path / "x"), tmp_path / "x", 100)


READ = """
import re, sys, time
from pathlib import Path
from selfreward_jax.config import InputError
from selfreward_jax.data.merge import read_prompts_with_responses
from selfreward_jax.data.readers import naming

def peak():  # not ru_maxrss, which begins with that of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before, start = peak(), time.monotonic()
try:
    with naming("data.ift"):
        read_prompts_with_responses(sys.argv[1], "en", 0.0)
    print("read")
except InputError as error:
    print(error)
print(time.monotonic() - start, peak() - before)
"""


def members(start, middle, count, end=b""):
    """A gzip file of megabytes in which `middle` is repeated: the parts of such a file may be compressed alone."""
    return gzip.compress(start) + gzip.compress(middle) * count + gzip.compress(end)


def sparse(path, start, size):
    path.write_bytes(start)
    os.truncate(path, size)


MIB = 1 << 20
HUGE = {  # how to make it, and what its refusal names
    "a line of 2 GB.jsonl": (lambda path: sparse(path, b'{"prompt": "', 2 << 30), ["line 1", "16,777,216"]),
    "an item of 2 GB.json": (lambda path: sparse(path, b'[{"prompt": "', 2 << 30), ["item 1", "16,777,216"]),
    "100 GB.jsonl": (lambda path: sparse(path, b"", 100 << 30), [f"{64 << 30:,}"]),
    "100 GB.parquet": (lambda path: sparse(path, b"PAR1", 100 << 30), [f"{64 << 30:,}"]),
    "lines.jsonl.gz": (lambda path: path.write_bytes(members(b"", b"1" * MIB + b"\n", 2000)), [f"{1 << 30:,}"]),
    "blanks.jsonl.gz": (lambda path: path.write_bytes(members(b"", b" " * MIB, 2000)), [f"{1 << 30:,}"]),
    "empty lines.jsonl.gz": (lambda path: path.write_bytes(members(b"", b"\n" * MIB, 100)), ["20,000,000"]),
    "items.json.gz": (lambda path: path.write_bytes(members(b"[1", b",1" * MIB, 100)), ["20,000,000"]),
    "a packed item.json.gz": (lambda path: path.write_bytes(members(b'["', b"a" * MIB, 2000)), ["item 1"]),
    "packed.parquet.gz": (lambda path: path.write_bytes(members(b"PAR1", b"\0" * MIB, 2000)), [f"{1 << 30:,}"]),
    "objects.jsonl": (lambda path: path.write_bytes(b'{"answers":[' + b"{}," * (5 * MIB) + b"{}]}"), ["10,000"]),
}


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is measured on Linux")
@pytest.mark.parametrize("name", HUGE)
def test_a_huge_file_is_refused_in_bounded_memory(tmp_path, name):
    make, facts = HUGE[name]
    make(tmp_path / name)
    command = [sys.executable, "-c", READ, str(tmp_path / name)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    message, figures = done.stdout.splitlines()
    seconds, mib = map(float, figures.split())
    print(f"{name}: {seconds:.1f} s, {mib:.0f} MiB")
    assert_mentions(message, "data.ift", tmp_path / name, *facts)
    assert mib < 1000
    assert seconds < 300


# --- work ------------------------------------------------------------------------------------------------------

N = 50_000
DIGITS = "1" * 50_000
WORK = {
    "fields": b"{" + b", ".join(b'"%d": 1' % i for i in range(N)) + b"}",
    "fields, the last one twice": b"{" + b", ".join(b'"%d": 1' % i for i in range(N)) + b', "7": 2}',
    "one field again and again": b"{" + b", ".join([b'"a": 1'] * N) + b"}",
    "fields and answers": {**{str(i): 1 for i in range(N // 10)}, "prompt": "p", "answers": [{}] * 10_000},
    "answers to a long prompt": {"prompt": "a+" * 400_000, "answers": [{"response": str(i)} for i in range(5000)]},
    "answers in a long language": {"prompt": "p", "lang": "x" * 10**7, "answers": [{"response": "r"}] * 5000},
    "answers without a response, long names": {"x" * 10**6: 1, "prompt": "p", "answers": [{}] * 10_000},
    "a number that is none": ROW | {"score": DIGITS + "x"},
    "more answers than may be": {"prompt": "p", "answers": [{}] * 10_001},
    "more replies than may be": {"prompt": {"text": "p", "replies": [{"role": "assistant", "text": "r"}] * 10_001}},
    "a list as a prompt": ROW | {"prompt": [[1, 2, 3]] * N},
    "an object as a response": ROW | {"response": {str(i): {} for i in range(N)}},
    "many keys": {str(i): 1 for i in range(N)},
}


@pytest.mark.parametrize("name", WORK)
def test_work_is_linear(tmp_path, name):
    path = write(tmp_path / "x.jsonl", WORK[name], ROW)
    start = time.monotonic()
    assert all(len(line) < 1000 for line in refusals(path))
    assert time.monotonic() - start < 5


def test_ranks_and_symbols_take_linear_time(tmp_path):
    rows = [{"prompt": "p", "response": str(i), "rank": i} for i in range(30_000)]
    rows += [{"prompt": "+" * 500_000 + "q", "response": "r"}] + [
        {"prompt": "q", "response": str(i)} for i in range(3000)
    ]
    start = time.monotonic()
    source = read_prompts_with_responses(write(tmp_path / "x.jsonl", *rows), "en", 0.0)
    ranked, _ = normalize_scores(source.prompts, source.counts, "x")
    assert [ranked["p"].answers[i].score for i in (0, -1)] == [5.0, 0.0]
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("field", ["prompt", "response", "score", "judgment", "answers", "messages", "lang", "id", "x"])
def test_the_depth_of_a_record_is_bounded(tmp_path, field):
    def nested(depth):
        return b'{"prompt": "p", "%s": ' % field.encode() + b"[" * depth + b"]" * depth + b"}"

    path = write(tmp_path / "x.jsonl", nested(limits.MAX_DEPTH - 1), nested(limits.MAX_DEPTH), nested(100_000))
    if field == "prompt":
        write(
            tmp_path / "x.jsonl",
            *(nested(d).replace(b'"p"', b"1", 1).replace(b'{"prompt": 1, ', b"{") for d in (255, 256, 10**5)),
        )
    first, second, third = (value for _, value in read_records(path))
    assert isinstance(first, dict)
    assert second == limits.TOO_DEEP
    assert isinstance(third, Malformed)
    with pytest.raises(DataError) as error:
        read_prompts_with_responses(path, "en", 0.0)
    assert_mentions(str(error.value), path, "line 1")
    with pytest.raises(ConfigError):
        formats.read_prompts(path)


# --- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [b"1" + b"0" * 400, b"1e400", b"-1e400", b"NaN", b"Infinity", b"true", b"1e100"])
@pytest.mark.parametrize("field", [b"score", b"rank"])
def test_numbers_outside_the_range_are_refused(tmp_path, field, number):
    row = json.dumps(ROW | {"score": None}).encode()[:-1] + b', "%s": %s}' % (field, number)
    path = write(tmp_path / "x.jsonl", row.replace(b', "score": null', b""))
    with pytest.raises(DataError) as error:
        read_prompts_with_responses(path, "en", 0.0)
    assert_mentions(str(error.value), "line 1", field.decode())


@pytest.mark.parametrize("number", [2**63, -(2**63), 2**64, 10**99])
def test_large_numbers_are_scores(tmp_path, number):
    (prompt,), *_ = read_prompts_with_responses(write(tmp_path / "x.jsonl", ROW | {"score": number}), "en", 0.0)
    assert prompt.answers[0].score == float(number)


@pytest.mark.parametrize(
    ("row", "fact"),
    [
        ({"prompt": [{"role": "user", "content": "\udfff"}]}, "prompt"),
        ({"prompt": "p", "id": "\ud800"}, "id"),
        ({"prompt": "p", "id": "x" * 1001}, "1,000"),
        ({"prompt": "p", "id": [1] * 1000}, "1,000"),
    ],
)
def test_what_an_answer_could_not_repeat_is_refused(tmp_path, row, fact):
    with pytest.raises(ConfigError) as error:
        formats.read_prompts(write(tmp_path / "x.jsonl", {"prompt": "q"}, row))
    assert_mentions(str(error.value), "line 2", fact)


def test_what_a_benchmark_could_not_repeat_is_refused(tmp_path):
    for row in ({"instruction": "i", "dataset": "\ud800"}, {"instruction": "i", "dataset": ["\udc00"]}):
        with pytest.raises(ConfigError) as error:
            formats.read_prompts(write(tmp_path / "x.jsonl", row), "alpaca_eval")
        assert_mentions(str(error.value), "line 1", "dataset")


def test_a_line_of_a_chat_is_bounded(monkeypatch):
    monkeypatch.setattr(chat, "MAX_CHARACTERS", 10)
    assert list(chat._lines(io.StringIO("0123456789\n\nb"))) == ["0123456789", "", "b"]
    odd = io.TextIOWrapper(io.BytesIO(b"a\n\xff\n"), encoding="utf-8")
    inherited = io.TextIOWrapper(io.BytesIO(b"a\n\xff\n"), encoding="utf-8", errors="surrogateescape")
    for source, number in ((io.StringIO("a\n" + "b" * 11), 2), (odd, None), (inherited, 2)):
        with pytest.raises(ConfigError) as error:
            list(chat._lines(source))
        assert_mentions(str(error.value), *([f"line {number}"] if number else ["UTF-8"]))


# --- Parquet ---------------------------------------------------------------------------------------------------


def columns():
    """Columns of two values of which the second has no counterpart in Python, or is odd."""
    pa = pytest.importorskip("pyarrow")
    far = [0, 2**60]
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("at", pa.timestamp("us"))])
    talk = [{"role": "user", "content": "q", "at": 2**60}, {"role": "assistant", "content": "a", "at": 0}]
    return {
        "timestamp": pa.array(far, pa.timestamp("us")),
        "timestamp with a zone": pa.array(far, pa.timestamp("us", "UTC")),
        "timestamp in a zone that there is not": pa.array(far, pa.timestamp("ms", "Mars/Olympus")),
        "nanoseconds": pa.array([0, 1], pa.timestamp("ns")),
        "date": pa.array([0, 2**31 - 1], pa.int32()).cast(pa.date32()),
        "milliseconds of a date": pa.array([0, 2**61], pa.int64()).cast(pa.date64()),
        "time": pa.array([0, 1], pa.int64()).cast(pa.time64("ns")),
        "duration": pa.array(far, pa.duration("s")),
        "decimal": pa.array([decimal.Decimal(1), decimal.Decimal("9" * 70)], pa.decimal256(76, 0)),
        "text that is not UTF-8": pa.Array.from_buffers(
            pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
        ),
        "bytes": pa.array([b"a", b"\xff"]),
        "nothing": pa.nulls(2),
        "dictionary": pa.array(["a", "b"]).dictionary_encode(),
        "dictionary of dates": pa.array(far, pa.timestamp("us")).dictionary_encode(),
        "map": pa.array([[("a", 1)], [("a", 2)]], pa.map_(pa.string(), pa.int64())),
        "map from dates": pa.array([[(0, 1)], [(2**60, 1)]], pa.map_(pa.timestamp("us"), pa.int64())),
        "float16": pa.array([1.0, 2.0], pa.float32()).cast(pa.float16()),
        "lists": pa.array([[[[1]]], [[[2**62]]]], pa.list_(pa.list_(pa.list_(pa.timestamp("us"))))),
        "list of objects": pa.array([talk, talk], pa.list_(message)),
        "object of objects": pa.array(
            [{"a": {"at": 2**60}}] * 2, pa.struct([("a", pa.struct([("at", pa.timestamp("us"))]))])
        ),
        "object with a field twice": pa.StructArray.from_arrays([pa.array([1, 2])] * 2, ["a", "a"]),
    }


def write_parquet(path, columns):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize("name", columns())
def test_a_column_of_parquet_that_is_not_used_breaks_nothing(tmp_path, name):
    path = write_parquet(tmp_path / "x.parquet", {"prompt": ["p", "q"], "response": ["r", "s"], "x": columns()[name]})
    prompts, counts, faults, _ = read_prompts_with_responses(path, "en", 0.0)
    assert ([p.prompt for p in prompts], counts["read"], faults) == (["p", "q"], 2, [])
    assert [p.turns for p in formats.read_prompts(path)] == [("p",), ("q",)]


@pytest.mark.parametrize("name", columns())
@pytest.mark.parametrize(
    "field", ["response", "score", "answers", "messages", "id", "prompt", "lang", "role", "chosen"]
)
def test_a_column_of_parquet_that_is_used_costs_one_line_at_most(tmp_path, name, field):
    table = {"prompt": ["p", "q"], "response": ["r", "s"], "rejected": ["r", "s"]} | {field: columns()[name]}
    path = write_parquet(tmp_path / "x.parquet", table)
    for line in refusals(path):
        assert_mentions(line, path)
        assert line.isprintable()
        assert len(line) < 1000


def test_messages_with_odd_dates_are_read(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"messages": columns()["list of objects"]})
    (prompt,), *_ = read_prompts_with_responses(path, "en", 0.0)
    assert (prompt.prompt, [a.response for a in prompt.answers]) == ("q", ["a"])
    with pytest.raises(ConfigError) as error:  # the whole message would be written into the answer's row
        formats.read_prompts(path)
    assert_mentions(str(error.value), "row 1", "prompt")


def test_a_date_that_an_answer_cannot_repeat_is_refused(tmp_path):
    table = {"instruction": ["i"], "dataset": [datetime.date(2024, 1, 1)]}
    with pytest.raises(ConfigError) as error:
        formats.read_prompts(write_parquet(tmp_path / "x.parquet", table), "alpaca_eval")
    assert_mentions(str(error.value), "row 1", "dataset", "2024")


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"]), tmp_path / "x.parquet"
    )
    assert_mentions(refusal(tmp_path / "x.parquet"), tmp_path / "x.parquet", "'prompt'")


@pytest.mark.parametrize("limit", ["MAX_ROWS", "MAX_UNPACKED"])
def test_parquet_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, limit):
    path = write_parquet(tmp_path / "x.parquet", {"prompt": [" " * 10**6 + str(i) for i in range(30)]})
    monkeypatch.setattr(limits, limit, 20)
    monkeypatch.setattr(limits, "MAX_RATIO", 10)
    assert_mentions(refusal(path), "data.ift", path)


def test_a_long_row_of_parquet_is_left_out_alone(tmp_path, monkeypatch):
    from selfreward_jax.data import parquet_files

    monkeypatch.setattr(parquet_files, "MAX_LINE", 1000)
    path = write_parquet(tmp_path / "x.parquet", {"prompt": ["a", "b" * 2000, "c"], "response": ["r"] * 3})
    values = [value for _, value in read_records(path)]
    assert values == [{"prompt": "a", "response": "r"}, limits.TOO_LONG, {"prompt": "c", "response": "r"}]


@pytest.mark.parametrize("name", ["x.parquet", "x.parquet.gz"])
def test_parquet_is_read_gzipped_too(tmp_path, name):
    path = write_parquet(tmp_path / "y.parquet", {"prompt": ["a"] * 3000})
    data = (tmp_path / "y.parquet").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    assert [v for _, v in read_records(str(tmp_path / name))] == [v for _, v in read_records(path)]


def test_a_record_of_a_table_is_bounded(tmp_path, monkeypatch):
    """A quote that is not closed would take the rest of the file as one text."""
    monkeypatch.setattr(csv_files, "MAX_LINE", 1000)
    path = tmp_path / "x.csv"
    path.write_text('prompt,response\np,"r\n' + "more\n" * 10_000)
    with pytest.raises(DataError, match=r"x\.csv has a record longer than 1,000 bytes at byte \d+"):
        list(read_records(str(path)))
    path.write_text("prompt,response\n" + "p,r\n" * 1000)
    assert len(list(read_records(str(path)))) == 1000
    path.write_text(",".join(f"c{i}" for i in range(200_000)) + ",c7\n")
    monkeypatch.setattr(csv_files, "MAX_LINE", 16 << 20)
    start = time.perf_counter()
    with pytest.raises(DataError, match="'c7'"):
        list(read_records(str(path)))
    assert time.perf_counter() - start < 5

"""Raw records, from files of every format and from data sets by name."""

import errno
import gzip
import io
import json
import math
import os
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from conftest import assert_mentions

from selfreward_jax.data.parquet_files import read_parquet
from selfreward_jax.data.readers import DataError, Malformed, read_records

ROWS = [{"n": i, "text": f"é {i}\u2028x\u0085y"} for i in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def values(source):
    return [value for _, value in read_records(str(source))]


def fault(source):
    """The one-line error message of a source that cannot be read."""
    with pytest.raises(DataError) as error:
        list(read_records(str(source)))
    assert "\n" not in str(error.value)
    return str(error.value)


# --- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a", "a.jsonl.gz", "a.json.gz", "a.gz"])
def test_json_lines(tmp_path, name):
    path = tmp_path / name
    data = LINES.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    assert values(path) == ROWS
    assert [location for location, _ in read_records(str(path))] == [f"{path} line {i}" for i in range(1, 6)]


@pytest.mark.parametrize("before", ["", "\n \t ", "\ufeff", " " * 9000])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_json_list(tmp_path, name, before):
    path = tmp_path / name
    data = (before + json.dumps(ROWS, indent=1)).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    assert list(read_records(str(path))) == [(f"{path} item {i}", row) for i, row in enumerate(ROWS, 1)]


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_are_no_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert list(read_records(str(path))) == [(f"{path} line 1", {"a": 1}), (f"{path} line 4", {"a": 2})]


def test_a_line_that_is_not_json_gives_malformed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{\n' + "[" * 100_000 + "\n" + "1" * 10_000 + '\n{"a": 2}\n')
    first, *bad, last = values(path)
    assert (first, last) == ({"a": 1}, {"a": 2})
    assert len(bad) == 3
    assert all(isinstance(value, Malformed) and "JSON" in value.reason for value in bad)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"n": i, "x": math.nan if i == 3 else i / 2, "list": [{"text": f"é{i}"}]} for i in range(3000)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=700)
    rows[3]["x"] = None
    assert values(path) == rows
    assert next(iter(read_records(str(path))))[0] == f"{path} row 1"
    path.write_bytes(path.read_bytes()[:-50])
    assert_mentions(fault(path), path)
    path.write_bytes(b"")
    assert_mentions(fault(path), path)


def test_parquet_with_damaged_pages_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "x" * i} for i in range(500)]), path)
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    assert_mentions(fault(path), path)


def test_no_flipped_bit_of_the_metadata_ends_the_process():
    """pyarrow aborts where it is asked for a column whose level histograms do not fit its schema."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"prompt": f"p{i}", "answers": [{"response": "r", "score": i}]} for i in range(3)]
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    data, outcomes = sink.getvalue().to_pybytes(), Counter()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    for at in range(len(data) - footer, len(data)):
        for bit in range(8):
            damaged = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            try:
                outcomes["read"] += bool(list(read_parquet("x", io.BytesIO(damaged), len(damaged))))
            except DataError:
                outcomes["refused"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 100, outcomes


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_mentions(fault(tmp_path / "a.parquet"), "pyarrow")


def test_a_glob_is_read_in_the_order_of_names(tmp_path):
    for name in ("b/2.jsonl", "a/1.jsonl", "a/deep/er/3.jsonl", "0.jsonl", "a/not.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(name))
    (tmp_path / "c.jsonl").mkdir()  # a folder is not read
    assert values(tmp_path / "**" / "*.jsonl") == ["0.jsonl", "a/1.jsonl", "a/deep/er/3.jsonl", "b/2.jsonl"]
    assert values(tmp_path / "a" / "?.jsonl") == ["a/1.jsonl"]
    assert_mentions(fault(tmp_path / "*.parquet"), tmp_path / "*.parquet")


def test_a_file_whose_name_looks_like_a_glob_is_read(tmp_path):
    (tmp_path / "a[1].jsonl").write_text("1\n")
    assert values(tmp_path / "a[1].jsonl") == [1]


def test_files_that_cannot_be_read_are_named(tmp_path):
    assert_mentions(fault(tmp_path / "none.jsonl"), tmp_path / "none.jsonl", os.strerror(errno.ENOENT))
    assert_mentions(fault(tmp_path), tmp_path, os.strerror(errno.EISDIR))
    fault("a\0b")
    for name, data, *facts in [
        ("latin.jsonl", '{"a": 1}\n{"a": "é"}'.encode("latin-1"), "UTF-8", 16, "line 2"),
        ("latin.json", '["é"]'.encode("latin-1"), "UTF-8", 2),
        ("wide.jsonl", LINES.encode("utf-16"), "UTF-8", 0, "line 1"),
        ("half.json", b'[{"a": 1}, {', "JSON"),
        ("deep.json", b"[" * 100_000, "JSON"),
        ("half.jsonl.gz", gzip.compress(LINES.encode() * 99, mtime=0)[:-9]),
        ("flat.jsonl.gz", LINES.encode()),
        ("bits.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:20] + b"\xff" * 40),
        ("half.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)[:-9]),
    ]:
        (tmp_path / name).write_bytes(data)
        assert_mentions(fault(tmp_path / name), tmp_path / name, *facts)


@pytest.mark.parametrize(
    ("name", "data", "facts"),
    [
        ("a.csv", b"", ["header"]),
        ("a.csv", b"prompt,prompt\n", ["two columns", "'prompt'"]),
        ("a.csv", b'prompt,response\np,"r" s\n', ["not CSV", "line 2", "quotes"]),
        ("a.csv", b'prompt,response\np,"r', ["not CSV", "quotes"]),
        ("a.csv", "prompt,response\np,é\n".encode("latin-1"), ["UTF-8", "18"]),
        ("a.xlsx", b"PK\x03\x04...", ["Excel", "JSON Lines", ".parquet", "read_excel('a.xlsx')", "'a.jsonl'"]),
        ("a.pkl", b"\x80\x04...", ["pickle", "read_pickle('a.pkl')"]),
        ("a.jsonl", b"\x80\x05...", ["pickle"]),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), [".gz"]),
        ("a.jsonl", b"PAR1...", [".parquet"]),
        ("a.zip", b"PK\x03\x04...", ["zip"]),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd...", ["zstd"]),
        ("a.yaml", b"- prompt: p\n", ["YAML", "JSON"]),
    ],
)
def test_a_kind_that_is_not_read_is_named_with_its_conversion(tmp_path, name, data, facts):
    (tmp_path / name).write_bytes(data)
    message = fault(tmp_path / name)
    for fact in [str(tmp_path / name), *facts]:
        assert fact in message, (fact, message)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b'prompt,score\n"p, ""q""\nr",\n\ns,5\n'),
        ("a.CSV", b'\xef\xbb\xbfprompt;score\r\n"p, ""q""\nr";\r\ns;5'),
        ("a.tsv", b'prompt\tscore\n"p, ""q""\nr"\t\ns\t5\n'),
        ("a.csv.gz", gzip.compress(b'prompt,score\n"p, ""q""\nr",\ns,5\n', mtime=0)),
    ],
)
def test_a_table_with_a_header_is_read(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert values(tmp_path / name) == [{"prompt": 'p, "q"\nr', "score": None}, {"prompt": "s", "score": "5"}]


def test_a_row_of_a_table_with_other_fields_than_the_header_is_malformed(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response\np,r,s\nq,t\n")
    (location, bad), (_, good) = read_records(str(tmp_path / "a.csv"))
    assert location.endswith("a.csv line 2")
    assert "3 fields" in bad.reason
    assert good == {"prompt": "q", "response": "t"}


OBJECT = '{\n "prompt": "p",\n "response": [\n "r"]\n}'


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (f"{OBJECT}\n{OBJECT}\n", 2),
        (f"\ufeff{OBJECT},\n{OBJECT}", 2),
        (f'{{\n"version": 1, "data": [{OBJECT}, {OBJECT}, {OBJECT}]}}', 3),
        (f'{{"rows": [{OBJECT}, {OBJECT}]}}'.replace("\n", ""), 2),
        (f'{{"rows": [\n{OBJECT}\n]}}\n', 1),
        (OBJECT.replace("\n", "") + ", \n" + OBJECT.replace("\n", "") + ",", 2),
    ],
)
def test_objects_over_several_lines_and_around_all_records_are_read(tmp_path, text, count):
    (tmp_path / "a.json").write_text(text)
    assert values(tmp_path / "a.json") == [{"prompt": "p", "response": ["r"]}] * count


def test_an_object_that_is_cut_is_named(tmp_path):
    (tmp_path / "a.json").write_text(f"{OBJECT}\n" + "{\n")
    assert_mentions(fault(tmp_path / "a.json"), "a.json", "item 2")


def test_json_lines_are_read_whatever_the_name(tmp_path):
    for name in ("a.csv", "a.db", "a.xml"):
        (tmp_path / name).write_text('{"a": 1}\n')
        assert values(tmp_path / name) == [{"a": 1}]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("1\n")
    (tmp_path / "a.jsonl").chmod(0)
    assert_mentions(fault(tmp_path / "a.jsonl"), os.strerror(errno.EACCES))


def test_a_large_file_is_read_a_record_at_a_time(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 10 + b"\xff\n")
    records = read_records(str(path))
    assert [next(records)[1] for _ in range(10)] == [{"a": 1}] * 10
    with pytest.raises(DataError):
        next(records)


# --- data sets by name -----------------------------------------------------------------------------------------

PREPARE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class TinyPairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain")]
    def _info(self):
        text = tfds.features.Text()
        answers = tfds.features.Sequence({"response": text, "rank": np.int32})
        fields = {"prompt": text, "score": np.float32, "answers": answers, "deleted": np.bool_}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(fields))
    def _split_generators(self, manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(5):
            answers = [{"response": f"r{i}", "rank": 0}, {"response": f"s{i}", "rank": 1}]
            yield i, {"prompt": f"p{i} \\u00e9", "score": i / 2, "answers": answers, "deleted": False}

TinyPairs(data_dir=sys.argv[1], config="plain", file_format="array_record").download_and_prepare()
"""
READ = """
import json, sys
from selfreward_jax.data.merge import read_prompts_with_responses
from selfreward_jax.data.readers import DataError, read_records
for source in sys.argv[1:]:
    try:
        print(json.dumps(list(read_records(source))))
    except DataError as error:
        print(json.dumps(str(error)))
print(json.dumps([prompt.answers for prompt in read_prompts_with_responses(sys.argv[1], "en", 0.0)[0]]))
assert "tensorflow" not in sys.modules
"""


def run(code, *args, **environment):
    env = {**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_data_set_of_tfds_needs_no_tensorflow(tmp_path):
    run(PREPARE, tmp_path)
    data_set = "tfds:tiny_pairs/plain"
    sources = [
        f"{data_set}/train",
        f"{data_set}:1.0.0/train",
        f"{data_set}/train[:2]",
        f"{data_set}/other",
        "tfds:no_such_set/train",
    ]
    # Nothing may be downloaded: the proxy is an address that refuses connections.
    offline = {"TFDS_DATA_DIR": str(tmp_path), "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    all_rows, version, part, split, name, answers_by_prompt = map(json.loads, run(READ, *sources, **offline))
    assert sorted(value["prompt"] for _, value in all_rows) == [f"p{i} é" for i in range(5)]
    location, value = all_rows[0]
    assert location == f"{data_set}/train row 1"
    assert value["score"] in (0, 0.5, 1, 1.5, 2)
    assert value["deleted"] is False
    assert value["answers"]["rank"] == [0, 1]
    assert [value for _, value in version] == [value for _, value in all_rows]
    assert len(part) == 2
    assert_mentions(split, f"{data_set}/other", "Unknown split")  # TFDS's own message
    assert_mentions(name, "tfds:no_such_set/train", "Dataset no_such_set not found")
    assert "\n" not in split + name
    # TFDS gives a sequence of objects as an object of lists.
    assert len(answers_by_prompt) == 5
    assert all(
        [(score, ranked) for _, score, _, ranked, _ in answers] == [(0, True), (-1, True)]
        for answers in answers_by_prompt
    )


@pytest.mark.parametrize("source", ["tfds:", "tfds:name", "tfds:/train", "tfds:name/"])
def test_a_data_set_of_tfds_has_a_split(source):
    assert_mentions(fault(source), "tfds:NAME/SPLIT")


def test_a_fault_inside_a_data_set_is_one_line(monkeypatch):
    def rows(name, split):
        assert (name, split) == ("set/config:1.0.0", "train")
        yield {"text": b"complete", "bad": b"\xff"}
        raise RuntimeError("record 1 is cut\nand more")

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(data_source=rows))
    records = read_records("tfds:set/config:1.0.0/train")
    assert next(records)[1] == {"text": "complete", "bad": "\udcff"}
    with pytest.raises(DataError, match=r"tfds:set/config:1\.0\.0/train\b.*record 1 is cut"):
        next(records)


def test_a_data_set_of_the_hub(monkeypatch):
    calls = []

    def load_dataset(name, *config, split):
        calls.append((name, *config, split))
        if split == "other":
            raise ValueError("Unknown split\nand more")
        return ROWS

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert values("hf:owner/name/train") == ROWS
    assert list(read_records("hf:owner/name/config/train"))[1] == ("hf:owner/name/config/train row 2", ROWS[1])
    assert calls == [("owner/name", "train"), ("owner/name", "config", "train")]
    assert_mentions(fault("hf:owner/name/other"), "hf:owner/name/other", "Unknown split")


@pytest.mark.parametrize("source", ["hf:", "hf:name", "hf:owner/name", "hf:/name/train", "hf:a/b/c/d/e", "hf:a//train"])
def test_a_data_set_of_the_hub_has_an_owner_and_a_split(source):
    assert_mentions(fault(source), "hf:OWNER/NAME/SPLIT")


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert_mentions(fault("hf:owner/name/train"), "hf:owner/name/train", "datasets")

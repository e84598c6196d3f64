"""What the comparisons count by hand, and that both sides are given the same."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks import cases, roofline
from benchmarks.side_by_side import dpo_settings, fastest

STUB = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from benchmarks.side_by_side import serve
serve({"add": lambda case: lambda: {"sum": case["a"] + case["b"]}}, {"stub": "1"})
"""


def test_prompts_and_pairs_are_the_same_for_whoever_asks():
    assert cases.prompts("tiny", 3, 8, 5) == cases.prompts("tiny", 3, 8, 5)
    ids = cases.prompts("tiny", 3, 8, 5)
    assert len({tuple(x[:5]) for x in ids}) == 1
    assert len({tuple(x) for x in ids}) == 3
    (pair,) = cases.pairs("tiny", 1, 4, 6)
    assert {name: len(x) for name, x in pair.items()} == {"prompt": 4, "chosen": 6, "rejected": 6}
    assert pair["chosen"] != pair["rejected"]


def test_bytes_and_flops_are_counted_by_hand(monkeypatch):
    monkeypatch.setitem(cases.SHAPES, "two", (10, 4, 2, 2, 1, 2, 8))
    # A layer: wq and wo 4 x 4 each, wk and wv 4 x 2 each, three of 4 x 8; the head 4 x 10.
    layers, head = 2 * (2 * 16 + 2 * 8 + 3 * 32), 40
    assert roofline.matrices("two") == (layers, head)
    size, flops = roofline.drawing("two", 3, kept=30, looked_at=10, dtype="float32")
    assert size == 4 * (layers + head + 30 * 2 * 2 * 2)  # keys and values, 2 layers, 1 head of 2
    assert flops == 2 * 3 * (layers + head + 10 * 2 * 2 * 4)  # two products, 2 layers, 2 heads of 2
    assert roofline.drawing("two", 3, 30, 10, "bfloat16")[0] == size / 2
    # Two tokens after one: 2 + 3 are looked at.
    read = 2 * 2 * layers + 2 * 5 * 2 * 2 * 4
    assert roofline.reading("two", 1, 2, before=1, wanted=2) == read
    # Of the first, in the second layer, keys and values alone, 4 x 2 each; and it looks at none of its two there.
    spared = 2 * (layers / 2 - 2 * 8) + 2 * 2 * 2 * 4
    assert roofline.reading("two", 1, 2, before=1) == read - spared
    first = 2 * layers + 2 * 2 * 2 * 4  # one token, which looks at itself
    assert roofline.training("two", 1, 1, 2, 2) == 3 * (first + 2 * read + 2 * head * 4)


def test_a_worker_answers_one_line_for_each():
    reading, writing = os.pipe()
    asked = [{"task": "add", "case": {"a": 2, "b": 3}, "run": False}, {"run": True}]
    asked += [{"task": "add", "case": {"a": 2, "b": 4}}]
    done = subprocess.run(
        [sys.executable, "-c", STUB, str(ROOT)],
        input="".join(json.dumps(x) + "\n" for x in asked),
        env=os.environ | {"REPLIES": str(writing)},
        pass_fds=[writing],
        text=True,
        capture_output=True,
    )
    os.close(writing)
    assert done.returncode == 0, done.stderr
    with os.fdopen(reading) as replies:
        assert [json.loads(line) for line in replies] == [{"stub": "1"}, {}, {"sum": 5}, {"sum": 6}]


@pytest.mark.parametrize("shape", cases.SHAPES)
def test_shapes_are_those_of_their_names(shape):
    V, D, L, N, K, H, F = cases.SHAPES[shape]
    count = V * D * (1 if shape in cases.TIED else 2) + L * (D * H * (2 * N + 2 * K) + 3 * D * F + 2 * D) + D
    published = {"135m": 134_515_008, "1b": 1_235_814_400, "8b": 8_030_261_248}
    assert count == ({"tiny": 392_352, "6.5m": 6_450_432} | published)[shape]


def test_the_only_setting_is_not_tried():
    assert fastest(None, "add", {}, [{"n": 3}]) == {"n": 3}


def test_the_setting_with_the_fastest_median_is_kept():
    class Worker:
        seconds = {"erratic": iter([0.5, 2.0, 2.0] * 2), "steady": iter([1.0] * 6)}

        def ask(self, run=False, task="", case=None):
            if run:
                return {"seconds": next(self.seconds[self.setting])}
            self.setting = case["n"]
            return {"seconds": 1.0}

    assert fastest(Worker(), "add", {}, [{"n": "erratic"}, {"n": "steady"}]) == {"n": "steady"}


def test_what_is_tried_of_a_dpo_step_is_in_the_dtypes_asked_for():
    assert dpo_settings(["float32"], ["float32"]) == ([{"dtype": "float32"}], [{"dtype": "float32", "autocast": False}])
    ours, theirs = dpo_settings(["bfloat16"], ["bfloat16"])
    assert (len(ours), len(theirs)) == (1, 2)
    assert len(dpo_settings(["float32"], ["float32", "bfloat16"])[1]) == 3

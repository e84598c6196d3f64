"""Benchmarks: bytes and FLOPs counted by hand, and that both sides run the same cases."""

import json
import os
import subprocess
import sys
from fnmatch import fnmatch

import pytest
from conftest import ROOT, micro

from benchmarks import cases, roofline, seeds_table, variants
from benchmarks.artifacts import fork
from benchmarks.side_by_side import fastest_setting, training_settings
from selfreward_jax import loop
from selfreward_jax.runs.run import open_run
from selfreward_jax.stages.table import TABLE

STUB = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from benchmarks.side_by_side import serve
serve({"add": lambda case: lambda: {"sum": case["a"] + case["b"]}}, {"stub": "1"})
"""


def test_the_report_benchmark_gives_the_page_all_that_it_shows():
    pytest.importorskip("playwright")
    code = "from benchmarks import report; print(report.report.render(*report.page_inputs(2))[:15])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().lower() == "<!doctype html>", done.stderr


def test_prompts_and_pairs_are_deterministic():
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
    assert roofline.matmul_params("two") == (layers, head)
    size, flops = roofline.decode_cost("two", 3, cached_tokens=30, attended_tokens=10, dtype="float32")
    assert size == 4 * (layers + head + 30 * 2 * 2 * 2)  # keys and values, 2 layers, 1 head of 2
    assert flops == 2 * 3 * (layers + head + 10 * 2 * 2 * 4)  # two products, 2 layers, 2 heads of 2
    assert roofline.decode_cost("two", 3, 30, 10, "bfloat16")[0] == size / 2
    # Two tokens after one attend to 2 + 3 tokens.
    full = 2 * 2 * layers + 2 * 5 * 2 * 2 * 4
    assert roofline.prefill_flops("two", 1, 2, before=1, wanted=2) == full
    # The first token needs only keys and values in the last layer, 4 x 2 each, and attends to none of its two there.
    saved = 2 * (layers / 2 - 2 * 8) + 2 * 2 * 2 * 4
    assert roofline.prefill_flops("two", 1, 2, before=1) == full - saved
    first = 2 * layers + 2 * 2 * 2 * 4  # one token, which attends to itself
    assert roofline.training_flops("two", 1, 1, 2, 2) == 3 * (first + 2 * full + 2 * head * 4)


def test_a_worker_replies_with_one_line_per_request():
    reading, writing = os.pipe()
    requests = [{"task": "add", "case": {"a": 2, "b": 3}, "run": False}, {"run": True}]
    requests += [{"task": "add", "case": {"a": 2, "b": 4}}]
    done = subprocess.run(
        [sys.executable, "-c", STUB, str(ROOT)],
        input="".join(json.dumps(x) + "\n" for x in requests),
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
def test_shapes_have_the_published_parameter_counts(shape):
    V, D, L, N, K, H, F = cases.SHAPES[shape]
    norms = 4 * D + 2 * H if shape in cases.GEMMA3 else 2 * D
    count = V * D * (1 if shape in cases.TIED else 2) + L * (D * H * (2 * N + 2 * K) + 3 * D * F + norms) + D
    published = {
        "135m": 134_515_008,
        "gemma3_270m": 268_098_176,
        "gemma3_270m_cut": 121_297_536,
        "1b": 1_235_814_400,
        "8b": 8_030_261_248,
    }
    assert count == ({"tiny": 392_352, "6.5m": 6_450_432} | published)[shape]


def test_a_single_candidate_is_not_timed():
    assert fastest_setting(None, "add", {}, [{"n": 3}]) == {"n": 3}


def test_the_setting_with_the_fastest_median_is_chosen():
    class Worker:
        seconds = {"erratic": iter([0.5, 2.0, 2.0] * 2), "steady": iter([1.0] * 6)}

        def request(self, run=False, task="", case=None):
            if run:
                return {"seconds": next(self.seconds[self.setting])}
            self.setting = case["n"]
            return {"seconds": 1.0}

    assert fastest_setting(Worker(), "add", {}, [{"n": "erratic"}, {"n": "steady"}]) == {"n": "steady"}


def test_training_settings_have_the_given_dtypes():
    assert training_settings(["float32"], ["float32"]) == (
        [{"dtype": "float32", "remat": "none"}, {"dtype": "float32", "remat": "dots"}],
        [{"dtype": "float32", "autocast": False}],
    )
    ours, theirs = training_settings(["bfloat16"], ["bfloat16"])
    assert (len(ours), len(theirs)) == (2, 2)
    assert len(training_settings(["float32"], ["float32", "bfloat16"])[1]) == 3


def decided(reused, field):
    """What of the reused artifacts a setting decides. No arm has the judgments of an SFT baseline as EFT."""
    patterns = [p for p in TABLE.dependents(field) if p != "seed/eft_judgments.*"]
    names = [name if "/" in name else f"{name}/*" for name in reused]
    return [name for name in names for p in patterns if fnmatch(name, p) or ("*" in name and fnmatch(p, name))]


@pytest.mark.parametrize("benchmark", ["effect", "real", "variants"])
def test_no_arm_reuses_what_its_settings_decide(benchmark):
    """Else its run is refused, or makes again what it was given."""
    code = """
import importlib, json, sys
from selfreward_jax.config.comments import flatten_config
module = importlib.import_module(f"benchmarks.{sys.argv[1]}")
if sys.argv[1] == "effect":
    def settings(arm):
        return flatten_config(module.arm_config(arm, 0, "heldout"))
    arms = {name: (arm.reused, settings(arm)) for name, arm in module.ARMS.items()}
elif sys.argv[1] == "variants":
    config = lambda name: flatten_config(module.variant_config(name, 0, 3, "heldout"))
    arms = {name: (module.M1 if v.of else (), config(name), v.of) for name, v in module.VARIANTS.items()}
else:
    def settings(changes):
        c = module.get_config()
        c.update_from_flattened_dict(changes)
        return flatten_config(c)
    arms = {name: (module.M0 if name == "lora" else module.M1, settings(arm)) for name, arm in module.ARMS.items()}
print(json.dumps(arms))
"""
    done = subprocess.run([sys.executable, "-c", code, benchmark], cwd=ROOT, capture_output=True, text=True)
    arms = json.loads(done.stdout or "{}")
    assert len(arms) > 4, done.stderr
    for name, (reused, settings, *of) in arms.items():
        base = arms[of[0] or name if of else "self"][1]
        changed = {field for field, value in settings.items() if value != base[field]} - {"iterations", "sft_baseline"}
        if name != "self":
            assert [(name, field) for field in changed if decided(reused, field)] == []


@pytest.mark.slow
def test_an_arm_goes_on_from_the_models_of_another_run(finished_run, tmp_path):
    workdir = tmp_path / "arm"
    (workdir / "m1").mkdir(parents=True)
    (workdir / "m1" / "half.txt").write_text("of an interrupted copy")
    reused = ("seed", "tokenizer", "m0", "m1/checkpoint", "m1/checkpoint.json", "m1/manifest.json")
    for _ in range(2):  # the second time nothing is copied
        fork(finished_run, workdir, reused, 2)
        cfg = micro(2)
        cfg.judge.kind, cfg.dpo.beta = "random", 0.3
        loop.run(cfg, str(workdir), allow_config_changes=True)
    made, given = (open_run(str(path)).files for path in (workdir, finished_run))
    assert made.weights_fingerprint("m1") == given.weights_fingerprint("m1")
    assert made.weights_fingerprint("m2") != given.weights_fingerprint("m2")
    assert not (workdir / "m1" / "half.txt").exists()


def test_a_run_that_stopped_before_its_pairs_is_in_the_table():
    stopped = {
        "models": {},
        "rounds": {"m2": {"pairs": None}},
        "seconds": 1.0,
        "peak_memory_bytes": 2e9,
        "stopped": "x",
    }
    metrics = seeds_table.table_metrics({**stopped, "stopped": "x"})
    assert metrics == {"seconds": 1.0, "peak GB": 2.0, "stopped": "x"}
    assert "seed 3 stopped: x" in seeds_table.table({"plain": {3: metrics}})


def test_votes_are_replaced_by_random_ones():
    rows = [{"id": f"m2/0/{i}", "votes": [{"text": "x", "finished": True, "score": 9.0}] * 3} for i in range(2000)]
    noisy = variants.replace_votes(rows, 0.3, "0 m2 noise")
    assert [row["id"] for row in noisy] == [row["id"] for row in rows]
    scores = [vote["score"] for row in noisy for vote in row["votes"]]
    replaced = [score for score in scores if score != 9.0]
    assert len(replaced) / len(scores) == pytest.approx(0.3, abs=0.02)
    assert sum(replaced) / len(replaced) == pytest.approx(2.5, abs=0.1)
    assert set(replaced) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
    assert noisy[0]["score"] == pytest.approx(sum(scores[:3]) / 3)
    assert noisy == variants.replace_votes(rows, 0.3, "0 m2 noise")

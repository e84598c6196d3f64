"""Checks of a round's rows: a round that fails one is not trained on."""

import json
import math
import re
import shutil

import pytest
from conftest import assert_mentions, ended, micro
from hypothesis import given
from hypothesis import strategies as st
from test_loop import contents

from selfreward_jax import config, loop
from selfreward_jax.cli import report as cli_report
from selfreward_jax.method import hacks, round_checks
from selfreward_jax.method.judge_parsing import PARSERS
from selfreward_jax.stages import StageError

LIMITS = config.get_config().checks.to_dict()


def judgment(name, *votes):
    parsed = [v for v in votes if v is not None]
    score = sum(parsed) / len(parsed) if parsed else None
    return {"id": name, "score": score, "votes": [{"score": v, "finished": True} for v in votes]}


def scored_prompts(*scores):
    return [{"id": str(i), "candidates": [{"score": s} for s in row]} for i, row in enumerate(scores)]


def test_judge_metrics_by_hand():
    judgments = [judgment("0/0", 5, 4, None), judgment("0/1", 2, 2, 2), judgment("1/0", 2, 2, 2)]
    judgments += [judgment("1/1", None, None, None)]
    probes = [
        judgment("0/empty", 1, 1),
        judgment("1/empty", 2, 2),
        judgment("0/mark", 4, 4),
        judgment("1/mark", None),
    ]
    metrics = round_checks.judge_metrics(judgments, scored_prompts([4.5, 2], [2, None], [3, 3], [1, 2, 4]), probes)
    assert metrics["parse_rate"] == 8 / 12
    assert metrics["votes_per_answer"] == 2
    assert metrics["unscored"] == 1 / 4
    assert metrics["ties"] == 1 / 3  # of the prompts with two scores, that with 3 and 3
    assert metrics["one_score"] == 2 / 3
    assert metrics["spread"] == pytest.approx((2.5 + 0 + 3) / 3)
    assert metrics["probes"] == {"empty": 1.5, "mark": 4.0}
    assert metrics["probe_lead"] == pytest.approx(2.75 - 8.5 / 3)
    assert metrics["histogram"] == {"2": 6, "4": 1, "5": 1}


def test_metrics_without_rows_violate_nothing():
    metrics = round_checks.judge_metrics([], [], [])
    assert metrics["parse_rate"] is metrics["ties"] is metrics["probe_lead"] is None
    others = {
        "hack_gain": hacks.largest_gain(hacks.effect_on_scores([]).gains),
        "truncated": None,
        "length_growth": round_checks.length_growth([], []),
        "repeats": 0.0,
        "leaks": round_checks.leak_rate([], ["a"], ["b"]),
    }
    assert round_checks.violations(metrics | others, LIMITS) == []


def test_probes_have_no_content():
    rows = round_checks.probes([{"id": "m2/7", "prompt": "Name a bird."}], "points")
    assert [(row["id"], row["response"]) for row in rows] == [
        ("m2/7/empty", ""),
        ("m2/7/mark", ":"),
        ("m2/7/verdict", "Score: 5"),
        ("m2/7/prompt", "Name a bird."),
    ]
    assert {row["prompt"] for row in rows} == {"Name a bird."}
    for output_format, parse in PARSERS.items():
        assert parse(round_checks.probes([{"id": "x", "prompt": "p"}], output_format)[2]["response"]) == 5


def test_length_growth_is_a_ratio_of_means():
    rows = [{"response": "a" * n} for n in (10, 30)]
    assert round_checks.length_growth(rows, [{"response": "b" * 8}]) == 2.5
    assert round_checks.length_growth(rows, [{"response": ""}]) == 20


HELD_OUT = "Write a short poem about rain"


@pytest.mark.parametrize(
    ("prompt", "leaked"),
    [
        ("Name three kinds of birds.", False),
        ("name THREE birds!", True),  # a few-shot example
        ("Name three birds and two fish.", False),  # longer than the example
        (f"{HELD_OUT}.", True),
        (f"Please {HELD_OUT.lower()}, and then another", True),
        ("Write a short poem about rainbows", False),
        ("hello there, write a song", False),  # contains a held-out prompt that is too short to count
    ],
)
def test_a_leak_repeats_an_example_or_contains_a_held_out_prompt(prompt, leaked):
    rows = [{"prompt": prompt}, {"prompt": "something else entirely"}]
    assert round_checks.leak_rate(rows, ["Name three birds"], [HELD_OUT, "hello there", ""]) == leaked / 2


@given(st.lists(st.text(max_size=30), max_size=4), st.lists(st.text(max_size=30), max_size=4))
def test_leak_rate_accepts_any_text(prompts, held_out):
    rate = round_checks.leak_rate([{"prompt": p} for p in prompts], held_out, held_out)
    assert rate is None if not prompts else 0 <= rate <= 1


HEALTHY = {
    "parse_rate": 1.0,
    "votes_per_answer": 3.0,
    "unscored": 0.0,
    "ties": 0.1,
    "one_score": 0.3,
    "spread": 2.0,
    "probe_lead": -2.0,
    "hack_gain": 0.1,
    "truncated": 0.2,
    "length_growth": 1.1,
    "repeats": 0.0,
    "leaks": 0.0,
}


def test_every_check_has_a_limit_and_a_metric():
    assert {limit.split("_", 1)[1] for limit in round_checks.CHECKS} == HEALTHY.keys()
    assert set(round_checks.CHECKS) == {name for name in LIMITS if not name.startswith("num_") and name != "max_fall"}
    assert round_checks.violations(HEALTHY, LIMITS) == []


@pytest.mark.parametrize("limit", round_checks.CHECKS)
def test_each_check_fails_beyond_its_limit_and_not_at_it(limit):
    side, name = limit.split("_", 1)
    beyond = math.nextafter(LIMITS[limit], -math.inf if side == "min" else math.inf)
    assert round_checks.violations(HEALTHY | {name: LIMITS[limit]}, LIMITS) == []
    for value in (beyond, math.nan):
        (violation,) = round_checks.violations(HEALTHY | {name: value}, LIMITS)
        assert_mentions(violation, name, f"checks.{limit}", f"{LIMITS[limit]:.3g}")


# --- in a run ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_violation_stops_before_training_and_the_limit_can_be_changed(finished_run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    for name in ("ref_logprobs.json", "manifest.json", "checkpoint.json", "checks.json"):
        (workdir / "m2" / name).unlink()
    shutil.rmtree(workdir / "m2" / "checkpoint")
    cfg = micro(2)
    cfg.checks.min_spread = 4.5
    with pytest.raises(StageError, match=r"\bm2\b.*\bspread\b.*checks\.min_spread\b.*\b4\.5\b"):
        loop.run(cfg, str(workdir))
    metrics = json.loads((workdir / "m2" / "checks.json").read_text())
    assert metrics["spread"] < 4.5
    assert metrics["probes"].keys() <= {"empty", "mark", "verdict", "prompt"}
    assert not (workdir / "m2" / "ref_logprobs.json").exists()
    report = (workdir / "report.html").read_text()
    assert f'<td class="warn">{metrics["spread"]:.3f}<br><span class="sign bad">✗ beyond</span></td>' in report
    assert '<span class="sign bad">✗ beyond</span> <b>3 of 4, 8 off</b>' in report
    assert report.count('class="warn"') == 2  # there, and in the error message at the top
    assert re.search(r'class="warn">[^<]*checks\.min_spread\b[^<]*\b4\.5\b', report)
    assert ended(cli_report, f"--workdir={workdir}") == (0, "")
    assert re.search(r'class="warn">[^<]*checks\.min_spread\b[^<]*\b4\.5\b', (workdir / "report.html").read_text())
    loop.run(micro(2), str(workdir))
    assert 'class="warn"' not in (workdir / "report.html").read_text()
    assert contents(workdir) == contents(finished_run)
    failed, passed = re.split(r"\bm2 checks: 3 of 3\b", capsys.readouterr().err)
    assert re.search(r"\bm2 checks: 3 of 4\b", failed)
    assert re.search(rf"FAIL +spread +{metrics['spread']:.3g} +min 4.5\n", failed)
    assert re.search(rf"off +spread +{metrics['spread']:.3g} +min 0\n", passed)
    assert "FAIL" not in passed
    cfg.checks.max_ties = 0.0  # a model that is trained already is not checked again
    loop.run(cfg, str(workdir))
    assert json.loads((workdir / "summary.json").read_text())["rounds"]["m2"]["checks"]["spread"] == metrics["spread"]


def test_probes_are_judged_like_answers(finished_run):
    prompts = [json.loads(line) for line in (finished_run / "m2" / "prompts.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (finished_run / "m2" / "probes.jsonl").read_text().splitlines()]
    assert [r["id"] for r in rows] == [f"{prompts[0]['id']}/{k}" for k in ("empty", "mark", "verdict", "prompt")]
    assert all(len(r["votes"]) == micro(2).judge.num_samples for r in rows)

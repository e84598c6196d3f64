"""Each second is counted once, and what a kill took is told."""

import itertools
import json
import re

import pytest
from conftest import assert_mentions, ended
from etils import epath

from selfreward_jax.cli import explain
from selfreward_jax.parallel import processes
from selfreward_jax.report import time_report
from selfreward_jax.telemetry import compile_cache, timing


class Clock:
    """A clock that goes on when it is told to, and what others count in that time."""

    def __init__(self, monkeypatch):
        self.now, self.compiling, self.waiting = 100.0, 3.0, 1.0
        monkeypatch.setattr(timing.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(compile_cache, "count", lambda: compile_cache.CompileCount(0, 0, self.compiling))
        monkeypatch.setattr(processes, "waited", lambda: self.waiting)
        timing.restart()

    def pass_by(self, seconds, compiling=0.0, waiting=0.0):
        self.now += seconds
        self.compiling += compiling
        self.waiting += waiting


@pytest.fixture
def clock(monkeypatch):
    yield Clock(monkeypatch)
    monkeypatch.undo()
    timing.restart()


@pytest.mark.parametrize("compiling", [-7200.0, 7200.0])
def test_a_clock_that_is_set_while_something_compiles_changes_no_total(clock, compiling):
    timing.begin_stage("m2 dpo")
    clock.pass_by(5, compiling=compiling)
    timing.end_stage("m2 dpo")
    timing.commit()
    assert sum(s for line in timing.drain() for kinds in line["spent"].values() for s in kinds.values()) == 5


def test_time_goes_to_the_stage_and_to_what_is_done_in_it(clock):
    clock.pass_by(1)
    timing.begin_stage("m2 dpo")
    clock.pass_by(10, compiling=4, waiting=1)
    with timing.timed("loading"):
        clock.pass_by(2)
        with timing.timed("saving"):
            clock.pass_by(3)
    timing.begin_stage("m2 early_5_answers")
    clock.pass_by(7)
    timing.end_stage("m2 early_5_answers")
    clock.pass_by(0.5)
    timing.end_stage("m2 dpo")
    clock.pass_by(0.25)
    timing.commit()
    first, second = timing.drain()
    assert first == {"kept": True, "spent": {"": {"": 1.25}}}
    assert second["spent"] == {
        "m2 dpo": {"": 5.5, "compiling": 4, "waiting": 1, "loading": 2, "saving": 3},
        "m2 early_5_answers": {"": 7},
    }
    assert timing.drain() == []


def test_a_stage_that_broke_off_is_over_when_the_one_around_it_is(clock):
    timing.begin_stage("outer")
    timing.begin_stage("inner")
    timing.end_stage("outer")
    timing.end_stage("inner")  # which is not there any more
    clock.pass_by(1)
    (line,) = timing.drain()
    assert line["spent"] == {"": {"": 1}}


def test_compiling_in_another_thread_takes_no_more_time_than_there_was(clock):
    clock.pass_by(2, compiling=5, waiting=1)
    (line,) = timing.drain()
    assert line["spent"] == {"": {"compiling": 2}}


def log(*events):
    return [{"time": float(i), **event} for i, event in enumerate(events)]


def test_what_was_not_kept_when_a_process_ended_is_lost():
    begins = {"begins": True}
    found = time_report.summarize(
        log(
            begins,
            {"kept": True, "spent": {"": {"": 1.0}, "m1 sft": {"": 5.0, "saving": 1.0}}},
            {"kept": False, "spent": {"m1 sft": {"": 3.0, "compiling": 0.5}}},
            {"step": 3, "loss": 1.0},
            {"kept": True, "spent": {"m1 sft": {"": 2.0}}},  # and with it what came before
            {"kept": False, "spent": {"m1 sft": {"": 7.0}, "": {"": 0.5}}},
            begins,
            {"kept": True, "spent": {"m1 sft": {"": 8.0}}, "peak_memory_bytes": 7},
            {"kept": False, "spent": {"m1 eval_judgments": {"": 4.0, "waiting": 2.0}}},
            {"kept": True, "spent": {"m1 eval_judgments": {"": 1.0}}},
            {"kept": False, "spent": {"m2 prompts": {"": 0.125}}},
        )
    )
    assert found == {
        "starts": 2,
        "peak_memory_bytes": 7,
        "stages": {
            "": {"other": 1.0},
            "m1 sft": {"training": 18.0, "compiling": 0.5, "saving": 1.0},
            "m1 eval_judgments": {"judging": 5.0, "waiting": 2.0},
        },
        "lost": {"m1 sft": {"training": 7.0}, "": {"other": 0.5}, "m2 prompts": {"sampling": 0.125}},
    }
    assert time_report.totals(found["stages"])["training"] == 18.0
    assert re.findall(r"[\d.]+", time_report.line(found))[-2:] == ["7.6", "2"]
    lines = time_report.table(found)
    assert {len(line) for line in lines[:-1]} == {len(lines[0])}


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        ("m0 base", "training"),
        ("m2 dpo", "training"),
        ("m2 prompts", "sampling"),
        ("m1 eval_answers", "sampling"),
        ("m1 eval_answers_judged", "judging"),
        ("seed eft_judgments", "judging"),
        ("m2 canaries", "judging"),
        ("m0 init", "other"),
        ("", "other"),
    ],
)
def test_what_a_stage_does_is_told_by_its_name(stage, kind):
    assert time_report.stage_kind(stage) == kind


def test_the_log_of_a_run_tells_of_all_its_time(finished_run, capsys):
    found = time_report.read(epath.Path(finished_run))
    assert found["starts"] == 1
    assert {"m0 base", "m1 sft", "m2 prompts", "m2 candidates", "m2 judgments", "m2 canaries", "m2 dpo"} <= set(
        found["stages"]
    )
    summary = json.loads((finished_run / "summary.json").read_text())
    in_all = sum(summary["time"]["kinds"].values())
    assert in_all == pytest.approx(summary["seconds"], rel=0.05, abs=1.0)
    assert sum(time_report.totals(found["lost"]).values()) < 1.0
    assert summary["time"]["kinds"].keys() >= {"training", "sampling", "judging", "saving", "loading"}
    assert ended(explain, f"--workdir={finished_run}", "--time") == (0, "")
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[1:] == [*time_report.KINDS]
    assert re.findall(r"\d+", said[-1]) == ["1"]


def test_torn_lines_are_passed_over(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"begins": true}\n{"kept": true, "spent": {"": {"": 2}}}\n17\n{"kept": tr')
    assert time_report.read(epath.Path(tmp_path))["stages"] == {"": {"other": 2}}


def test_no_run_is_said_on_one_line(tmp_path):
    code, said = ended(explain, f"--workdir={tmp_path}", "--time")
    assert code == 2
    assert_mentions(said, tmp_path)


def test_lines_of_a_long_stage_add_up(clock):
    timing.begin_stage("m1 sft")
    lines = []
    for step in itertools.islice(itertools.count(1), 10):
        clock.pass_by(1)
        if step % 4 == 0:
            timing.commit()
        lines += timing.drain()
    found = time_report.summarize([{"begins": True}, *lines])
    assert found["stages"] == {"m1 sft": {"training": 8.0}}
    assert found["lost"] == {"m1 sft": {"training": 2.0}}

"""Each second is counted once, and what a kill has cost is reported."""

import itertools
import json
import re

import pytest
from conftest import assert_mentions, ended
from etils import epath

from selfreward_jax.cli import explain
from selfreward_jax.parallel import processes
from selfreward_jax.report import time_report
from selfreward_jax.runs.log import EventLog, read_events
from selfreward_jax.stages.table import TABLE
from selfreward_jax.telemetry import compile_cache, timing


class Clock:
    """A clock that a test advances, with the seconds that other modules count meanwhile."""

    def __init__(self, monkeypatch):
        self.now, self.compiling, self.waiting = 100.0, 3.0, 1.0
        monkeypatch.setattr(timing.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(compile_cache, "count", lambda: compile_cache.CompileCount(0, 0, self.compiling))
        monkeypatch.setattr(processes, "wait_seconds", lambda: self.waiting)
        timing.restart()

    def advance(self, seconds, compiling=0.0, waiting=0.0):
        self.now += seconds
        self.compiling += compiling
        self.waiting += waiting


@pytest.fixture
def clock(monkeypatch):
    yield Clock(monkeypatch)
    monkeypatch.undo()
    timing.restart()


@pytest.mark.parametrize("compiling", [-7200.0, 7200.0])
def test_setting_the_clock_during_compilation_changes_no_total(clock, compiling):
    timing.begin_stage("m2 dpo")
    clock.advance(5, compiling=compiling)
    timing.end_stage("m2 dpo")
    timing.commit()
    assert sum(s for line in timing.drain() for kinds in line["seconds"].values() for s in kinds.values()) == 5


def test_seconds_are_counted_by_stage_and_kind(clock):
    clock.advance(1)
    timing.begin_stage("m2 dpo")
    clock.advance(10, compiling=4, waiting=1)
    with timing.timed("loading"):
        clock.advance(2)
        with timing.timed("saving"):
            clock.advance(3)
    timing.begin_stage("m2 early_5_answers")
    clock.advance(7)
    timing.end_stage("m2 early_5_answers")
    clock.advance(0.5)
    timing.end_stage("m2 dpo")
    clock.advance(0.25)
    timing.commit()
    first, second = timing.drain()
    assert first == {"committed": True, "seconds": {"": {"": 1.25}}}
    assert second["seconds"] == {
        "m2 dpo": {"": 5.5, "compiling": 4, "waiting": 1, "loading": 2, "saving": 3},
        "m2 early_5_answers": {"": 7},
    }
    assert timing.drain() == []


def test_the_end_of_a_stage_ends_the_stages_within_it(clock):
    timing.begin_stage("outer")
    timing.begin_stage("inner")
    timing.end_stage("outer")
    timing.end_stage("inner")  # has ended already
    clock.advance(1)
    (line,) = timing.drain()
    assert line["seconds"] == {"": {"": 1}}


def test_compiling_in_another_thread_takes_no_more_time_than_passed(clock):
    clock.advance(2, compiling=5, waiting=1)
    (line,) = timing.drain()
    assert line["seconds"] == {"": {"compiling": 2}}


def log(*events):
    return [{"time": float(i), **event} for i, event in enumerate(events)]


def test_what_was_not_committed_before_a_kill_is_lost():
    begins = {"begins": True}
    found = time_report.summarize(
        log(
            begins,
            {"committed": True, "seconds": {"": {"": 1.0}, "m1 sft": {"": 5.0, "saving": 1.0}}},
            {"committed": False, "seconds": {"m1 sft": {"": 3.0, "compiling": 0.5}}},
            {"step": 3, "loss": 1.0},
            {"committed": True, "seconds": {"m1 sft": {"": 2.0}}},  # also commits the seconds before
            {"committed": False, "seconds": {"m1 sft": {"": 7.0}, "": {"": 0.5}}},
            begins,
            {"committed": True, "seconds": {"m1 sft": {"": 8.0}}, "peak_memory_bytes": 7},
            {"committed": False, "seconds": {"m1 eval_judgments": {"": 4.0, "waiting": 2.0}}},
            {"committed": True, "seconds": {"m1 eval_judgments": {"": 1.0}}},
            {"committed": False, "seconds": {"m2 prompts": {"": 0.125}}},
        ),
        TABLE.kind_of,
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
    assert re.findall(r"[\d.]+", time_report.format_line(found))[-2:] == ["7.62", "2"]
    lines = time_report.format_table(found)
    assert {len(line) for line in lines[:-1]} == {len(lines[0])}


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        ("m0 pretrain", "training"),
        ("m2 dpo", "training"),
        ("m2 prompts", "sampling"),
        ("m1 eval_answers", "sampling"),
        ("m1 eval_answers_judged", "judging"),
        ("seed eft_judgments", "judging"),
        ("m2 probes", "judging"),
        ("m0 init", "other"),
        ("", "other"),
    ],
)
def test_the_kind_of_a_stage(stage, kind):
    assert TABLE.kind_of(stage) == kind


def test_the_log_of_a_run_covers_all_its_time(finished_run, capsys):
    found = time_report.read(epath.Path(finished_run), TABLE.kind_of)
    assert found["starts"] == 1
    assert {"m0 pretrain", "m1 sft", "m2 prompts", "m2 responses", "m2 judgments", "m2 probes", "m2 dpo"} <= set(
        found["stages"]
    )
    summary = json.loads((finished_run / "summary.json").read_text())
    total = sum(summary["time"]["kinds"].values())
    assert total == pytest.approx(summary["seconds"], rel=0.05, abs=1.0)
    assert sum(time_report.totals(found["lost"]).values()) < 1.0
    assert summary["time"]["kinds"].keys() >= {"training", "sampling", "judging", "saving", "loading"}
    assert ended(explain, f"--workdir={finished_run}", "--time") == (0, "")
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[1:] == [*time_report.KINDS]
    assert re.findall(r"\d+", table[-1]) == ["1"]


def test_what_follows_a_torn_line_is_not_lost_with_it(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"begins": true}\n{"step": 1, "lo')
    EventLog(epath.Path(tmp_path)).event(step=2)
    EventLog(epath.Path(tmp_path)).event(step=3)
    assert [event.get("step") for event in read_events(epath.Path(path))] == [None, 2, 3]


def test_torn_lines_are_skipped(tmp_path):
    (tmp_path / "events.jsonl").write_text(
        '{"begins": true}\n{"committed": true, "seconds": {"": {"": 2}}}\n17\n{"committed": tr'
    )
    assert time_report.read(epath.Path(tmp_path), TABLE.kind_of)["stages"] == {"": {"other": 2}}


def test_a_folder_without_a_run_is_refused_on_one_line(tmp_path):
    code, err = ended(explain, f"--workdir={tmp_path}", "--time")
    assert (code, err.count("\n")) == (2, 1)
    assert_mentions(err, tmp_path)


def test_events_of_a_long_stage_add_up(clock):
    timing.begin_stage("m1 sft")
    lines = []
    for step in itertools.islice(itertools.count(1), 10):
        clock.advance(1)
        if step % 4 == 0:
            timing.commit()
        lines += timing.drain()
    found = time_report.summarize([{"begins": True}, *lines], TABLE.kind_of)
    assert found["stages"] == {"m1 sft": {"training": 8.0}}
    assert found["lost"] == {"m1 sft": {"training": 2.0}}

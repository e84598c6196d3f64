"""What a run prints: figures of three digits, the time that is left, what is done already, and the last lines."""

import re
import shutil
import sys
import time

import pytest
from conftest import micro
from etils import epath

from selfreward_jax import config
from selfreward_jax.data import eft
from selfreward_jax.method import judge, pairs
from selfreward_jax.report import closing, status
from selfreward_jax.runs.run import make_run
from selfreward_jax.stages.table import TABLE
from selfreward_jax.storage.artifacts import encode_crc
from selfreward_jax.telemetry import progress, schedule, terminal
from selfreward_jax.telemetry.numbers import counted, counts, duration, three_digits
from selfreward_jax.telemetry.schedule import PlannedStep, Schedule


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9925.0, "9,920"),
        (9935.0, "9,940"),
        (0.1 + 0.2, "0.3"),
        (999.6, "1,000"),
        (1234567.0, "1,230,000"),
        (104.2, "104"),
        (-1234.5, "-1,230"),
        (0.00575123, "0.00575"),
        (0.0, "0"),
        (12, "12"),
        (1e-5 / 3, "3.33e-06"),
        (float("inf"), "inf"),
        (float("nan"), "-"),
        (None, "-"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert three_digits(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0.0 s"),
        (1.64, "1.6 s"),
        (9.96, "10 s"),
        (99.4, "99 s"),
        (99.6, "1 min 40 s"),
        (120, "2 min"),
        (599.6, "10 min"),
        (5999, "1 h 40 min"),
        (7200, "2 h"),
        (12_000, "3 h 20 min"),
        (450_000, "5.21 days"),
    ],
)
def test_durations_have_units(seconds, text):
    assert duration(seconds) == text


def test_counts_are_words_and_not_a_dictionary():
    assert counts({"too short": 1200, "duplicate": 0, "same_text": 1}) == "1,200 too short, 1 same text"
    assert counts({"duplicate": 0}) == "none"
    assert [counted(n, "row") for n in (0, 1, 1200)] == ["0 rows", "1 row", "1,200 rows"]
    outcomes = {"pairs": 5, "tied": 2, "unscored": 0, "same_text": 1}
    assert pairs.format_outcomes(outcomes) == "5 pairs of 8 prompts, 2 with no higher score, 1 with equal texts"
    built = {"prompts": 3, "answers": 1200, "disagree": 0, "agree": 2, "kept": 7, "scores": {"4": 7}, "scores_kept": {}}
    words = "3 prompts, 1,200 answers, 2 prompts agree with the human order, 7 rows kept"
    assert eft.format_counts(built) == words


def test_the_judge_is_shown_in_words_and_a_table():
    row = {"id": "a", "score": 2.0, "variance": 1.0, "tokens": 9}
    votes = [{"text": "", "finished": s is not None, "score": s} for s in (1.0, 3.0, None)]
    stats = judge.judge_stats([{**row, "votes": votes}])
    assert judge.format_stats(stats) == "3 votes on 1 answer, 66.7 % parsed, 1 cut off at max_new_tokens"
    head, numbers = judge.format_histogram(stats)
    assert head.split() == ["score", "0", "1", "2", "3", "4", "5"]
    assert numbers.split() == ["votes", "0", "1", "0", "1", "0", "0", "spread", "1"]
    assert judge.format_histogram(judge.judge_stats([])) == []


# --- the time that is left -----------------------------------------------------------------------------------------


class Clock:
    """The time of a progress, which a test sets."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    schedule.start(Schedule())
    yield Clock(monkeypatch)
    schedule.start(Schedule())


def test_the_first_batch_measures_nothing(clock, capsys):
    stage = progress.Progress("m2 judgments", 100)
    clock.now += 60  # compiling
    stage.add(10, 1000)
    assert stage.seconds_left() == (None, None)
    assert capsys.readouterr().err == "m2 judgments: 10/100 rows\n"
    clock.now += 10
    stage.add(20, 1234)
    # 20 rows and 1234 tokens in 10 s: 70 rows take 35 s.
    assert stage.seconds_left() == (35.0, None)
    assert capsys.readouterr().err == "m2 judgments: 30/100 rows, 123 tokens/s, 35 s left\n"
    clock.now += 9
    stage.add(1, 1)
    assert capsys.readouterr().err == ""  # a line every 10 s
    clock.now += 100  # saving
    stage.close("done")
    assert capsys.readouterr().err == "m2 judgments: 31 rows, 65 tokens/s, 2 min 59 s, done\n"


def test_rows_of_an_earlier_start_are_no_pace(clock, capsys):
    stage = progress.Progress("m2 judgments", 100, done_before=90)
    stage.add(2)
    clock.now += 6
    stage.add(2)
    assert stage.seconds_left()[0] == 18.0  # 6 rows at 3 s each
    stage.close()
    assert capsys.readouterr().err == "m2 judgments: 94 rows (4 of them now), 6.0 s\n"


def test_a_long_silence_is_explained(monkeypatch, capsys):
    monkeypatch.setattr(progress.Progress, "LINE_EVERY", 0.05)
    stage = progress.Progress("m2 judgments", 1000, 20)
    deadline = time.monotonic() + 30
    err = ""
    while not err and time.monotonic() < deadline:
        time.sleep(0.02)
        err += capsys.readouterr().err
    assert err == "m2 judgments: compiling, 20/1,000 rows\n"
    stage.close()
    monkeypatch.setattr(progress.Progress, "LINE_EVERY", 0.3)
    stage = progress.Progress("m2 judgments", 1000)
    stage.add(1)
    capsys.readouterr()
    time.sleep(0.6)
    assert capsys.readouterr().err == ""
    stage.close()


STEPS = (
    PlannedStep("m1 sft", "training", None, True),
    PlannedStep("m1 eval_answers", "sampling", 1000.0, False),
    PlannedStep("m1 eval_judgments", "judging", 4000.0, False),
    PlannedStep("m2 prompts", "sampling", 500.0, False),
    PlannedStep("m2 responses", "sampling", 3000.0, False),
    PlannedStep("m2 chosen", "sampling", 0.0, False),
    PlannedStep("m2 dpo", "training", 30.0, False),
    PlannedStep("m2 eval_answers", "sampling", 1000.0, False),
    PlannedStep("m2 eval_judgments", "judging", 4000.0, False),
)


def test_the_time_of_the_run_follows_from_measured_rates():
    plan = Schedule(STEPS)
    plan.measured("m1 eval_answers", 20.0)
    assert plan.seconds_after("m1 eval_answers") is None  # no training was measured
    plan.measured("m1 sft", 90.0, steps=45)
    # 20 ms a token, also for judgments, and 2 s a step; answers take as long as before
    assert plan.seconds_after("m1 eval_answers") == pytest.approx(80 + 10 + 60 + 60 + 20 + 80)
    plan.measured("m1 eval_judgments", 40.0)
    assert plan.seconds_after("m1 eval_answers") == pytest.approx(40 + 10 + 60 + 60 + 20 + 40)
    assert plan.seconds_after("m1 eval_judgments") == pytest.approx(10 + 60 + 60 + 20 + 40)
    plan.measured("m2 prompts", 15.0)
    # Sampling has taken 35 s for 1500 tokens.
    assert plan.seconds_after("m2 prompts") == pytest.approx(70 + 60 + 20 + 40)
    assert plan.seconds_after("m2 eval_judgments") == 0
    assert plan.seconds_after("m2 early_5_answers") is None  # a stage within a step


def test_steps_that_are_done_take_no_time():
    plan = Schedule([step._replace(done=step.label != "m2 dpo") for step in STEPS])
    plan.measured("m1 sft", 90.0, steps=45)
    assert plan.seconds_after("m1 sft") == 60.0


def test_a_step_of_dpo_is_priced_by_its_tokens():
    cfg = config.get_config("tiny")
    assert status.step_tokens(cfg, "sft") == 8 * 256
    # 16 pairs of two answers of 48 tokens in each of 2 epochs, a third for the reference; 16 replayed rows of 256
    assert status.step_tokens(cfg, "dpo") == pytest.approx(16 * 2 * 48 * (1 + 1 / 6) + 16 * 256)
    cfg.dpo.replay_weight, cfg.dpo.dpo_weight = 0.0, 0.0
    assert status.step_tokens(cfg, "dpo") == 16 * 48
    plan = Schedule([step._replace(step_tokens={"sft": 100.0, "dpo": 250.0}.get(step.name, 1.0)) for step in STEPS])
    plan.measured("m1 sft", 90.0, steps=45)
    assert plan.seconds(plan.steps[6]) == pytest.approx(30 * 2.0 * 2.5)
    plan.measured("m2 dpo", 120.0, steps=30)
    assert plan.seconds(plan.steps[6]) == 120.0


def test_what_the_data_decide_is_not_estimated_before_it_was_measured():
    unknown = [step._replace(work=None) if step.name == "eval_judgments" else step for step in STEPS]
    plan = Schedule(unknown)
    plan.measured("m1 sft", 90.0, steps=45)
    plan.measured("m1 eval_answers", 20.0)
    assert plan.seconds_after("m1 eval_answers") is None
    plan.measured("m1 eval_judgments", 7.0)
    assert plan.seconds_after("m1 eval_judgments") == pytest.approx(10 + 60 + 60 + 20 + 7)


def test_a_stage_shows_its_number_and_the_time_of_the_run(clock, capsys):
    schedule.start(Schedule(STEPS))
    schedule.current().measured("m1 sft", 90.0, steps=45)
    schedule.current().begin("m1 eval_judgments")
    stage = progress.Progress("m1 eval_judgments", 10)
    stage.add(1)
    clock.now += 20
    stage.add(5)
    # 4 s a row: 16 s here. So 4000 tokens take 40 s: 10 ms a token.
    assert stage.seconds_left() == (16.0, pytest.approx(16 + 5 + 30 + 60 + 10 + 40))
    expected = "[3/9] m1 eval_judgments: 6/10 rows, 16 s left, about 2 min 41 s for the run\n"
    assert capsys.readouterr().err == expected
    stage.close()
    assert schedule.current().numbered("m1 early_5_answers") == "[3/9] m1 early_5_answers"
    assert schedule.current().numbered("m2 dpo") == "[7/9] m2 dpo"


# --- what is done already ------------------------------------------------------------------------------------------


def in_progress(finished_run, tmp_path, rows):
    """A copy of the run that ended in the judgments of round 2, with `rows` of them."""
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    for name in ("judgments", "probes", "hacks", "pairs"):
        (workdir / "m2" / f"{name}.manifest.json").unlink()
    for name in ("checks.json", "manifest.json", "eval.json"):
        (workdir / "m2" / name).unlink()
    for name in ("eval_answers", "eval_judgments"):
        (workdir / "m2" / f"{name}.manifest.json").unlink()
    (workdir / "m2" / "judgments.jsonl.partial").write_bytes(encode_crc([{"id": str(i)} for i in range(rows)]))
    return make_run(micro(2), str(workdir))


def test_a_resumed_run_says_what_is_done(finished_run, tmp_path):
    run = in_progress(finished_run, tmp_path, 3)
    plan = status.make_schedule(run, TABLE)
    (line,) = status.resumed(run, plan)
    assert line == "resuming: 7 of 13 stages done, next is [8/13] m2 judgments with 3 rows done"
    # Earlier starts have measured all kinds of work.
    assert plan.seconds_after("m2 judgments") > 0


def test_a_finished_run_and_a_new_one_say_so(finished_run, tmp_path):
    run = make_run(micro(2), str(finished_run))
    assert status.resumed(run, status.make_schedule(run, TABLE)) == [
        "resuming: 13 of 13 stages done, nothing is left to do"
    ]
    new = make_run(micro(2), str(tmp_path / "new"))
    plan = status.make_schedule(new, TABLE)
    assert status.resumed(new, plan) == []
    assert plan.seconds_after("seed documents") is None


def test_a_training_in_progress_names_its_step(finished_run, tmp_path):
    run = make_run(micro(2), str(tmp_path / "run"))
    shutil.copytree(finished_run / "seed", run.workdir / "seed")
    for name in ("5", "10"):
        (run.workdir / "m0" / "steps" / name).mkdir(parents=True)
        shutil.copy(finished_run / "m0" / "manifest.json", run.workdir / "m0" / "steps" / f"{name}.json")
    (line,) = status.resumed(run, status.make_schedule(run, TABLE))
    assert line == "resuming: 1 of 13 stages done, next is [2/13] m0 pretrain with 10 steps done"


# --- log.txt and the last lines ------------------------------------------------------------------------------------


def test_lines_and_the_error_that_ends_a_run_are_kept(tmp_path, capsys):
    def failing():
        with terminal.log_to(epath.Path(tmp_path)):
            terminal.log_line("to stderr")
            terminal.show("to stdout")
            return 1 / 0

    with pytest.raises(ZeroDivisionError):
        failing()
    terminal.log_line("after the run")
    out, err = capsys.readouterr()
    assert (out, err) == ("to stdout\n", "to stderr\nafter the run\n")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert [line[20:] for line in lines[:3]] == ["to stderr", "to stdout", "Traceback (most recent call last):"]
    assert lines[-1][20:] == "ZeroDivisionError: division by zero"


def test_the_log_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(terminal._LogFile, "MAX_BYTES", 1000)
    with terminal.log_to(epath.Path(tmp_path)):
        for number in range(200):
            terminal.keep(f"line {number}")
            assert (tmp_path / "log.txt").stat().st_size <= 1000
    text = (tmp_path / "log.txt").read_text()
    assert text.endswith("line 199\n")
    assert text.count("\n") >= 15


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    with terminal.log_to(epath.Path(tmp_path) / "missing"):
        terminal.log_line("shown")
    assert capsys.readouterr().err == "shown\n"


def test_text_that_the_terminal_cannot_encode_is_shown_escaped(tmp_path, monkeypatch):
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stderr", file)
        terminal.log_line("caf\u00e9")
    assert (tmp_path / "out").read_text() == "caf\\xe9\n"


def test_the_last_lines_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(closing.shutil, "which", lambda name: f"/bin/{name}" if name == "selfreward-jax" else None)
    summary = {"models": {"m1": {}, "m2": {}}}
    lines = closing.lines(epath.Path(tmp_path / "my run"), summary)
    assert lines[1].split(maxsplit=1) == ["report:", "my run/report.html"]
    assert [line.strip() for line in lines[-3:]] == [
        "selfreward-jax chat --workdir='my run' --model=m2",
        "selfreward-jax export --workdir='my run' --model=m2 --out=m2_hf",
        "selfreward-jax evaluate --workdir='my run'",
    ]
    monkeypatch.setattr(closing.model_intervals, "evaluations", lambda workdir: {})  # no bucket is here
    assert "--workdir=gs://bucket/a " in closing.lines(epath.Path("gs://bucket/a"), summary)[-3]


def test_without_the_console_script_the_commands_name_this_python(monkeypatch):
    monkeypatch.setattr(closing.shutil, "which", lambda name: sys.executable if name == "python" else None)
    assert closing.program() == "python -m selfreward_jax"
    monkeypatch.setattr(closing.shutil, "which", lambda name: "/other/python" if name == "python" else None)
    assert closing.program().endswith("python -m selfreward_jax") == sys.executable.endswith("python")
    assert closing.program().split()[0] not in ("python", "/other/python")


def test_a_stage_that_failed_says_nothing_later(monkeypatch, capsys):
    monkeypatch.setattr(progress.Progress, "LINE_EVERY", 0.05)
    progress.Progress("m1 sft", 10)
    progress.end_silence()
    time.sleep(0.15)
    assert capsys.readouterr().err == ""

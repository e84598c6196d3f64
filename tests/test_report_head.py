"""The head of report.html: its figures against values computed by hand, and the answers that it gives."""

import json
import math
import shutil

import pytest
from conftest import ended, micro
from etils import epath
from test_report import round_of, row

from selfreward_jax import loop, storage
from selfreward_jax.cli import report
from selfreward_jax.method.round_checks import CHECKS, switched_off
from selfreward_jax.parallel import preemption
from selfreward_jax.report import closing, comparison, model_intervals, preferences, run_state, tiles
from selfreward_jax.report.run_state import RunState
from selfreward_jax.runs.run import make_run, open_run
from selfreward_jax.stages.table import TABLE

FINISHED = RunState("finished", "", 3, 3, None, 0.0, (), 0.0)


# --- what it prefers ---------------------------------------------------------------------------------------------


def pair(number, chosen, rejected, scores=(4.0, 1.5)):
    sides = {"chosen": chosen, "rejected": rejected, "chosen_score": scores[0], "rejected_score": scores[1]}
    return row(number) | sides


def test_preferences_by_hand():
    rows = [pair(0, "aaa", "a"), pair(1, "aaa", "a"), pair(2, "aa", "a", (5.0, 0.5)), pair(3, "a", "aaaa")]
    found = preferences.preferences(rows)
    assert (found["pairs"], found["longer"], found["same_length"], found["shorter"]) == (4, 0.75, 0, 0.25)
    # Wilson with z = 1.96, p = 3/4, n = 4: (p + z^2/8 +- z sqrt(p (1-p)/4 + z^2/64)) / (1 + z^2/4)
    assert found["longer_interval"] == pytest.approx([0.3006, 0.9544], abs=1e-4)
    assert (found["score_gap"], found["length_gap"]) == (3.0, 0.5)
    assert found["score_gap_error"] == pytest.approx(1.96 * 1.0 / 2)  # deviations -.5, -.5, 1.5, -.5
    assert found["length_gap_error"] == pytest.approx(1.96 * math.sqrt(17 / 3) / 2)  # 1.5, 1.5, .5, -3.5
    one = preferences.preferences([pair(0, "a", "b")])
    assert (one["longer"], one["same_length"], one["score_gap_error"]) == (0, 1, math.inf)


def test_the_examples_are_the_widest_and_the_closest_pairs_with_their_votes():
    gaps = [1.0, 3.0, 0.5, 2.0, 3.0, 0.5, 2.5, 1.5]
    rows = [row(i) | {"chosen_score": gap, "rejected_score": 0.0} for i, gap in enumerate(gaps)]
    ids = {kind: [e["id"] for e in found] for kind, found in preferences.examples(round_of(rows)).items()}
    assert ids == {"widest": ["m2/1", "m2/4", "m2/6"], "closest": ["m2/2", "m2/5", "m2/0"]}
    rounds = round_of([row(0)])
    votes = rounds["judgments"][1]["votes"]  # of the chosen answer
    votes[:] = [{"score": s, "text": t} for s, t in ((4.0, "x"), (None, "y" * 700), (4.0, "x"))]
    found = preferences.examples(rounds)
    assert (len(found["widest"]), found["closest"]) == (1, [])
    chosen, rejected = found["widest"][0]["sides"]
    assert (chosen["side"], chosen["text"], chosen["score"]) == ("chosen", "answer 0", 4.0)
    assert [(v["count"], v["score"]) for v in chosen["votes"]] == [(2, 4.0), (1, None)]
    assert chosen["votes"][1]["text"] == "y" * 600 + " […100 more characters]"
    assert [(v["count"], v["score"], v["text"]) for v in rejected["votes"]] == [(1, 1.5, "0 good. Score: 4")]


# --- the tiles ---------------------------------------------------------------------------------------------------


def rates(margin, low, high):
    return {
        "win": 0.5,
        "tie": 0.5 - margin,
        "lose": 0.5 - margin,
        "margin": margin,
        "interval": {"margin": [low, high]},
    }


UP, FLAT, DOWN = rates(0.2, 0.1, 0.3), rates(0.05, -0.01, 0.11), rates(-0.2, -0.3, -0.1)


def compared(m2_m1, m3_m2, m3_m1):
    return {"m1": {"versus": {}}, "m2": {"versus": {"m1": m2_m1}}, "m3": {"versus": {"m2": m3_m2, "m1": m3_m1}}}


@pytest.mark.parametrize(
    ("models", "sign", "best", "words"),
    [
        (compared(UP, UP, UP), "good", "m3", ["M3 against M1", "+10.0 to +30.0", "Against M2: +20.0"]),
        (compared(UP, FLAT, FLAT), "unsure", "m3", ["-1.0 to +11.0"]),
        (compared(UP, DOWN, UP), "unsure", "m2", ["Against M2: -20.0 (-30.0 to -10.0)"]),
        (compared(UP, DOWN, DOWN), "bad", "m2", []),
        (compared(DOWN, DOWN, DOWN), "bad", "m1", []),
        (compared(DOWN, FLAT, DOWN), "bad", "m1", []),
    ],
)
def test_whether_it_is_better(models, sign, best, words):
    found = comparison.win_rates(models, {})
    tile = tiles.better(models, found)
    assert (tile.sign, tile.link, comparison.best_model(list(models), found)[0]) == (sign, "#progress", best)
    assert tile.value == f"{100 * models['m3']['versus']['m1']['margin']:+.1f} points"
    assert all(word in " ".join(tile.detail) for word in words)
    steps = " ".join(
        text + code
        for text, code in tiles.next_steps(
            FINISHED, {"better": tile, "judge": tile}, comparison.best_model(list(models), found), "w"
        )
    )
    assert f"chat --workdir=w --model={best}" in steps
    assert ("dpo.lr" in steps) == (best != "m3")


def test_without_an_oracle_another_judge_answers():
    models = {"m1": {}, "m2": {}}
    tile = tiles.better(models, comparison.win_rates(models, {}))
    assert (tile.sign, tile.word) == ("none", "not measured")
    state = FINISHED._replace(round=2, rounds=2)
    steps = tiles.next_steps(state, {"better": tile, "judge": tile}, comparison.best_model(["m1", "m2"], []), "a b")
    assert any("evaluate --workdir='a b' --judge=endpoint" in code for _, code in steps)
    own, outside = {"m2": {"m1": UP}}, {"m2": {"m1": DOWN}}
    tile = tiles.better(models, comparison.win_rates(models, {"m2": own}))
    assert tile.sign == "good"
    assert "M2 of this run" in tile.detail[-1]
    assert tiles.better(models, comparison.win_rates(models, {"endpoint": outside, "m2": own})).sign == "bad"
    assert tiles.better({"m1": {}}, []).word == "not yet"


def test_the_best_model_comes_with_its_reason():
    assert comparison.best_model(["m1", "m2"], []) == (
        "m2",
        "the last one; its answers are not compared with those of another model yet",
    )
    for outside, best, words in (
        (UP, "m2", "M2 against M1: win minus lose +20.0 points, 95 % +10.0 to +30.0, judged by the endpoint"),
        (FLAT, "m2", "the last one; M2 against M1: win minus lose +5.0 points, 95 % -1.0 to +11.0"),
        (DOWN, "m1", "M2 against M1: win minus lose -20.0 points"),
    ):
        rates = comparison.win_rates({"m1": {}, "m2": {}}, {"endpoint": {"m2": {"m1": outside}}})
        found, why = comparison.best_model(["m1", "m2"], rates)
        assert (found, why.startswith(words)) == (best, True)
    only = [comparison.Versus("m2", "m1", UP, "m1")]  # of an evaluation that left the last model out
    assert comparison.best_model(["m1", "m2", "m3"], only)[0] == "m3"


def test_the_page_and_the_console_name_the_same_model_for_the_same_reason(workdir):
    models = {name: {} for name in ("m1", "m2")}
    storage.write_json(epath.Path(workdir) / "evaluation" / "report_m1.json", {"versus": {"m2": {"m1": DOWN}}})
    console = "\n".join(closing.lines(epath.Path(workdir), {"models": models}))
    rates = comparison.win_rates(models, model_intervals.evaluations(epath.Path(workdir)))
    best = comparison.best_model(list(models), rates)
    tile = tiles.better(models, rates)
    page = tiles.next_steps(FINISHED, {"better": tile, "judge": tile}, best, str(workdir))
    assert best[0] == "m1"
    assert f"best model: m1 ({best[1]})" in console
    assert any(f"M1 ({best[1]})" in text for text, _ in page)


def test_a_folder_that_is_called_like_a_model_of_the_run_is_another_model():
    for known in ({"display_name": "m1"}, {"path": "m1"}):
        found = {"opponent": {"name": "m1-abcd1234"} | known, "versus": {"m2": {"m1": UP, "m1-abcd1234": DOWN}}}
        versus = comparison.named(found)
        assert versus == {"m2": {"m1": UP, "folder m1": DOWN}}
        rates = comparison.win_rates({"m1": {}, "m2": {}}, {"m2": versus})
        assert comparison.best_model(["m1", "m2"], rates)[0] == "m2"
        assert [r.opponent for r in comparison.outside(["m1", "m2"], {"m2": versus})] == ["folder m1"]


def test_the_sft_baseline_is_not_what_models_must_beat():
    versus = {"sft": UP, "m1": DOWN, "m2": UP}
    models = {"sft": {"versus": {}}, "m1": {"versus": {"sft": UP}}, "m2": {"versus": {"m1": DOWN, "sft": UP}}}
    assert [r[:2] for r in comparison.win_rates(models, {})] == [("m1", "sft"), ("m2", "m1")]
    models["m3"] = {"versus": versus}
    assert [r[:2] for r in comparison.win_rates(models, {})] == [
        ("m1", "sft"),
        ("m2", "m1"),
        ("m3", "m2"),
        ("m3", "m1"),
    ]


@pytest.mark.parametrize(
    ("interval", "sign"), [([0.01, 0.3], "good"), ([-0.01, 0.3], "unsure"), ([-0.3, -0.01], "bad"), (None, "unsure")]
)
def test_whether_the_judge_knows_more_than_length(interval, sign):
    judge = {"accuracy": 0.75, "baseline": 0.6, "lead": 0.15, "interval": interval, "rule": "shorter"}
    tile = tiles.beyond_length({"m1": judge | {"lead": None}, "m2": judge})
    assert (tile.sign, tile.value, tile.link) == (sign, "+15.0 points", "#judge")
    assert all(word in tile.detail[0] for word in ("M2", "75.0 %", "shorter", "60.0 %"))
    assert tiles.beyond_length({"m1": judge | {"lead": None}}).word == "not measured"
    assert tiles.beyond_length({}).word == "not yet"


def test_checks_are_counted():
    names = [name.partition("_")[2] for name in CHECKS]
    limits, within = dict.fromkeys(CHECKS, 0.5), dict.fromkeys(names, 0.5)
    rounds = {"m2": {"checks": within}, "m3": {"checks": within}}
    assert tiles.checks(rounds, limits)[1:4] == ("good", "within", "12 of 12")
    rounds["m3"]["checks"] = within | {"spread": 0.4, "leaks": None}
    tile = tiles.checks(rounds, limits)
    assert tile[1:4] == ("bad", "beyond", "10 of 12")
    assert "M3: min_spread" in tile.detail[0]
    assert "max_leaks" in tile.detail[1]
    rounds = {"m2": {"checks": within | {"ties": math.nan}}, "m3": {"checks": within}}
    assert tiles.checks(rounds, limits)[1:4] == ("bad", "beyond", "12 of 12")  # of the last round; the sign is of all
    assert tiles.checks({"m2": {"checks": None}}, limits).word == "not yet"


def test_checks_that_are_off_do_not_count_as_passed():
    names = [name.partition("_")[2] for name in CHECKS]
    values = dict.fromkeys(names, 1.0)
    limits = {name: 0.0 if name.startswith("min_") else 1.0 for name in CHECKS} | {"min_spread": 0.1}
    tile = tiles.checks({"m2": {"checks": values}}, limits)
    assert tile[1:4] == ("none", "within", "3 of 3, 9 off")  # a lead can reach 5, and growth has no end
    assert "Off: min_parse_rate, min_votes_per_answer, max_unscored" in tile.detail[-1]
    assert "min_spread" not in tile.detail[-1]
    tile = tiles.checks({"m2": {"checks": values | {"ties": math.nan, "repeats": None}}}, limits)
    assert tile[1:4] == ("bad", "beyond", "3 of 4, 8 off")
    looser = limits | {"max_probe_lead": 5.0}
    assert set(switched_off(looser)) - set(switched_off(limits)) == {"max_probe_lead"}
    off = micro(2).checks
    assert len(switched_off({name: off[name] for name in CHECKS})) == 9


def test_the_time_tile_names_the_stage_and_the_time_left():
    spent = {"stages": {"m1 sft": {"training": 100.0}, "m2 dpo": {"training": 20.0, "compiling": 30.0}}, "lost": {}}
    state = RunState("running", "m2 judgments", 2, 3, 40.0, 7200.0, (), 0.0)
    tile = tiles.progress(state, spent)
    assert (tile.sign, tile.value, tile.link) == ("running", "round 2 of 3", "#time")
    assert tile.detail == (
        "At m2 judgments, about 40 s left.",
        "About 2 h left for the run, done at 1970-01-01 02:00 UTC.",
        "2 min 30 s spent.",
    )
    tile = tiles.progress(state._replace(word="stopped", unknown=("dpo",)), spent)
    assert tile.detail[:3] == ("Before m2 judgments.", "At least 2 h left for the run.", "Not known yet: dpo.")
    tile = tiles.progress(FINISHED, spent | {"lost": {"m1 sft": {"training": 90.0}}})
    assert (tile.sign, tile.word, tile.value) == ("good", "finished", "4 min")
    assert tile.detail == ("M1 to M3: training 2 min, compiling 30 s.", "90 s lost to kills.")


# --- how far a run is --------------------------------------------------------------------------------------------


@pytest.fixture
def workdir(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def log_seconds(workdir, label, **kinds):
    with (workdir / "events.jsonl").open("a") as log:
        log.write(json.dumps({"committed": True, "seconds": {label: kinds}}) + "\n")


def test_the_seconds_left_by_hand(workdir):
    (workdir / "events.jsonl").unlink()
    log_seconds(workdir, "m2 prompts", sampling=6.0, compiling=50.0)
    log_seconds(workdir, "m2 dpo", training=10.0)
    cfg = micro(4)
    left = run_state.seconds_left(make_run(cfg, str(workdir)), TABLE)
    # Of the same name: as long. Of the same kind: at its pace.
    token = 6.0 / (cfg.prompts.count * cfg.prompts.max_new_tokens)
    sampled = cfg.prompts.count * cfg.responses.num_samples * cfg.responses.max_new_tokens
    for model in ("m3", "m4"):
        assert (left[f"{model} prompts"], left[f"{model} dpo"]) == (6.0, 10.0)
        assert left[f"{model} responses"] == pytest.approx(token * sampled)
    log_seconds(workdir, "m3 prompts", sampling=4.5)
    log_seconds(workdir, "m3 dpo", training=1.0)  # of files that were lost since
    left = run_state.seconds_left(make_run(cfg, str(workdir)), TABLE)
    assert (left["m3 prompts"], left["m3 dpo"]) == (1.5, 10.0)


def test_the_state_of_a_run(workdir):
    def state(iterations, measured, is_running):
        return run_state.read(make_run(micro(iterations), str(workdir)), TABLE, measured, is_running)

    assert state(2, ["m1", "m2"], True).word == "finished"
    assert state(3, ["m1", "m2"], True)[:4] == ("running", "m3 prompts", 3, 3)
    assert state(3, ["m1", "m2"], False)[:4] == ("stopped", "m3 prompts", 3, 3)
    (workdir / "m2" / "eval.json").unlink()
    assert state(3, ["m1"], False)[:4] == ("stopped", "m2 eval_metrics", 2, 3)
    shutil.rmtree(workdir / "m0")
    assert state(3, ["m1"], False)[:4] == ("stopped", "m0 pretrain", 1, 3)


@pytest.mark.slow
def test_a_run_that_is_stopped_leaves_no_page_that_waits_for_it(workdir, monkeypatch):
    (workdir / "m2" / "eval.json").unlink()

    def stop(_, model):
        if model == "m2":
            text = (workdir / "report.html").read_text()
            assert ("data-reload-seconds" in text, "▶ running" in text) == (True, True)
            raise preemption.Stopped

    monkeypatch.setattr("selfreward_jax.report.page.Page.MAX_TIME_FRACTION", 1e9)  # it is due after every stage
    with pytest.raises(preemption.Stopped):
        loop.run(micro(2), str(workdir), replace={"eval_metrics": stop})
    text = (workdir / "report.html").read_text()
    assert ("data-reload-seconds" in text, "■ stopped" in text) == (False, True)


def test_the_report_command_sees_whether_the_run_goes_on(workdir, monkeypatch):
    (workdir / "m2" / "eval.json").unlink()
    for is_locked, word in ((True, "▶ running"), (False, "■ stopped")):
        monkeypatch.setattr(report.lock, "is_locked", lambda _, held=is_locked: held)
        assert ended(report, f"--workdir={workdir}") == (0, "")
        assert word in (workdir / "report.html").read_text()


def test_evaluations_of_the_run_are_read(workdir, capsys):
    folder = workdir / "evaluation"
    folder.mkdir()
    for judge in ("m2", "endpoint"):
        report_file = open_run(str(workdir)).workdir / "evaluation" / f"report_{judge}.json"
        storage.write_json(
            report_file,
            {"versus": {"m2": {"m1": judge, "m3-0a": 1}}, "opponent": {"name": "m3-0a", "display_name": "m3 of b"}},
        )
    (folder / "report_m1.json").write_text("{damaged")
    (folder / "m2_m1_by_m2.jsonl").write_text("")
    found = model_intervals.measure(open_run(str(workdir)), ["m1", "m2"])
    assert list(found["evaluations"].items()) == [
        (judge, {"m2": {"m1": judge, "m3 of b": 1}}) for judge in ("endpoint", "m2")
    ]
    rows = comparison.outside(["m1", "m2"], found["evaluations"])
    assert [(r.names, r.judge_name) for r in rows] == [("M2 : m3 of b", "the endpoint"), ("M2 : m3 of b", "M2")]
    assert "report_m1.json" in capsys.readouterr().err
    assert list(found["judges"]) == list(found["score_intervals"]) == ["m1", "m2"]
    metrics = json.loads((workdir / "m2" / "eval.json").read_text())
    assert found["judges"]["m2"]["accuracy"] == metrics["judge"]["pairwise_accuracy"]
    low, high = found["score_intervals"]["m2"]
    assert low <= metrics["oracle"]["mean"] <= high

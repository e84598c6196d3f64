"""--dry_run: what is done and to do, by hand, and that nothing is touched."""

import re
import subprocess

from conftest import ROOT, command, micro, run

from selfreward_jax import config
from selfreward_jax.report.plan import plan, planned
from selfreward_jax.run import Run


def test_the_stages_of_a_run_are_those_that_it_goes_through(made):
    done = {(s.model, s.name) for s in planned(micro(2))}
    trained = {
        (p.parent.name, {"m0": "base", "m1": "sft", "m2": "dpo"}[p.parent.name]) for p in made.glob("m*/manifest.json")
    }
    made_rows = {(p.parent.name, p.name.split(".")[0]) for p in made.glob("*/*.manifest.json")}
    seeds = {name for name in made_rows if name[0] == "seed"} - {("seed", "documents")}
    assert done == (trained | made_rows) - seeds - {("m2", "pairs")}


def test_rows_and_tokens_by_hand():
    cfg = config.get()
    cfg.iterations = 2
    found = {(s.model, s.name): (s.rows, s.tokens) for s in planned(cfg)}
    assert found["m2", "judgements"] == (600 * 4, 600 * 4 * 3 * 112)
    assert found["m1", "eval_answers"] == (384, 384 * 2 * 48)
    assert found["m1", "sft"][0] == 6000 + 5000 + 1500


def test_what_the_data_decide_is_not_guessed():
    cfg = config.get("llama3_8b")
    cfg.data.ift = cfg.data.eft = "rows.jsonl"
    cfg.evaluate.best_of = 2
    found = {(s.model, s.name): (s.rows, s.tokens) for s in planned(cfg)}
    for stage in (("m0", "base"), ("sft", "sft"), ("m1", "sft"), ("seed", "eft_judgements"), ("m1", "eval_judgements")):
        assert found[stage] == (0, 0)
    assert found["m1", "eval_answers_drawn"] == (256, 256 * 1 * 2 * 1024)
    assert found["m1", "eval_answers_judged"] == (512, 512 * 3 * 256)
    assert found["m1", "eval_answers"] == (256, 0)


def test_settings_that_the_run_would_refuse_are_refused(made, capsys):
    done = subprocess.run(
        command(made, 2, "--config.dpo.beta=0.3", "--dry_run"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "dpo.beta" in done.stderr
    assert done.stdout == ""


def test_of_a_finished_run_all_is_done(made):
    lines = plan(Run(micro(2), str(made), claim=False))
    assert sum(line.endswith("done") for line in lines) == len(planned(micro(2)))
    assert lines[-1] == "nothing is left to do"


def test_of_a_longer_one_the_rest_is_estimated(made):
    lines = plan(Run(micro(3), str(made), claim=False))
    left = [line for line in lines if line.startswith("m3 ")]
    assert len(left) == 7
    assert not any("?" in line or "done" in line for line in left)
    total = sum(float(line.split()[-1]) for line in left)
    (said,) = re.findall(r"at the pace of the stages that are done: (\d+) s$", lines[-1])
    assert abs(float(said) - total) < 1


def test_it_touches_nothing(tmp_path):
    workdir = tmp_path / "none"
    done = run(workdir, 3, "--dry_run", "--compile_cache=")
    assert not workdir.exists()
    lines = done.stdout.splitlines()
    assert lines[0] == f"workdir {workdir}, seed 0, up to m3"
    assert sum("?" in line for line in lines) == len(planned(micro(3)))
    assert lines[-1].startswith("time left, documents, base, sft, ")

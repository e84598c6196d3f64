"""--dry_run: what is done and to do, by hand, and that nothing is touched."""

import re

from conftest import arguments, assert_mentions, micro, refused, run

from selfreward_jax import config
from selfreward_jax.report.plan import plan, planned_stages
from selfreward_jax.runs.run import Run


def test_the_stages_of_a_run_are_those_that_it_goes_through(finished_run):
    done = {(s.model, s.name) for s in planned_stages(micro(2))}
    trained = {
        (p.parent.name, {"m0": "base", "m1": "sft", "m2": "dpo"}[p.parent.name])
        for p in finished_run.glob("m*/manifest.json")
    }
    made_rows = {(p.parent.name, p.name.split(".")[0]) for p in finished_run.glob("*/*.manifest.json")}
    seeds = {name for name in made_rows if name[0] == "seed"} - {("seed", "documents")}
    assert done == (trained | made_rows) - seeds - {("m2", "pairs")}


def test_rows_and_tokens_by_hand():
    cfg = config.get_config()
    cfg.iterations = 2
    found = {(s.model, s.name): (s.rows, s.tokens) for s in planned_stages(cfg)}
    assert found["m2", "judgments"] == (600 * 4, 600 * 4 * 3 * 112)
    assert found["m1", "eval_answers"] == (384, 384 * 2 * 48)
    assert found["m1", "sft"][0] == 6000 + 5000 + 1500


def test_what_the_data_decide_is_not_guessed():
    cfg = config.get_config("llama3_8b")
    cfg.data.ift = cfg.data.eft = "rows.jsonl"
    cfg.evaluate.best_of = 2
    found = {(s.model, s.name): (s.rows, s.tokens) for s in planned_stages(cfg)}
    for stage in (("m0", "base"), ("sft", "sft"), ("m1", "sft"), ("seed", "eft_judgments"), ("m1", "eval_judgments")):
        assert found[stage] == (0, 0)
    assert found["m1", "eval_answers_drawn"] == (256, 256 * 1 * 2 * 1024)
    assert found["m1", "eval_answers_judged"] == (512, 512 * 3 * 256)
    assert found["m1", "eval_answers"] == (256, 0)


def test_settings_that_the_run_would_refuse_are_refused(finished_run, capsys):
    said = refused(*arguments(finished_run, 2, "--config.dpo.beta=0.3", "--dry_run"))
    assert_mentions(said, "dpo.beta", 0.1, 0.3)
    assert capsys.readouterr().out == ""


def stages(lines, iterations):
    """What each stage's line says of the time that it still needs: seconds, "?", or "" where it is done."""
    names = [f"{s.model} {s.name}" for s in planned_stages(micro(iterations))]
    found = {name: line for line in lines for name in names if line.startswith(f"{name} ")}
    assert list(found) == names
    return {name: (re.findall(r" (\?|[\d.]+)$", line) or [""])[0] for name, line in found.items()}


def test_of_a_finished_run_all_is_done(finished_run):
    lines = plan(Run(micro(2), str(finished_run), claim=False))
    assert {name: left for name, left in stages(lines, 2).items() if left} == {}
    assert not re.search(r"\d", lines[-1])


def test_of_a_longer_one_the_rest_is_estimated(finished_run):
    lines = plan(Run(micro(3), str(finished_run), claim=False))
    left = {name: seconds for name, seconds in stages(lines, 3).items() if seconds}
    assert len(left) == 7
    assert all(name.startswith("m3 ") for name in left)
    (said,) = re.findall(r"\d+", lines[-1])
    assert abs(float(said) - sum(map(float, left.values()))) < 1


def test_it_touches_nothing(tmp_path, capsys):
    workdir = tmp_path / "none"
    run(workdir, 3, "--dry_run", "--compile_cache=")
    assert not workdir.exists()
    lines = capsys.readouterr().out.splitlines()
    assert_mentions(lines[0], workdir, 0, "m3")
    assert set(stages(lines, 3).values()) == {"?"}
    assert "documents, base, sft, " in lines[-1]

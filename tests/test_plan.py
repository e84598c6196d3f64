"""What a run would do: the steps done and to do, rows and time, with values worked out by hand."""

import re

import pytest
from conftest import arguments, assert_mentions, micro, refused

from selfreward_jax import config
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.parameters import param_specs, parameter_count
from selfreward_jax.memory.machines import Rates
from selfreward_jax.report import estimates
from selfreward_jax.report.plan import plan
from selfreward_jax.runs.run import make_run
from selfreward_jax.stages.table import TABLE

MODEL = DecoderConfig(
    vocab_size=640, dim=32, num_layers=2, num_heads=4, num_kv_heads=1, head_dim=8, mlp_dim=64, dtype="float32"
)


def planned(cfg):
    """The steps that the plan shows, by folder and name."""
    return {(step.folder, step.stage.name): step for step in TABLE.steps(cfg) if step.stage.cost is not None}


def costs(cfg):
    return {name: tuple(step.stage.cost(cfg)) for name, step in planned(cfg).items()}


def test_the_planned_steps_are_those_that_a_run_has_made(finished_run):
    trained = {
        (p.parent.name, {"m0": "pretrain", "m1": "sft", "m2": "dpo"}[p.parent.name])
        for p in finished_run.glob("m*/manifest.json")
    }
    rows = {(p.parent.name, p.name.split(".")[0]) for p in finished_run.glob("*/*.manifest.json")}
    seeds = {name for name in rows if name[0] == "seed"} - {("seed", "documents")}
    assert set(planned(micro(2))) == (trained | rows) - seeds - {("m2", "pairs")}


def test_rows_and_tokens_by_hand():
    cfg = config.get_config()
    cfg.iterations = 2
    found = costs(cfg)
    assert found["m2", "judgments"] == (600 * 4, 600 * 4 * 3 * 112)
    assert found["m1", "eval_answers"] == (384, 384 * 2 * 48)
    assert found["m1", "sft"][0] == 6000 + 5000 + 1500


def test_what_the_data_decide_is_not_guessed():
    cfg = config.get_config("llama3_8b")
    cfg.data.ift = cfg.data.eft = "rows.jsonl"
    cfg.evaluate.best_of = 2
    found = costs(cfg)
    for name in (
        ("m0", "pretrain"),
        ("sft", "sft"),
        ("m1", "sft"),
        ("seed", "eft_judgments"),
        ("m1", "eval_judgments"),
    ):
        assert found[name] == (0, 0)
    assert found["m1", "eval_answers_drawn"] == (256, 256 * 1 * 2 * 1024)
    assert found["m1", "eval_answers_judged"] == (512, 512 * 3 * 256)
    assert found["m1", "eval_answers"] == (256, 0)


def test_settings_that_the_run_would_refuse_are_refused(finished_run, capsys):
    message = refused(*arguments(finished_run, 2, "--config.dpo.beta=0.3", "--dry_run"))
    assert_mentions(message, "dpo.beta", 0.1, 0.3)
    assert capsys.readouterr().out == ""


def seconds_left(lines, iterations):
    """What each step's line says of the time that it still needs: seconds, "-" if unknown, or "" where it is done."""
    labels = [step.label for step in planned(micro(iterations)).values()]
    found = {label: line for line in lines for label in labels if line.startswith(f"{label} ")}
    assert list(found) == labels
    return {label: (re.findall(r" (-|~[\d,]+)$", line) or [""])[0] for label, line in found.items()}


def test_of_a_finished_run_all_is_done(finished_run):
    lines = plan(make_run(micro(2), str(finished_run)), TABLE)
    assert {label: left for label, left in seconds_left(lines, 2).items() if left} == {}
    assert not re.search(r"\d", lines[-1])


def test_of_a_longer_run_the_rest_is_estimated(finished_run):
    lines = plan(make_run(micro(3), str(finished_run)), TABLE)
    left = {label: seconds for label, seconds in seconds_left(lines, 3).items() if seconds}
    assert len(left) == 8
    assert all(label.startswith("m3 ") for label in left)
    (total,) = re.findall(r"^time left: (?:about|at least) ([\d.]+) s;", "\n".join(lines), re.M)
    assert abs(float(total) - sum(float(seconds[1:]) for seconds in left.values())) <= 5  # eight of them are rounded


def test_seconds_by_stated_rates_by_hand():
    cfg = config.get_config()
    cfg.sft.epochs, cfg.pretrain.epochs, cfg.dpo.epochs, cfg.dpo.replay_weight = 2.0, 3.0, 1.0, 0.0
    cfg.sampling.max_concurrent = 100
    rates = Rates(1, 1e12, 1e9, "")
    lengths = {"ift": [10, 30], "eft": [60], "documents": [1000]}
    count = parameter_count(param_specs(MODEL))
    seconds = estimates.make_estimator(cfg, rates, MODEL, lengths)
    steps = planned(cfg)
    per_token = 6 * count / (0.24 * 1e12)
    assert seconds(steps["m0", "pretrain"]) == pytest.approx(1000 * 3 * per_token)
    assert seconds(steps["m1", "sft"]) == pytest.approx(100 * 2 * per_token)
    assert seconds(steps["m2", "dpo"]) == pytest.approx(600 * 2 * 20 * per_token)
    cache = 100 * (cfg.model.max_length // 2) * 2 * 2 * 1 * 8  # rows, tokens, layers, keys and values, heads, size
    decode_step = 4 * (count + cache) / (0.3 * 1e9)  # the weights are read once
    assert seconds(steps["m2", "judgments"]) == pytest.approx(600 * 4 * 3 * 112 / (0.9 * 100) * decode_step)
    assert estimates.make_estimator(cfg, rates, None, lengths)(steps["m1", "sft"]) is None
    assert seconds(steps["seed", "documents"]) is None
    cfg.model.remat = "full"
    assert estimates.make_estimator(cfg, rates, MODEL, lengths)(steps["m1", "sft"]) == pytest.approx(
        100 * 2 * per_token * 8 / 6
    )


def test_the_rates_of_this_machine_are_those_of_a_machine():
    rates = estimates.machine_rates()
    assert 1e8 < rates.flops < 1e16
    assert 1e8 < rates.bandwidth < 1e14

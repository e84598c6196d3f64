"""What may change in one working directory: freely, if it is accepted, or not at all."""

import json
import shutil

import pytest
from conftest import arguments, assert_mentions, micro, refused, run
from test_loop import contents

from selfreward_jax import config, loop
from selfreward_jax.config import ConfigError, diff


def stored(**changed):
    c = config.get_config("micro")
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changed.items()})
    return json.loads(c.to_json())


def told(old, new):
    found = diff.changes(old, new)
    for change in found:
        assert_mentions(str(change), change.field, repr(change.old), repr(change.new))
    return [(change.field, change.old, change.new) for change in found]


def test_the_same_settings_have_no_difference():
    assert told(stored(), stored()) == []


@pytest.mark.parametrize(
    "name", ["iterations", "checkpoint_every", "shutdown_timeout_s", "guards__canaries", "parallel__fsdp"]
)
def test_some_fields_are_free(name):
    assert told(stored(**{name: 2}), stored(**{name: 3})) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, [("seed", 0, 1)]),
        ({"dpo__beta": 0.5}, [("dpo.beta", 0.1, 0.5)]),
        (
            {"seed": 1, "dpo__beta": 0.5, "iterations": 5, "guards__canaries": 7},
            [("dpo.beta", 0.1, 0.5), ("seed", 0, 1)],
        ),
        ({"dpo__replay_sets": ("eft",)}, [("dpo.replay_sets", ["eft", "prompts"], ["eft"])]),
    ],
)
def test_a_difference_names_field_and_both_values(changed, said):
    assert told(stored(), stored(**changed)) == said


def test_a_field_that_came_or_went_is_a_difference():
    old = stored()
    new = {**old, "dpo": {**old["dpo"], "delta": 2}}
    assert told(old, new) == [("dpo.delta", None, 2)]
    assert told(new, old) == [("dpo.delta", 2, None)]


def test_every_field_is_free_or_leaves_a_trace_that_is_known():
    assert set(stored()) <= set(diff.RUNTIME_FIELDS) | set(diff.DEPENDENT_ARTIFACTS)


# What is changed in a finished run to M2, and the first thing that was made with it.
MADE = {
    "seed": (1, "seed/"),
    "data.ift_rows": (65, "seed/"),
    "tokenizer.vocab_size": (641, "tokenizer/"),
    "model.num_layers": (3, "tokenizer/"),
    "optimizer.b1": (0.8, "m0/"),
    "pretrain.lr": (1e-3, "m0/"),
    "sft.lr": (1e-3, "m1/"),
    "prompts.top_p": (0.9, "m2/prompts."),
    "prompts.min_words": (5, "seed/"),
    "responses.temperature": (0.9, "m2/candidates."),
    "judge.num_samples": (4, "m1/eval_judgments."),
    "judge.template": ("judge_additive", "seed/"),
    "pairs.length_control_rho": (0.1, "m2/pairs."),
    "dpo.beta": (0.2, "m2/ref_logprobs.json"),
    "evaluate.num_samples": (3, "m1/eval"),
}


@pytest.mark.parametrize("field", MADE)
def test_what_was_made_with_a_field_holds_it_fast(finished_run, field):
    value, trace = MADE[field]
    old = json.loads((finished_run / "config.json").read_text())
    new = stored(iterations=2, **{field.replace(".", "__"): value})
    ((_, old_value, _),) = told(old, new)
    with pytest.raises(ConfigError) as error:
        diff.check_changes(finished_run, diff.changes(old, new), accepted=True)
    said = str(error.value)
    assert_mentions(said, field, repr(old_value), repr(value), "--workdir")
    assert trace in said
    assert "--allow_config_changes" not in said


def test_slots_of_the_engine_may_change_at_any_time(finished_run):
    old = json.loads((finished_run / "config.json").read_text())
    found = diff.changes(old, stored(iterations=2, generate__rows=16))
    diff.check_changes(finished_run, found, accepted=True)
    with pytest.raises(ConfigError, match=r"generate\.rows\b.*\b32\b.*\b16\b.*--allow_config_changes\b"):
        diff.check_changes(finished_run, found, accepted=False)


def test_a_run_goes_on_with_what_nothing_was_made_with(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    for path in workdir.glob("m2"):
        shutil.rmtree(path)
    before = contents(workdir)
    cfg = micro(2)
    cfg.dpo.beta = 0.3
    with pytest.raises(ConfigError, match=r"dpo\.beta\b.*\b0\.1\b.*\b0\.3\b.*--allow_config_changes\b"):
        loop.run(cfg, str(workdir))
    assert contents(workdir) == before
    loop.run(cfg, str(workdir), allow_config_changes=True)
    assert json.loads((workdir / "config.json").read_text())["dpo"]["beta"] == 0.3
    log = [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]
    assert {"accepted": "dpo.beta", "old": 0.1, "new": 0.3}.items() <= next(e for e in log if "accepted" in e).items()
    same = ("seed", "m1", "m2/pairs.jsonl")
    assert all(before[n] == c for n, c in contents(workdir).items() if n.startswith(same) and n in before)
    # Each manifest says by which settings its rows were made.
    digests = {p.name: json.loads(p.read_text())["config"] for p in workdir.glob("*/*.manifest.json")}
    assert digests["ift.manifest.json"] == diff.config_hash(stored(iterations=5)) != digests["pairs.manifest.json"]
    assert digests["pairs.manifest.json"] == diff.config_hash(stored(dpo__beta=0.3, guards__canaries=9))
    # What was made with it now is held fast like the rest.
    with pytest.raises(ConfigError, match=r"dpo\.beta\b.*\bm2/reference\.json"):
        loop.run(micro(2), str(workdir), allow_config_changes=True)


def test_the_option_is_there(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    assert_mentions(
        refused(*arguments(workdir, 2, "--config.sampling.max_concurrent=16")),
        "sampling.max_concurrent",
        "--allow_config_changes",
    )
    run(workdir, 2, "--config.sampling.max_concurrent=16", "--allow_config_changes")
    assert contents(workdir) == contents(finished_run)

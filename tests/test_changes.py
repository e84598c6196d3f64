"""What may change in one working directory: freely, if it is accepted, or not at all."""

import json
import shutil
import subprocess

import pytest
from conftest import ROOT, command, micro, run
from test_loop import contents

from selfreward_jax import changes, config, loop
from selfreward_jax.config import ConfigError


def stored(**changed):
    c = config.get("micro")
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changed.items()})
    return json.loads(c.to_json())


def told(old, new):
    return [str(change) for change in changes.changes(old, new)]


def test_the_same_settings_have_no_difference():
    assert told(stored(), stored()) == []


@pytest.mark.parametrize("name", ["iterations", "save_every", "stop_within", "guards__canaries", "parallel__fsdp"])
def test_some_fields_are_free(name):
    assert told(stored(**{name: 2}), stored(**{name: 3})) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, ["seed was 0 and is 1 now"]),
        ({"dpo__beta": 0.5}, ["dpo.beta was 0.1 and is 0.5 now"]),
        (
            {"seed": 1, "dpo__beta": 0.5, "iterations": 5, "guards__canaries": 7},
            ["dpo.beta was 0.1 and is 0.5 now", "seed was 0 and is 1 now"],
        ),
        ({"dpo__replay_sets": ("eft",)}, ["dpo.replay_sets was ['eft', 'prompts'] and is ['eft'] now"]),
    ],
)
def test_a_difference_names_field_and_both_values(changed, said):
    assert told(stored(), stored(**changed)) == said


def test_a_field_that_came_or_went_is_a_difference():
    old = stored()
    new = {**old, "dpo": {**old["dpo"], "delta": 2}}
    assert told(old, new) == ["dpo.delta was None and is 2 now"]
    assert told(new, old) == ["dpo.delta was 2 and is None now"]


def test_every_field_is_free_or_leaves_a_trace_that_is_known():
    assert set(stored()) <= set(changes.FREE) | set(changes.TRACES)


# What is changed in a finished run to M2, and the first thing that was made with it.
MADE = {
    "seed": (1, "seed/"),
    "data.ift_rows": (65, "seed/"),
    "tokenizer.vocab_size": (641, "tokenizer/"),
    "model.layers": (3, "tokenizer/"),
    "optimizer.b1": (0.8, "m0/"),
    "base.lr": (1e-3, "m0/"),
    "sft.lr": (1e-3, "m1/"),
    "prompts.top_p": (0.9, "m2/prompts."),
    "prompts.least_words": (5, "seed/"),
    "candidates.temperature": (0.9, "m2/candidates."),
    "judge.samples": (4, "m1/eval_judgements."),
    "judge.template": ("judge_additive", "seed/"),
    "pairs.rho": (0.1, "m2/pairs."),
    "dpo.beta": (0.2, "m2/reference.json"),
    "evaluate.samples": (3, "m1/eval"),
}


@pytest.mark.parametrize("field", MADE)
def test_what_was_made_with_a_field_holds_it_fast(made, field):
    value, trace = MADE[field]
    old = json.loads((made / "config.json").read_text())
    new = stored(iterations=2, **{field.replace(".", "__"): value})
    with pytest.raises(ConfigError) as error:
        changes.refuse(made, changes.changes(old, new), accepted=True)
    said = str(error.value)
    assert f"{field} was " in said
    assert f"and is {value!r} now, and made {trace}" in said
    assert "another --workdir" in said
    assert "--accept_changes" not in said


def test_slots_of_the_engine_may_change_at_any_time(made):
    old = json.loads((made / "config.json").read_text())
    found = changes.changes(old, stored(iterations=2, generate__rows=16))
    changes.refuse(made, found, accepted=True)
    with pytest.raises(ConfigError, match=r"generate.rows was 32 and is 16 now; nothing .* --accept_changes"):
        changes.refuse(made, found, accepted=False)


def test_a_run_goes_on_with_what_nothing_was_made_with(made, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(made, workdir)
    for path in workdir.glob("m2"):
        shutil.rmtree(path)
    before = contents(workdir)
    cfg = micro(2)
    cfg.dpo.beta = 0.3
    with pytest.raises(ConfigError, match=r"dpo.beta was 0.1 and is 0.3 now; nothing was made with it yet"):
        loop.run(cfg, str(workdir))
    assert contents(workdir) == before
    loop.run(cfg, str(workdir), accept_changes=True)
    assert json.loads((workdir / "config.json").read_text())["dpo"]["beta"] == 0.3
    log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert {"accepted": "dpo.beta", "old": 0.1, "new": 0.3}.items() <= next(e for e in log if "accepted" in e).items()
    same = ("seed", "m1", "m2/pairs.jsonl")
    assert all(before[n] == c for n, c in contents(workdir).items() if n.startswith(same) and n in before)
    # Each manifest says by which settings its rows were made.
    digests = {p.name: json.loads(p.read_text())["config"] for p in workdir.glob("*/*.manifest.json")}
    assert digests["ift.manifest.json"] == changes.digest(stored(iterations=5)) != digests["pairs.manifest.json"]
    assert digests["pairs.manifest.json"] == changes.digest(stored(dpo__beta=0.3, guards__canaries=9))
    # What was made with it now is held fast like the rest.
    with pytest.raises(ConfigError, match=r"made m2/reference\.json"):
        loop.run(micro(2), str(workdir), accept_changes=True)


def test_the_option_is_there(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    refused = subprocess.run(command(workdir, 2, "--config.generate.rows=16"), cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--accept_changes" in refused.stderr
    run(workdir, 2, "--config.generate.rows=16", "--accept_changes")
    assert contents(workdir) == contents(whole)

"""Which settings may change in one working directory: freely, if the user allows it, or not at all."""

import functools
import json
import shutil

import pytest
from conftest import arguments, assert_mentions, micro, refused, run
from test_loop import contents

from selfreward_jax import config, loop
from selfreward_jax.config import ConfigError, diff
from selfreward_jax.data.readers import DataError
from selfreward_jax.runs.run import check, make_run
from selfreward_jax.stages.table import TABLE


def stored(**changed):
    c = config.get_config("micro")
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changed.items()})
    return json.loads(c.to_json())


def changed_fields(old, new):
    changes = diff.changes(old, new)
    for change in changes:
        assert_mentions(str(change), change.field, repr(change.old), repr(change.new))
    return [(change.field, change.old, change.new) for change in changes]


def test_the_same_settings_have_no_difference():
    assert changed_fields(stored(), stored()) == []


@pytest.mark.parametrize(
    "name", ["iterations", "checkpoint_every", "shutdown_timeout_s", "checks__num_probe_prompts", "parallel__fsdp"]
)
def test_runtime_fields_may_change(name):
    assert changed_fields(stored(**{name: 2}), stored(**{name: 3})) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"seed": 1}, [("seed", 0, 1)]),
        ({"dpo__beta": 0.5}, [("dpo.beta", 0.1, 0.5)]),
        (
            {"seed": 1, "dpo__beta": 0.5, "iterations": 5, "checks__num_probe_prompts": 7},
            [("dpo.beta", 0.1, 0.5), ("seed", 0, 1)],
        ),
        ({"dpo__replay_sets": ("eft",)}, [("dpo.replay_sets", ["eft", "prompts"], ["eft"])]),
    ],
)
def test_a_difference_names_field_and_both_values(changed, expected):
    assert changed_fields(stored(), stored(**changed)) == expected


def test_a_field_that_one_side_lacks_is_a_difference():
    old = stored()
    new = {**old, "dpo": {**old["dpo"], "delta": 2}}
    assert changed_fields(old, new) == [("dpo.delta", None, 2)]
    assert changed_fields(new, old) == [("dpo.delta", 2, None)]


# What is changed in a finished run to M2, and the first artifact that depends on it.
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
    "responses.temperature": (0.9, "m2/responses."),
    "judge.num_samples": (4, "m2/judgments."),
    "judge.template": ("judge_additive", "seed/"),
    "pairs.length_control_rho": (0.1, "m2/pairs."),
    "dpo.beta": (0.2, "m2/ref_logprobs.json"),
    "evaluate.num_samples": (3, "m1/eval"),
}


def find(workdir):
    """A function from a setting to an artifact of the run that depends on it."""
    files = make_run(micro(2), str(workdir)).files
    return lambda field: files.first_match(TABLE.dependents(field))


@pytest.mark.parametrize("field", MADE)
def test_an_artifact_fixes_the_settings_it_depends_on(finished_run, field):
    value, artifact = MADE[field]
    old = json.loads((finished_run / "config.json").read_text())
    new = stored(iterations=2, **{field.replace(".", "__"): value})
    ((_, old_value, _),) = changed_fields(old, new)
    with pytest.raises(ConfigError) as error:
        diff.check_changes(finished_run, diff.changes(old, new), True, find(finished_run))
    message = str(error.value)
    assert_mentions(message, field, repr(old_value), repr(value), "--workdir")
    assert artifact in message
    assert "--allow_config_changes" not in message


def test_the_number_of_sampling_slots_may_change_at_any_time(finished_run):
    old = json.loads((finished_run / "config.json").read_text())
    changes = diff.changes(old, stored(iterations=2, sampling__max_concurrent=16))
    diff.check_changes(finished_run, changes, True, find(finished_run))
    with pytest.raises(ConfigError, match=r"sampling\.max_concurrent\b.*\b32\b.*\b16\b.*--allow_config_changes\b"):
        diff.check_changes(finished_run, changes, False, find(finished_run))


def test_settings_that_no_artifact_depends_on_may_change_if_allowed(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    for path in (workdir / "m2").iterdir():
        if not path.name.startswith(("prompts", "responses", "judgments")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
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
    assert before.items() <= contents(workdir).items()
    # Each manifest says by which settings its rows were made.
    digests = {p.name: json.loads(p.read_text())["config"] for p in workdir.glob("*/*.manifest.json")}
    assert digests["ift.manifest.json"] == diff.config_hash(stored(iterations=5)) != digests["pairs.manifest.json"]
    assert digests["pairs.manifest.json"] == diff.config_hash(stored(dpo__beta=0.3, checks__num_probe_prompts=9))
    # Now an artifact depends on it.
    with pytest.raises(ConfigError, match=r"\bm2/ref_logprobs\.json\b.*\bdpo\.beta\b"):
        loop.run(micro(2), str(workdir), allow_config_changes=True)


def test_a_file_that_was_edited_is_named_with_its_setting(tmp_path):
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("ift", "eft")}
    for path in paths.values():
        path.write_text("{}")
    cfg = micro(2)
    cfg.data.update({name: str(path) for name, path in paths.items()})
    workdir = tmp_path / "run"
    workdir.mkdir()
    current = make_run(cfg, str(workdir))
    (workdir / "config.json").write_text(json.dumps(check(current, TABLE.dependents)[0]))
    assert check(current, TABLE.dependents)[1] == []
    for text, fact in ((" {}", "changed since this run began"), (None, "no longer")):
        paths["eft"].unlink() if text is None else paths["eft"].write_text(text)
        with pytest.raises(ConfigError) as error:
            check(current, TABLE.dependents)
        assert_mentions(str(error.value), "data.eft", paths["eft"], fact, "--workdir", "restore the file")
        assert "inputs." not in str(error.value)
        assert str(paths["ift"]) not in str(error.value)
    cfg.data.ift = str(tmp_path / "*.nothing")
    with pytest.raises(DataError, match=r"^data\.ift: .*\*\.nothing"):
        check(current, TABLE.dependents)


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


def test_artifacts_without_config_json_keep_their_settings(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    (workdir / "config.json").unlink()
    before = contents(workdir)
    for field, value in (("seed", 7), ("dpo.beta", 0.3)):
        other = micro(2)
        other.update_from_flattened_dict({field: value})
        with pytest.raises(ConfigError) as caught:
            loop.run(other, str(workdir), allow_config_changes=True)
        assert_mentions(
            str(caught.value), workdir, "config.json", "--workdir", diff.config_hash(json.loads(other.to_json()))
        )
    assert contents(workdir) == before
    loop.run(micro(2), str(workdir))
    assert (workdir / "config.json").read_bytes() == (finished_run / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("null", ["None"]),
        ("[]", ["[]"]),
        ("3", ["3"]),
        ("{}", ["chat"]),
        ("[" * 100_000, ["damaged"]),
        ('"\udc80"', ["damaged"]),
        ({"dpo": 3}, ["dpo", "3"]),
        ({"dpo.beta": "0.1"}, ["dpo.beta", "'0.1'", "float"]),
        ({"dpo.beta": float("nan")}, ["dpo.beta", "nan"]),
        ({"seed": 10**30}, ["seed", 10**30]),
        ({"seed": True}, ["seed", "True", "int"]),
        ({"sft.sets": "ift"}, ["sft.sets", "'ift'", "tuple"]),
        ({"sft.sets": [3]}, ["sft.sets", "[3]"]),
        ({"data.ift": None}, ["data.ift", "None", "str"]),
        ({"extra": 1}, ["extra"]),
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_config_json_that_is_not_ours_is_refused_and_left_alone(finished_run, tmp_path, text, facts):
    if isinstance(text, dict):
        settings = json.loads((finished_run / "config.json").read_text())
        for field, value in text.items():
            *groups, name = field.split(".")
            functools.reduce(dict.__getitem__, groups, settings)[name] = value
        text = json.dumps(settings)
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        loop.run(micro(2), str(tmp_path), allow_config_changes=True)
    assert_mentions(str(caught.value), tmp_path, "config.json", *facts)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == before

"""The stage table: a stage of it writes each artifact, and each setting decides an artifact or says why not."""

from fnmatch import fnmatchcase

import pytest
from conftest import micro

from selfreward_jax.config import default_config
from selfreward_jax.config.comments import flatten_config
from selfreward_jax.config.diff import RUNTIME_FIELDS
from selfreward_jax.runs.run import make_run
from selfreward_jax.stages.table import STAGES, TABLE

# Written by the loop itself, or by what follows it.
OF_THE_LOOP = ("config.json", "events.jsonl", "log.txt", "summary.json", "report.html", "lock")
OF_THE_LOOP += ("tensorboard", "tensorboard/*")


def patterns():
    return [pattern for stage in STAGES for pattern in stage.patterns]


def test_every_artifact_is_written_by_a_stage(finished_run):
    for path in make_run(micro(2), str(finished_run)).files.artifacts():
        name = str(path)
        folder = "/" not in name and any(fnmatchcase(name, p.split("/")[0]) for p in patterns())
        assert folder or any(fnmatchcase(name, p) for p in (*patterns(), *OF_THE_LOOP)), name


def test_every_step_of_a_finished_run_is_complete(finished_run):
    run = make_run(micro(2), str(finished_run))
    steps = TABLE.steps(run.cfg)
    assert [s.label for s in steps if s.stage.manifest and s.manifest(run) is None] == []
    assert [s.label for s in steps if s.folder == "m2" and s.stage.run][:3] == [
        "m2 check_judge",
        "m2 prompts",
        "m2 responses",
    ]


def test_what_is_read_was_written_by_an_earlier_step():
    cfg = default_config()
    cfg.iterations = 3
    written, steps = [], TABLE.steps(cfg)
    others = [stage for stage in STAGES if stage not in {step.stage for step in steps}]
    of_variants = [p.replace("{m}", "m*") for stage in others for p in stage.writes]
    for step in steps:
        for name in (step.path(name).replace("*", "x") for name in step.stage.reads):
            assert any(fnmatchcase(name, p) for p in (*written, *of_variants)), (step.label, name)
        written += [p.replace("{m}", step.folder) for p in step.stage.writes]


@pytest.mark.parametrize(
    ("settings", "added"),
    [
        ({"pairs.rejected": "anchor"}, {"m3 anchor_responses", "m3 anchor_judgments"}),
        ({"pairs.agreement": "judges"}, {"m3 earlier_judgments"}),
        ({"dpo.judge_pairs": "meta"}, {f"m{t} {name}" for t in (2, 3) for name in ("meta_judgments", "judge_pairs")}),
        ({"dpo.judge_pairs": "meta", "dpo.judge_pair_rounds": 1}, {"m2 meta_judgments", "m2 judge_pairs"}),
    ],
)
def test_the_steps_that_a_variant_adds(settings, added):
    plain, changed = default_config(), default_config()
    plain.iterations = changed.iterations = 3
    changed.update_from_flattened_dict(settings)
    labels = [[step.label for step in TABLE.steps(cfg)] for cfg in (plain, changed)]
    assert set(labels[1]) - set(labels[0]) == added
    assert [label for label in labels[1] if label not in added] == labels[0]
    for label in added:  # each is made before what reads it
        assert labels[1].index(label) < labels[1].index(f"{label.split()[0]} dpo")


def test_every_setting_decides_an_artifact_or_is_known_to_decide_none():
    for field in flatten_config(default_config()):
        free = {field, field.split(".")[0]} & {*RUNTIME_FIELDS, *TABLE.without_artifacts}
        assert free or TABLE.dependents(field) != ("*/*",), field
        assert not (free & set(RUNTIME_FIELDS) and free & set(TABLE.without_artifacts)), field


def test_every_setting_that_a_stage_names_exists():
    fields = flatten_config(default_config())
    known = {".".join(f.split(".")[:n]) for f in fields for n in (1, 2)} | {"inputs"}
    assert {name for stage in STAGES for name in stage.settings} <= known


@pytest.mark.parametrize(
    ("field", "decides"),
    [
        ("seed", ["seed/*"]),
        ("prompts.max_rouge", ["m[2-9]/prompts.*", "m[1-9][0-9]*/prompts.*", "prompts_writer.json"]),
        ("prompts.template", ["seed/*", "m[2-9]/prompts.*", "m[1-9][0-9]*/prompts.*", "prompts_writer.json"]),
        ("sft.lr", ["sft/*", "m1/*"]),
        ("max_nonfinite_steps", ["m*/steps", "sft/steps"]),
        ("sampling.max_concurrent", []),
        ("pairwise.method", ["m[2-9]/early_*", "m[1-9][0-9]*/early_*"]),
        ("something.new", ["*/*"]),
    ],
)
def test_what_a_setting_decides_by_hand(field, decides):
    assert list(TABLE.dependents(field)) == decides


@pytest.mark.parametrize("field", ["judge.template", "pairwise.template", "meta.template"])
def test_a_model_is_not_asked_in_another_form_than_it_was_taught(field):
    """The seeds that teach a task are written with its template."""
    assert set(TABLE.dependents(field)) & {"m1/*", "seed/*"}


def test_a_name_of_the_working_directory_is_no_pattern(finished_run, tmp_path):
    odd = tmp_path / "lr=[5e-5] *?"
    odd.symlink_to(finished_run)
    files = make_run(micro(2), str(odd)).files
    assert files.model_names() == ["m0", "m1", "m2"]
    assert files.first_match(("*/pairs.*",)) == "m2/pairs.jsonl"

"""Whose an artifact is: what another run made is never used, however intact it is."""

import shutil

import pytest
from conftest import assert_mentions, micro
from etils import epath
from test_loop import contents

from selfreward_jax import loop, storage
from selfreward_jax.runs.loading import load_model, resolve_model
from selfreward_jax.runs.log import read_events
from selfreward_jax.runs.owner import digest
from selfreward_jax.runs.run import make_run
from selfreward_jax.stages.table import TABLE


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    """A finished run of another seed."""
    cfg = micro(2)
    cfg.seed = 7
    path = tmp_path_factory.mktemp("other") / "run"
    loop.run(cfg, str(path))
    return path


# What is copied from the other run over ours: each kind of artifact alone, with its manifest, and with all that is
# needed to look complete.
KINDS = {
    "seed rows": ["seed/ift.jsonl"],
    "seed rows and manifest": ["seed/ift.jsonl", "seed/ift.manifest.json"],
    "all seeds": ["seed"],
    "tokenizer": ["tokenizer"],
    "a tokenizer file": ["tokenizer/tokenizer.model"],
    "a base model": ["m0"],
    "a checkpoint": ["m1/checkpoint"],
    "a checkpoint and its hashes": ["m1/checkpoint", "m1/checkpoint.json"],
    "a manifest of a model": ["m1/manifest.json"],
    "a model": ["m1/checkpoint", "m1/checkpoint.json", "m1/manifest.json"],
    "prompts": ["m2/prompts.jsonl", "m2/prompts.manifest.json"],
    "responses": ["m2/responses.jsonl", "m2/responses.manifest.json"],
    "judgments": ["m2/judgments.jsonl", "m2/judgments.manifest.json"],
    "pairs": ["m2/pairs.jsonl", "m2/pairs.manifest.json"],
    "checks": ["m2/checks.json"],
    "reference log-probs": ["m2/ref_logprobs.json"],
    "a round": ["m2"],
    "evaluation rows": ["m2/eval_answers.jsonl", "m2/eval_answers.manifest.json"],
    "figures": ["m2/eval.json"],
    "all models": ["m0", "m1", "m2"],
    "the seed report": ["seed/report.json"],
    "the log": ["events.jsonl"],
}


def copy(source, target, names):
    for name in names:
        if (source / name).is_dir():
            shutil.rmtree(target / name)
            shutil.copytree(source / name, target / name)
        else:
            shutil.copyfile(source / name, target / name)


# These are read only where the model of the second round is still to be made.
READ_BY_DPO = ("a checkpoint", "reference log-probs")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_another_run_made_is_quarantined_and_made_again(kind, finished_run, other_run, tmp_path, capsys):
    shutil.copytree(finished_run, tmp_path / "run")
    copy(other_run, tmp_path / "run", KINDS[kind])
    if kind in READ_BY_DPO:
        (tmp_path / "run" / "m2" / "manifest.json").unlink()
        if kind == "a checkpoint":
            (tmp_path / "run" / "m2" / "ref_logprobs.json").unlink()
    capsys.readouterr()
    loop.run(micro(2), str(tmp_path / "run"))
    out = capsys.readouterr()
    assert contents(tmp_path / "run") == contents(finished_run)
    assert "quarantined as" in out.out + out.err
    assert list((tmp_path / "run").glob("**/*.damaged*"))


def test_a_summary_of_another_run_is_replaced(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text('{"models": {}, "config": {"seed": 7}}')
    loop.run(micro(2), str(tmp_path / "run"))
    assert contents(tmp_path / "run") == contents(finished_run)


def test_a_log_of_another_run_is_quarantined(finished_run, tmp_path, capsys):
    shutil.copytree(finished_run, tmp_path / "run")
    log = tmp_path / "run" / "events.jsonl"
    other = log.read_text().replace(next(read_events(epath.Path(log)))["settings"], "0123456789abcdef")
    log.write_text(other)
    capsys.readouterr()
    loop.run(micro(2), str(tmp_path / "run"))
    assert_mentions(capsys.readouterr().err, log, "events.jsonl.damaged")
    assert (tmp_path / "run" / "events.jsonl.damaged").read_text() == other
    assert next(read_events(epath.Path(log)))["begins"]
    assert contents(tmp_path / "run") == contents(finished_run)


@pytest.mark.parametrize("kind", ["other settings", "other pairs", "another folder"])
def test_a_model_of_another_run_is_not_loaded(kind, finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    load_model(str(workdir), "m2")
    path, model = epath.Path(workdir / "m2" / "pairs.manifest.json"), "m2"
    if kind == "other settings":
        text = (workdir / "config.json").read_text()
        assert '"beta": 0.1' in text
        (workdir / "config.json").write_text(text.replace('"beta": 0.1', '"beta": 0.2'))
        differs = "dpo"
    elif kind == "other pairs":
        storage.write_checksummed(path, storage.read_checksummed(path) | {"sha256": "0" * 64})
        differs = "m2/pairs.jsonl"
    else:
        shutil.copytree(workdir / "m2", workdir / "m3")
        model, differs = "m3", "folder"
    for load in (load_model, resolve_model):
        with pytest.raises(storage.StorageError) as caught:
            load(str(workdir), model)
        assert_mentions(str(caught.value), workdir / model, differs)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["responses", "judgments"])
def test_rows_that_another_run_appended_are_made_again(stage, finished_run, other_run, tmp_path, capsys):
    for source, name in ((finished_run, "run"), (other_run, "other")):
        shutil.copytree(source, tmp_path / name)
        cfg = micro(2)
        cfg.seed = 7 if name == "other" else 0
        rewind(tmp_path / name, cfg, stage)
    partial = f"m2/{stage}.jsonl.partial"
    shutil.copyfile(tmp_path / "other" / partial, tmp_path / "run" / partial)
    capsys.readouterr()
    loop.run(micro(2), str(tmp_path / "run"))
    assert contents(tmp_path / "run") == contents(finished_run)
    assert_mentions("".join(capsys.readouterr()), partial)


def rewind(workdir, cfg, stage):
    """Takes a run back to half of the rows of a stage of its second model."""
    run = make_run(cfg, str(workdir))
    (step,) = (s for s in TABLE.steps(cfg) if s.label == f"m2 {stage}")
    artifact = run.files.jsonl("m2", stage)
    rows = artifact.rows()
    run.files.owner = digest(run, step)
    artifact = run.files.jsonl("m2", stage)
    artifact.rewrite_partial(rows[: len(rows) // 2])
    for path in (artifact.path, artifact.manifest_path):
        path.unlink()


def test_artifacts_of_another_owner_are_quarantined_and_made_again(finished_run, tmp_path, capsys):
    shutil.copytree(finished_run, tmp_path / "run")
    names = ("m2/pairs.manifest.json", "m2/eval.json")
    for name in names:
        path = epath.Path(tmp_path / "run" / name)
        storage.write_checksummed(path, storage.read_checksummed(path) | {"owner": "0123456789abcdef"})
    capsys.readouterr()
    loop.run(micro(2), str(tmp_path / "run"))
    err = capsys.readouterr().err
    for name in names:
        assert (tmp_path / "run" / f"{name}.damaged").exists()
        assert_mentions(err, tmp_path / "run" / name, "0123456789abcdef")
    assert contents(tmp_path / "run") == contents(finished_run)


def test_the_same_artifact_is_regenerated_once_in_a_start(finished_run, tmp_path, monkeypatch):
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "m2" / "pairs.jsonl").write_text("{}\n")
    monkeypatch.setattr("selfreward_jax.storage.artifacts._read_bytes", lambda path, sha256: None)
    with pytest.raises(storage.CorruptionError):
        loop.run(micro(2), str(tmp_path / "run"))


def test_artifacts_of_an_older_version_are_refused(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    path = epath.Path(tmp_path / "run" / "m1" / "manifest.json")
    manifest = storage.read_checksummed(path)
    del manifest["owner"]
    storage.write_checksummed(path, manifest)
    with pytest.raises(storage.StorageError) as caught:
        loop.run(micro(2), str(tmp_path / "run"))
    assert_mentions(str(caught.value), path, "--workdir")
    assert not list((tmp_path / "run").glob("**/*.damaged*"))


def test_every_manifest_names_the_step_that_made_it(finished_run):
    run = make_run(micro(2), str(finished_run))
    made = {step.label: step.manifest(run) for step in TABLE.steps(run.cfg) if step.stage.manifest and step.stage.run}
    owners = {label: manifest["owner"] for label, manifest in made.items() if manifest is not None}
    assert len(set(owners.values())) == len(owners) > 12
    for step in TABLE.steps(run.cfg):
        if step.label in owners:
            assert digest(run, step) == owners[step.label]


@pytest.mark.parametrize(
    ("field", "value", "changes"),
    [
        ("seed", 1, "seed documents"),
        ("pretrain.lr", 1e-3, "m0 pretrain"),
        ("sft.lr", 1e-3, "m1 sft"),
        ("responses.top_p", 0.5, "m2 responses"),
        ("dpo.beta", 0.2, "m2 dpo"),
        ("checks.max_ties", 0.5, None),
        ("sampling.max_concurrent", 8, None),
    ],
)
def test_a_setting_changes_the_digest_of_the_step_that_it_decides(field, value, changes, finished_run):
    changed = micro(2)
    changed.update_from_flattened_dict({field: value})
    before, after = (make_run(cfg, str(finished_run)) for cfg in (micro(2), changed))
    labels = [step.label for step in TABLE.steps(changed) if digest(before, step) != digest(after, step)]
    assert labels == ([changes] if changes else []) or (changes in labels and field in ("responses.top_p", "dpo.beta"))

"""Early stopping: which step is kept, when training ends, and that a restart decides alike."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath

from selfreward_jax.stages import early_stopping
from selfreward_jax.stages.early_stopping import EarlyStopping
from selfreward_jax.storage.artifacts import JsonlArtifact

# Each "model" is a number and answers with it; the greater number wins.


class Run:
    """The part of a run that early stopping uses."""

    cfg = SimpleNamespace(dpo=SimpleNamespace(eval_prompts=3), evaluate=None)

    owner = ""

    def __init__(self, path):
        self.workdir, self.compared = epath.Path(path), []
        self.files = self.models = self
        self.jsonl("seed", "validation").finish([{"id": f"v/{i}", "prompt": f"p{i}"} for i in range(5)])

    def jsonl(self, *names):
        return JsonlArtifact(self.workdir.joinpath(*names[:-1]) / f"{names[-1]}.jsonl")

    def is_complete(self, folder, stage):
        return self.jsonl(folder, stage).manifest is not None

    def make_engine(self, params):
        return params["w"]

    def merge_lora(self, params):
        return params

    def load_trainable(self, model, path=None):
        return self.saved[int(path.name)] if path else {"w": np.float32(0)}

    def drop_engine(self):
        pass


@pytest.fixture
def make(tmp_path, monkeypatch):
    def sample_with_engine(run, engine, prompts, settings, folder, stage):
        if run.jsonl(folder, stage).manifest is None:
            run.jsonl(folder, stage).finish([{**row, "answer": float(engine)} for row in prompts])

    def compare(run, judge, ours, theirs, folder, stage):
        assert judge == "m1"
        assert len(ours) == len(theirs) == 3
        run.compared.append((ours[0]["answer"], theirs[0]["answer"]))
        return [[int(np.sign(a["answer"] - b["answer"]))] for a, b in zip(ours, theirs, strict=True)]

    first = lambda run, model, *rest: sample_with_engine(run, 0, *rest)  # noqa: E731
    monkeypatch.setattr(early_stopping, "sample_responses", first)
    monkeypatch.setattr(early_stopping, "sample_with_engine", sample_with_engine)
    monkeypatch.setattr(early_stopping, "compare", compare)
    monkeypatch.setattr(early_stopping, "_one_sample", lambda settings: settings)
    saved = Run.saved = {}
    monkeypatch.setattr(
        early_stopping.checkpoints, "save_step", lambda path, step, params, owner: saved.update({step: params})
    )
    return lambda: EarlyStopping(Run(tmp_path), "m2", "m1")


def model(w):
    return {"w": np.float32(w)}


def test_training_continues_while_it_wins_and_the_best_step_is_kept(make):
    stopping = make()
    assert [stopping(step, model(w)) for step, w in ((2, 3.0), (4, 5.0), (6, 4.0))] == [True, True, False]
    assert stopping.run.compared == [(3, 0), (5, 3), (4, 5)]  # each against the best so far
    assert stopping.best == 4
    assert stopping.best_params() == model(5.0)
    stopping.finish()
    late = make()  # killed when the record was complete and the model was not
    assert (late.best, late(6, model(4.0))) == (4, False)
    assert late.run.compared == []
    rows = [json.loads(line) for line in (stopping.run.workdir / "m2/early_stopping.jsonl").read_text().splitlines()]
    assert [(r["id"], r["against"], r["kept"]) for r in rows] == [("2", 0, True), ("4", 2, True), ("6", 4, False)]
    assert [(r["win"], r["lose"]) for r in rows] == [(1, 0), (1, 0), (0, 1)]


def test_a_model_that_never_wins_keeps_its_weights(make):
    stopping = make()
    assert not stopping(2, model(-1.0))
    assert (stopping.best, stopping.best_params()) == (0, model(0.0))


def test_a_tie_is_no_win(make):
    assert not make()(2, model(0.0))


def test_a_restart_remembers_what_was_decided(make):
    make()(2, model(3.0))
    again = make()
    assert again.best == 2
    assert again(2, model(3.0)) is True  # trained up to there again
    assert again.run.compared == []  # and not compared again
    assert again(4, model(1.0)) is False
    assert again.run.compared == [(1, 3)]
    assert make()(4, model(1.0)) is False

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

    def __init__(self, path):
        self.dir, self.compared = epath.Path(path), []
        self.rows("seed", "validation").finish([{"id": f"v/{i}", "prompt": f"p{i}"} for i in range(5)])

    def rows(self, *names):
        return JsonlArtifact(self.dir.joinpath(*names[:-1]) / f"{names[-1]}.jsonl")

    def engine_of(self, params):
        return params["w"]

    def whole(self, params):
        return params

    def trained(self, model, path=None):
        return self.saved[int(path.name)] if path else {"w": np.float32(0)}

    def release(self):
        pass


@pytest.fixture
def make(tmp_path, monkeypatch):
    def answer_with(run, engine, asked, how, owner, stage):
        if run.rows(owner, stage).manifest is None:
            run.rows(owner, stage).finish([{**row, "said": float(engine)} for row in asked])

    def compare(run, judging, ours, theirs, owner, stage):
        assert judging == "m1"
        assert len(ours) == len(theirs) == 3
        run.compared.append((ours[0]["said"], theirs[0]["said"]))
        return [[int(np.sign(a["said"] - b["said"]))] for a, b in zip(ours, theirs, strict=True)]

    monkeypatch.setattr(early_stopping, "answer", lambda run, model, *rest: answer_with(run, 0, *rest))
    monkeypatch.setattr(early_stopping, "answer_with", answer_with)
    monkeypatch.setattr(early_stopping, "compare", compare)
    monkeypatch.setattr(early_stopping, "_one_answer", lambda settings: settings)
    saved = Run.saved = {}
    monkeypatch.setattr(
        early_stopping.checkpoints, "save_step", lambda path, step, params: saved.update({step: params})
    )
    return lambda: EarlyStopping(Run(tmp_path), "m2", "m1")


def model(w):
    return {"w": np.float32(w)}


def test_it_goes_on_while_it_wins_and_keeps_the_best(make):
    stopping = make()
    assert [stopping(step, model(w)) for step, w in ((2, 3.0), (4, 5.0), (6, 4.0))] == [True, True, False]
    assert stopping.run.compared == [(3, 0), (5, 3), (4, 5)]  # each against the best so far
    assert stopping.best == 4
    assert stopping.best_params() == model(5.0)
    stopping.finish()
    late = make()  # killed after the record was whole, before the model was
    assert (late.best, late(6, model(4.0))) == (4, False)
    assert late.run.compared == []
    rows = [json.loads(line) for line in (stopping.run.dir / "m2/early_stopping.jsonl").read_text().splitlines()]
    assert [(r["id"], r["against"], r["kept"]) for r in rows] == [("2", 0, True), ("4", 2, True), ("6", 4, False)]
    assert [(r["win"], r["lose"]) for r in rows] == [(1, 0), (1, 0), (0, 1)]


def test_a_model_that_never_wins_stays_what_it_was(make):
    stopping = make()
    assert not stopping(2, model(-1.0))
    assert (stopping.best, stopping.best_params()) == (0, model(0.0))


def test_a_tie_is_no_win(make):
    assert not make()(2, model(0.0))


def test_a_restart_remembers_what_was_decided(make):
    make()(2, model(3.0))
    again = make()
    assert again.best == 2
    assert again(2, model(3.0)) is True  # trained up to there once more
    assert again.run.compared == []  # and not compared again
    assert again(4, model(1.0)) is False
    assert again.run.compared == [(1, 3)]
    assert make()(4, model(1.0)) is False

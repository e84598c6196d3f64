"""Files of prompts: what is read, what is refused, and that rounds share nothing."""

import json

import pytest
from conftest import arguments, assert_mentions, ended

from selfreward_jax import main
from selfreward_jax.data.limits import DataError
from selfreward_jax.data.pool import read_pool


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_texts_rows_and_conversations_are_prompts(tmp_path):
    conversation = {"messages": [{"role": "user", "content": "What do bees eat?"}]}
    path = write(
        tmp_path / "pool.jsonl",
        "What is wax?",
        {"prompt": "what is WAX"},
        {"instruction": "Name a tree."},
        conversation,
    )
    assert read_pool(path) == [{"prompt": "What is wax?"}, {"prompt": "Name a tree."}, {"prompt": "What do bees eat?"}]


@pytest.mark.parametrize("row", [{"prompt": ""}, {"text": 3}, 7, {}])
def test_a_row_without_a_prompt_is_refused(tmp_path, row):
    with pytest.raises(DataError, match=r"prompts\.source .*pool\.jsonl"):
        read_pool(write(tmp_path / "pool.jsonl", "What is wax?", row))


def test_a_file_with_too_few_prompts_for_all_rounds_is_refused_at_the_start(tmp_path):
    pool = write(tmp_path / "pool.jsonl", *(f"Could you name {n} trees?" for n in range(2, 15)))
    options = {"prompts.source": pool, "prompts.count": 6, "prompts.later_count": 8}
    code, err = ended(main, *arguments(tmp_path / "run", 3, *(f"--config.{k}={v}" for k, v in options.items())))
    assert code == 2
    assert_mentions(err.splitlines()[-1], "prompts.source", 13, 14, "prompts.count 6", "prompts.later_count 8")


@pytest.mark.slow
def test_rounds_take_their_prompts_from_the_file(tmp_path):
    texts = [f"Could you name {n} kinds of {what} for me?" for n in range(2, 9) for what in ("trees", "boats")]
    pool = write(tmp_path / "pool.jsonl", *texts)
    options = {"prompts.source": pool, "prompts.count": 6, "prompts.later_count": 8, "judge.kind": "random"}
    code, err = ended(main, *arguments(tmp_path / "run", 3, *(f"--config.{k}={v}" for k, v in options.items())))
    assert code == 0, err
    rounds = [
        [json.loads(line)["prompt"] for line in (tmp_path / "run" / name / "prompts.jsonl").read_text().splitlines()]
        for name in ("m2", "m3")
    ]
    assert [len(of) for of in rounds] == [6, 8]
    assert sorted(rounds[0] + rounds[1]) == sorted(texts)

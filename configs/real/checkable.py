"""A real base model improves by judging itself: people's requests with instructions that a program can check.

    python -m selfreward_jax.main --config=configs/real/checkable.py --workdir=runs/real \
        --config.model.init=FOLDER --config.data.ift=FILE

FOLDER is a base model such as Gemma 3 270M (on a CPU, one with a vocabulary cut to English is half the work); FILE has
people's requests and answers, of which those are used that are plain sentences. A stopped run goes on where it was.
On a CPU under Linux, GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before the command makes training a sixth faster.

Machines, after a colon:
  cpu   two cores, 16 GB: hours (default)
  gpu   one GPU of 16 GB or more: four times the rows (untested)
"""

from ml_collections import ConfigDict

from selfreward_jax import config

# What both have in common, chosen on validation prompts with Gemma 3 270M of 32,768 pieces, seed 0: M1 met 46 % of what
# was asked, M2 62 %, M2 : M1 +31 [+19 +43]. At an SFT rate of 2e-4 the judge looked up words and commas worse.
COMMON = {
    "world": "checkable",
    "iterations": 3,
    "optimizer.name": "adamw",
    "optimizer.b2": 0.95,
    "model.max_length": 512,
    "model.remat": "dots",  # on a CPU faster than "none" too: less to write and to read
    "data.judge_eval_answers": 4,
    "sft.epochs": 1.0,
    "sft.seq_len": 512,
    "sft.lr": 1.5e-4,
    "sft.lr_end": 1.5e-5,
    "prompts.temperature": 0.7,
    "prompts.max_new_tokens": 96,
    "prompts.min_words": 8,
    "prompts.max_words": 60,
    "prompts.max_rouge": 0.7,
    "responses.temperature": 0.8,
    "responses.max_new_tokens": 192,  # capitals take more tokens
    "judge.max_new_tokens": 128,
    "pairwise.max_new_tokens": 128,
    "dpo.epochs": 2.0,
    "dpo.lr": 2e-5,
    "dpo.lr_end": 2e-6,
    "dpo.nll_weight": 0.2,
    "dpo.replay_weight": 1.0,
    "dpo.replay_seq_len": 512,
    "evaluate.max_new_tokens": 192,
    "evaluate.num_samples": 4,  # one answer to each of 128 prompts has a standard error of 5 points
    "pairs.min_gap": 1.0,  # of pairs with a smaller one 18 % were better by the oracle, of the others 75 %
}
MACHINES = {
    "cpu": {
        "data.ift_rows": 4500,
        "data.eft_rows": 3500,
        "data.prompt_rows": 250,
        "data.heldout_prompts": 128,
        "data.judge_eval_prompts": 100,
        "sft.batch_size": 4,
        "prompts.count": 500,
        "prompts.batch_size": 64,
        "prompts.max_attempts": 2000,
        "dpo.batch_size": 8,
        "dpo.replay_batch_size": 2,
        "sampling.max_concurrent": 64,
        "checkpoint_every": 40,
    },
    "gpu": {
        "model.dtype": "bfloat16",
        "data.ift_rows": 18_000,
        "data.eft_rows": 14_000,
        "data.prompt_rows": 1000,
        "data.heldout_prompts": 384,
        "data.judge_eval_prompts": 200,
        "sft.batch_size": 16,
        "prompts.count": 800,
        "dpo.batch_size": 32,
        "dpo.replay_batch_size": 8,
    },
}


def get_config(machine: str = "cpu") -> ConfigDict:
    """The settings for a machine, up to M3."""
    if machine not in MACHINES:
        raise config.ConfigError(f"machine is {machine!r}; it must be one of: {', '.join(MACHINES)}")
    c = config.default_config()
    c.update_from_flattened_dict(COMMON | MACHINES[machine])
    return c

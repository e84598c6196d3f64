"""Seconds of a round by arithmetic: hand-computed values, and what must change them."""

import dataclasses

import pytest

from selfreward_jax import config
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.memory import planner, round_time
from selfreward_jax.memory.machines import Machine, Rates, datasheet, parse_machine
from selfreward_jax.memory.models import known_config
from selfreward_jax.parallel.hardware import Hardware

MODEL = DecoderConfig(
    vocab_size=100, dim=64, num_layers=10, num_heads=4, num_kv_heads=2, head_dim=50, mlp_dim=64, dtype="bfloat16"
)


def test_a_decode_step_by_hand():
    rates = Rates(devices=1, flops=1e15, bandwidth=1e12, source="")
    # A layer: q and o 64 x 200, k and v 64 x 100, three matrices 64 x 64, two norms; an embedding of 100 and a norm.
    count = 10 * (2 * 64 * 200 + 2 * 64 * 100 + 3 * 64 * 64 + 2 * 64) + 100 * 64 + 64
    # Keys and values of 4 rows of 1,000 tokens: 4 x 1,000 x 10 layers x 2 x 2 heads x 50 x 2 bytes.
    one = round_time.decode_step_seconds(MODEL, rates, 4, 1, 1000)
    assert one == pytest.approx((2 * count + 1.6e7) / (0.3 * 1e12))
    # Two devices read half each and wait twice a layer, each time as long as 40 MB take to be read.
    two = round_time.decode_step_seconds(MODEL, rates, 4, 2, 1000)
    assert two == pytest.approx(one / 2 + 20 * 4e7 / 1e12)
    # Many rows: the products take longer than the reading.
    many = round_time.decode_step_seconds(MODEL, rates._replace(flops=1e9), 10_000, 1, 1)
    assert many == pytest.approx(2 * count * 10_000 / (0.24 * 1e9))
    # Of eight experts a token is multiplied with two; many rows read all.
    mixture = dataclasses.replace(MODEL, num_experts=8, experts_per_token=2)
    experts, router = 10 * 3 * 64 * 64, 10 * 64 * 8
    few = round_time.decode_step_seconds(mixture, rates._replace(flops=1e9), 10_000, 1, 1)
    assert few == pytest.approx(2 * (count + experts + router) * 10_000 / (0.24 * 1e9))
    assert round_time.decode_step_seconds(mixture, rates, 4, 1, 1000) == pytest.approx(
        (2 * (count + 7 * experts + router) + 1.6e7) / (0.3 * 1e12)
    )


def times_of(preset, machine, **changes):
    cfg, machine = config.get_config(preset), parse_machine(machine)
    cfg.update_from_flattened_dict(planner.plan(cfg, known_config(cfg), machine).values | changes)
    return cfg, {t.stage: t for t in round_time.round_times(cfg, known_config(cfg), machine)}


def test_training_and_storage_by_hand():
    cfg, times = times_of("llama3_8b", "v5e:4x4")
    count = 8_030_261_248
    pairs = 2 * 0.8 * cfg.prompts.count * (256 + cfg.responses.max_new_tokens / 2)
    assert times["reference log-probs"].seconds == pytest.approx(2 * count * pairs / (16 * 197e12 * 0.24), rel=1e-3)
    assert times["load and save"].seconds == pytest.approx(24 * count / (4 * 0.5e9), rel=1e-3)
    assert times["responses"].amount == cfg.prompts.count * cfg.responses.num_samples * cfg.responses.max_new_tokens / 2


def test_more_devices_more_samples_and_adapters_change_the_times():
    _, small = times_of("llama3_8b", "v5e:4x4")
    _, large = times_of("llama3_8b", "v5e:8x8")
    assert all(large[stage].seconds < small[stage].seconds for stage in small)
    _, more = times_of("llama3_8b", "v5e:4x4", **{"judge.num_samples": 6})
    assert 1.5 < more["judgments"].seconds / small["judgments"].seconds < 2  # prefill stays
    assert more["responses"] == small["responses"]
    cfg, compared = times_of("llama3_8b", "v5e:4x4", **{"judge.kind": "pairwise", "judge.opponents": 2})
    # Each of four responses meets two others, in both orders, with three votes of half of the tokens.
    assert compared["comparisons"].amount == cfg.prompts.count * 4 * 2 * 3 * cfg.pairwise.max_new_tokens / 2
    assert "judgments" not in compared
    _, meta = times_of("llama3_8b", "v5e:4x4", **{"dpo.judge_pairs": "meta"})
    # Of each prompt three votes on one response are compared, in both orders.
    assert meta["meta-judgments"].amount == cfg.prompts.count * 6 * cfg.meta.max_new_tokens / 2
    assert meta["judgments"] == small["judgments"]
    # A quarter of each batch are pairs of judgments, which have half of 256 tokens more on each side.
    side = 256 + cfg.responses.max_new_tokens / 2
    assert meta["dpo"].amount / small["dpo"].amount == pytest.approx(1 + (side + 128) / side / 3)
    # Of 5,000 / .6 attempts, batches of 1,000 wait 9 times for their longest text, of 2,000 5 times, of 5,000 twice.
    sizes = {"prompts.batch_size": 1000}, {"prompts.batch_size": 2000}, {"prompts.batch_size": 5000}
    nine, five, two = (times_of("llama3_8b", "v5e:4x4", **size)[1]["prompts"] for size in sizes)
    assert cfg.prompts.count == 5000
    assert nine.amount == two.amount
    assert nine.seconds - two.seconds == pytest.approx((five.seconds - two.seconds) * 7 / 3)
    assert five.seconds > two.seconds
    _, pool = times_of("llama3_8b", "v5e:4x4", **{"prompts.source": "pool.jsonl"})
    assert pool.keys() == small.keys() - {"prompts"}
    _, adapters = times_of("llama3_8b", "v5e:4x4", **{"lora.rank": 16})
    assert adapters["load and save"].seconds < 0.6 * small["load and save"].seconds


def test_an_unknown_device_has_no_times():
    cfg = config.get_config("tinyllama")
    assert round_time.round_times(cfg, known_config(cfg), Machine("4 x abacus", Hardware("cpu"), 4, 0)) == []
    assert datasheet("abacus", 2) is None
    assert datasheet("NVIDIA H100 80GB HBM3", 2)[:3] == (2, 2 * 989e12, 2 * 3.35e12)
    assert datasheet("TPU v5 lite", 4)[:3] == (4, 4 * 197e12, 4 * 0.82e12)
    assert round_time.format_times([]) == []

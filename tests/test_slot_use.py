"""How many slots are at work: the engine itself, with a model that stands in and gives every sample a known length."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.memory import planner
from selfreward_jax.parallel.mesh import make_mesh
from selfreward_jax.sampling import batching, bucket, sampler
from selfreward_jax.sampling.engine import Engine, Request, SamplingParams

LONGEST = 192
KEY = jax.random.key(0)
CFG = DecoderConfig(
    vocab_size=8, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8, scan_layers=True
)


class FakeSampler:
    """In place of sampler.py: no model, no device. `length` gives the tokens of a sample from its key's data."""

    DrawParams = sampler.DrawParams

    def __init__(self, length):
        self.length, self.inserted, self.prefilled = length, [], set()

    def init_slots(self, cfg, num_slots, prompt_len, max_new_tokens):
        width = np.zeros((num_slots, max_new_tokens))
        samples = sampler.Samples(width.astype(int), width, np.ones(num_slots, int))
        ones = np.ones(num_slots, int)
        return SimpleNamespace(samples=samples, done_B=ones > 0, steps_B=0 * ones, ends_B=ones)

    def prefill(self, cfg, params, tokens, lengths, prefix):
        self.prefilled |= {(int(n), tokens.shape[1]) for n in lengths}
        return None, None

    def insert(self, slots, slot_index, prompt_index, logits, segment, lengths, keys, draw, stop_ids):
        for slot, key in zip(slot_index, keys, strict=True):
            if slot < len(slots.done_B):
                assert slots.done_B[slot]
                slots.samples.lengths[slot], slots.ends_B[slot] = 1, self.length(tuple(key))
                self.inserted.append(tuple(key))
        slots.done_B = slots.samples.lengths >= slots.ends_B
        return slots

    def decode(self, cfg, params, slots, prefix, draw, min_free, stop_ids):
        while slots.done_B.sum() < min_free:
            slots.samples.lengths[:] += ~slots.done_B
            slots.done_B = slots.samples.lengths >= slots.ends_B
            slots.steps_B += 1
        return slots


@pytest.fixture
def simulate(monkeypatch):
    """A function of requests, samples and a length rule that returns the engine, its completions and the stand-in."""

    def run(prompt_lengths, num_samples, length, *, slots=64, stop_after=10**9, done=()):
        fake = FakeSampler(length)
        monkeypatch.setattr(bucket, "sampler", fake)
        monkeypatch.setattr(bucket, "fetch", lambda x: x)
        monkeypatch.setattr(bucket, "put", lambda x, _: x)
        monkeypatch.setattr(batching, "MIN_SHARED_PREFIX", 10**9)
        chat = SimpleNamespace(stop_ids=[0], prompt_ids=lambda p: [1] * int(p), response_text=lambda ids: "")
        engine = Engine(
            CFG, {"layers": []}, chat, make_mesh(devices=jax.devices()[:1]), max_concurrent=slots, max_length=10**6,
            should_stop=lambda: len(fake.inserted) >= stop_after,
        )  # fmt: skip
        requests = [Request(f"r{i}", str(n)) for i, n in enumerate(prompt_lengths)]
        params = SamplingParams(num_samples, 1.0, 1.0, LONGEST)
        return engine, list(engine.stream(requests, params, KEY, done)), fake

    return run


def log_normal(median, sigma):
    """Lengths that depend on a sample's key alone: log-normal with this median, and cut off at LONGEST."""
    draw = lambda key: np.random.default_rng([int(x) for x in key]).lognormal(np.log(median), sigma)  # noqa: E731
    return lambda key: int(np.clip(draw(key), 1, LONGEST))


def prompt_lengths(number, median, seed=3):
    return np.random.default_rng(seed).lognormal(np.log(median), 0.6, number).astype(int) + 8


@pytest.mark.parametrize(
    ("number", "num_samples", "prompt_median", "median", "sigma"),
    [(500, 4, 40, 60, 0.7), (2000, 3, 200, 90, 0.35), (500, 4, 40, 30, 1.0), (64 * planner.FILLS, 1, 300, 60, 0.7)],
    ids=["responses", "judgments", "long tail", "a batch of new prompts"],
)
def test_at_least_88_of_100_slots_are_at_work(simulate, number, num_samples, prompt_median, median, sigma):
    lengths = prompt_lengths(number, prompt_median)
    engine, batches, fake = simulate(lengths, num_samples, log_normal(median, sigma))
    assert sum(map(len, batches)) == number * num_samples == len(set(fake.inserted))
    assert engine.slot_use.share >= 0.88


# Tokens of the texts of M2 in the toy world (preset tiny, seed 0), with the end token: 32 quantiles of each kind.
RECORDED = {
    "answers": [*range(16, 32), 13, 18, 21, 22, 22, 23, 24, 25, 26, 27, 29, 31, 33, 34, 35, 38],
    "votes": [*range(60, 83), 56, 69, 70, 74, 76, 84, 85, 88, 92],
    "prompts": [12] * 6 + [13] * 11 + [14] * 10 + [15] * 5,
}


@pytest.mark.parametrize(
    ("kind", "number", "num_samples", "slots"),
    [("answers", 600, 4, 256), ("votes", 2400, 3, 256), ("prompts", 64 * planner.FILLS, 1, 64)],
)
def test_the_same_with_recorded_lengths(simulate, kind, number, num_samples, slots):
    """With the sizes of that run: 600 prompts, 2,400 answers, 256 slots. New prompts by the planner's rule."""
    draw = lambda key: int(np.random.default_rng([int(x) for x in key]).choice(RECORDED[kind]))  # noqa: E731
    engine, _, _ = simulate(prompt_lengths(number, 20), num_samples, draw, slots=slots)
    assert engine.slot_use.share >= 0.88


def test_slots_are_taken_from_the_replica_with_most_of_them():
    free = [5, 0, 6, 1, 7, 4]  # two replicas with slots 0 to 3 and 4 to 7, the oldest first
    assert bucket.take_slots(free, 4, 4) == [5, 6, 7, 0]
    assert free == [1, 4]
    assert bucket.take_slots(free, 2, 8) == [1, 4]
    assert (free, bucket.take_slots(free, 0, 4)) == ([], [])


def test_after_a_stop_prompts_with_a_slot_are_finished_and_no_others_are_started(simulate):
    _, batches, fake = simulate([8] * 100, 4, lambda key: 1 + key[0] % LONGEST, slots=6, stop_after=33)
    ids = [c.id for batch in batches for c in batch]
    assert len(ids) == len(fake.inserted) == 36  # nine prompts: with the 33rd sample the last of them was started
    assert all(ids.count(i) == 4 for i in ids)


def test_a_resumed_call_pads_each_prompt_as_the_whole_call_does(simulate):
    lengths = [10] * 3 + [20] * 100  # three do not fill a batch
    for done in ((), {f"r{i}" for i in range(3, 103)}):
        _, _, fake = simulate(lengths, 1, lambda key: 5, done=done)
        assert (10, 32) in fake.prefilled
        assert (10, 16) not in fake.prefilled


def test_samples_that_end_at_once_leave_no_slot_idle(simulate):
    engine, batches, _ = simulate([8] * 50, 2, lambda key: 1, slots=8)
    assert sum(map(len, batches)) == 100
    assert engine.slot_use.share == 1.0  # nothing was decoded

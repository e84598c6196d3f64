"""Which prompts run together: their shared prefix, buckets of similar length, and the number of slots."""

from collections import Counter
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from selfreward_jax.parallel.sharding import batch_divisor, round_up

MIN_BUCKET_FILLS = 32  # a bucket holds enough samples to fill all slots at least this many times
REFILL_GROUPS = 16  # slots are refilled in groups of 1/16, but at least one for each device that shares the rows
PREFILL_GROUPS = 8  # prompts are prefilled for 1/8 of the slots
PREFILL_TOKENS = 8192  # prompt tokens that a device prefills at once, unless a single prompt is longer
PREFILL_TOKENS_CPU = 1024  # more do not stay in a CPU's caches from one matrix product to the next
MIN_SHARED_PREFIX = 32  # tokens; a shorter common prefix is not prefilled separately


def common_prefix_len(ids: Sequence[list[int]]) -> int:
    """How many leading tokens of all prompts are prefilled once for all.

    A multiple of 16, so that few programs are compiled, and 0 if there are few. Each prompt keeps at least one token
    of its own.
    """
    if len(ids) < 2:
        return 0
    limit = min(map(len, ids)) - 1
    first, last = min(ids), max(ids)  # in lexicographic order: a prefix of these two is a prefix of all
    same = next((i for i in range(limit) if first[i] != last[i]), limit)
    return same // 16 * 16 if same >= MIN_SHARED_PREFIX else 0


def bucket_by_length(lengths: Sequence[int], min_size: int) -> list[tuple[list[int], int]]:
    """Buckets of prompts of similar length: the indices of each bucket's prompts, and the length they are padded to.

    Every bucket but the last has at least `min_size` prompts.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    starts = [0]
    for i in range(1, len(lengths)):
        if i - starts[-1] >= min_size and padded_length(lengths[order[i]]) > padded_length(lengths[order[i - 1]]):
            starts.append(i)
    spans = zip(starts, [*starts[1:], len(lengths)], strict=True)
    return [(order[a:b], padded_length(lengths[order[b - 1]])) for a, b in spans if b > a]


def num_slots(num_samples: int, max_concurrent: int, divisor: int) -> int:
    """How many samples of `num_samples` in all are decoded at the same time.

    About `max_concurrent`, not much more than there are, and divisible by `divisor`, the devices that share the rows.
    """
    limit = round_up(max_concurrent, divisor)
    return min(limit, divisor << max(0, -(-num_samples // divisor) - 1).bit_length())


def prefill_batch_size(num_slots: int, num_samples: int, all_at_once: bool, mesh: Mesh, length: int) -> int:
    """How many prompts of `length` tokens, each with `num_samples` samples, are prefilled together.

    `all_at_once`: there is a slot for each sample of the call, so it need not be refilled.
    """
    divisor, groups = batch_divisor(mesh), 1 if all_at_once else PREFILL_GROUPS
    max_tokens = PREFILL_TOKENS_CPU if mesh.devices.flat[0].platform == "cpu" else PREFILL_TOKENS
    wanted = -(-num_slots // (num_samples * groups))
    return round_up(max(1, min(wanted, max_tokens // length * divisor)), divisor)


def prefill_lengths(lengths: Sequence[int], batch_size: Callable[[int], int]) -> list[int]:
    """The length that each prompt is padded to for its prefill.

    The prompts of a padded length that would not fill a batch join those of the next one, if that is at most twice as
    long: each length is a program to compile, and a batch has all of its rows, whether they are used or not.

    batch_size: for a padded length, how many prompts are prefilled together.
    """
    padded = [padded_length(n) for n in lengths]
    groups: list[list[int]] = []  # of lengths that are padded to the last one
    number = 0  # of prompts of the last group
    for length, count in sorted(Counter(padded).items()):
        if groups and number < batch_size(groups[-1][-1]) and length <= 2 * groups[-1][0]:
            groups[-1].append(length)
            number += count
        else:
            groups.append([length])
            number = count
    joined = {length: group[-1] for group in groups for length in group}
    return [joined[n] for n in padded]


def insert_size(num_slots: int, num_samples: int, all_at_once: bool, mesh: Mesh, prompt_len: int) -> int:
    """How many samples enter slots together: no more than one prefill of the longest prompts gives."""
    prefilled = num_samples * prefill_batch_size(num_slots, num_samples, all_at_once, mesh, prompt_len)
    wanted = num_slots if all_at_once else max(1, num_slots // REFILL_GROUPS)
    return round_up(min(wanted, prefilled), batch_divisor(mesh))


def padded_length(num_tokens: int) -> int:
    """The length to which prompts of this many tokens are padded.

    There are few lengths, so few programs are compiled, and the lengths are the same in every round. The steps grow
    to 128:

        16 32 48 64   96 128   192 256   384 512 640 768 ...
    """
    step = min(128, max(16, 1 << max(0, (num_tokens - 1).bit_length() - 2)))
    return round_up(num_tokens, step)

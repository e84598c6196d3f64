"""Which prompts run together: their shared prefix, buckets of similar length, and the number of prompt slots."""

from collections.abc import Sequence

from jax.sharding import Mesh

from selfreward_jax.parallel.sharding import batch_divisor, round_up

MIN_BUCKET_FILLS = 4  # a bucket holds enough prompts to fill all prompt slots at least this many times
REFILL_GROUPS = 8  # prompt slots are refilled in groups of 1/8: at most that fraction is empty before a refill
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


def num_prompt_slots(num_requests: int, max_concurrent: int, num_samples: int, mesh: Mesh) -> int:
    """How many prompts are decoded at the same time, with about `max_concurrent` samples in all.

    The result is divisible by the mesh's batch axes, and not much larger than the number of requests.
    """
    divisor = batch_divisor(mesh)
    limit = round_up(max(1, max_concurrent // num_samples), divisor)
    return min(limit, divisor << max(0, -(-num_requests // divisor) - 1).bit_length())


def prefill_batch_size(num_requests: int, num_slots: int, prompt_len: int, mesh: Mesh) -> int:
    """How many prompts of `prompt_len` tokens are prefilled at once, and inserted when as many slots are free.

    If there is a slot for each request, all prompts are prefilled at once, up to the token limit of a device.
    """
    divisor = batch_divisor(mesh)
    max_tokens = PREFILL_TOKENS_CPU if mesh.devices.flat[0].platform == "cpu" else PREFILL_TOKENS
    wanted = num_slots if num_requests <= num_slots else num_slots // REFILL_GROUPS
    return round_up(max(1, min(wanted, max_tokens // prompt_len * divisor)), divisor)


def padded_length(num_tokens: int) -> int:
    """The length to which prompts of this many tokens are padded.

    There are few lengths, so few programs are compiled, and the lengths are the same in every round. The steps grow
    to 128:

        16 32 48 64   96 128   192 256   384 512 640 768 ...
    """
    step = min(128, max(16, 1 << max(0, (num_tokens - 1).bit_length() - 2)))
    return round_up(num_tokens, step)

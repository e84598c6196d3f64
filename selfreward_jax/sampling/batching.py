"""Which prompts go together: what all begin with, windows of like length, places for them."""

from collections.abc import Sequence

from jax.sharding import Mesh

from selfreward_jax.parallel.sharding import batch_divisor, round_up

WINDOW_DEPTH = 4  # a window of prompts fills the places this often at least
REFILLS = 8  # the places are filled in so many parts: so much of them is empty at most before a part comes in
PREFILL_TOKENS = 8192  # tokens of prompts that a device reads at once, if one prompt is not longer
PREFILL_TOKENS_CPU = 1024  # more fall out of its caches between one product and the next
MIN_SHARED_PREFIX = 32  # tokens that prompts must begin with together to be read apart


def common_prefix_len(ids: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with that are read once for all: a multiple of 16, to compile few programs,
    and 0 if they are few. Each prompt keeps one token of its own."""
    if len(ids) < 2:
        return 0
    most = min(map(len, ids)) - 1
    first, last = min(ids), max(ids)  # in dictionary order: what these share, all share
    same = next((i for i in range(most) if first[i] != last[i]), most)
    return same // 16 * 16 if same >= MIN_SHARED_PREFIX else 0


def bucket_by_length(lengths: Sequence[int], least: int) -> list[tuple[list[int], int]]:
    """Prompts in windows of like length: the numbers of each window's, and the length that they are padded to. Each but
    the last has at least `least`."""
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    cuts = [0]
    for at in range(1, len(lengths)):
        if at - cuts[-1] >= least and padded_length(lengths[by_length[at]]) > padded_length(lengths[by_length[at - 1]]):
            cuts.append(at)
    spans = zip(cuts, [*cuts[1:], len(lengths)], strict=True)
    return [(by_length[a:b], padded_length(lengths[by_length[b - 1]])) for a, b in spans if b > a]


def num_prompt_slots(requests: int, rows: int, samples: int, mesh: Mesh) -> int:
    """Prompts whose samples, about `rows`, are drawn at the same time: as many as the mesh divides, and not many more
    than there are requests."""
    multiple = batch_divisor(mesh)
    most = round_up(max(1, rows // samples), multiple)
    return min(most, multiple << max(0, -(-requests // multiple) - 1).bit_length())


def prefill_batch_size(requests: int, places: int, length: int, mesh: Mesh) -> int:
    """Prompts of `length` tokens that are read at once, and come into as many places when these are free: all of them,
    if there is a place for each request."""
    multiple = batch_divisor(mesh)
    at_once = PREFILL_TOKENS_CPU if mesh.devices.flat[0].platform == "cpu" else PREFILL_TOKENS
    wanted = places if requests <= places else places // REFILLS
    return round_up(max(1, min(wanted, at_once // length * multiple)), multiple)


def padded_length(tokens: int) -> int:
    """The length to which prompts of so many tokens are padded: few lengths, so few programs to compile, and the same
    ones from round to round. The steps grow to 128:

        16 32 48 64   96 128   192 256   384 512 640 768 ...
    """
    step = min(128, max(16, 1 << max(0, (tokens - 1).bit_length() - 2)))
    return round_up(tokens, step)

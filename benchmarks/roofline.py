"""What a case needs at least, counted by hand, over what the machine does in the same run."""

from typing import Any

from benchmarks import cases
from benchmarks.side_by_side import Worker


def matrices(shape: str) -> tuple[int, int]:
    """Weights of all layers' matrices, and of the output matrix."""
    V, D, L, N, K, H, F = cases.SHAPES[shape]
    return L * (D * H * (2 * N + 2 * K) + 3 * D * F), V * D


def keys(shape: str) -> int:
    """Numbers kept of a token: keys and values of all layers."""
    _, _, L, _, K, H, _ = cases.SHAPES[shape]
    return 2 * L * K * H


def looking(shape: str) -> int:
    """FLOPs of one token looking at another: the products with its keys and its values in all layers."""
    _, _, L, N, _, H, _ = cases.SHAPES[shape]
    return 4 * L * N * H


def reading(shape: str, texts: int, length: int, before: int = 0, wanted: int = 1) -> float:
    """FLOPs of a forward pass over `length` tokens of each text that come after `before` others, without the head. What
    becomes of the last `wanted` is asked for: of the others the last layer need give no more than keys and values."""
    _, D, L, _, K, H, _ = cases.SHAPES[shape]
    whole, spared = matrices(shape)[0] // L, length - wanted
    products = L * whole * length - spared * (whole - 2 * D * K * H)
    pairs = length * before + length * (length + 1) / 2
    pairs_spared = (spared * before + spared * (spared + 1) / 2) / L
    return texts * (2 * products + looking(shape) * (pairs - pairs_spared))


def drawing(shape: str, rows: int, kept: float, looked_at: float, dtype: str) -> tuple[float, float]:
    """Bytes and FLOPs of a decode step: each weight once, `kept` tokens' keys and values in all; and `looked_at` tokens
    for each row."""
    weights = sum(matrices(shape))
    size = 2 if dtype == "bfloat16" else 4
    return size * (weights + kept * keys(shape)), rows * (2 * weights + looked_at * looking(shape))


def training(shape: str, prompts: int, length: int, responses: int, more: int) -> float:
    """FLOPs of a forward and a backward pass, which takes twice as many: prompts read once, the head at responses."""
    read = reading(shape, prompts, length) + reading(shape, responses, more, length, more)
    return 3 * (read + 2 * matrices(shape)[1] * responses * more)


def beside(ours: Worker, dtype: str, parts: list[tuple[float, float, int]], seconds: float) -> dict[str, Any]:
    """The machine's rates, and the share of `seconds` that it would take at them; parts are bytes, FLOPs, repeats."""
    can = ours.ask(task="machine", case={})
    rate = can[f"{dtype}_flops"]
    least = sum(n * max(size / can["bytes"], flops / rate) for size, flops, n in parts)
    machine = {name: f"{value:.3g}" for name, value in can.items()}
    return {"machine": machine, "share_of_the_machine": round(least / seconds, 3)}

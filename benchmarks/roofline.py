"""A lower bound on a case's time: bytes and FLOPs counted by hand, over the rates that the machine reaches in the same
run."""

from typing import Any

from benchmarks import cases
from benchmarks.side_by_side import Worker


def matmul_params(shape: str) -> tuple[int, int]:
    """Parameters of the matrices in all layers, and of the output matrix."""
    V, D, L, N, K, H, F = cases.SHAPES[shape]
    return L * (D * H * (2 * N + 2 * K) + 3 * D * F), V * D


def kv_numbers(shape: str) -> int:
    """Numbers in the KV cache per token: keys and values of all layers."""
    _, _, L, _, K, H, _ = cases.SHAPES[shape]
    return 2 * L * K * H


def attention_flops(shape: str) -> int:
    """FLOPs of one token attending to another: the products with its keys and its values in all layers."""
    _, _, L, N, _, H, _ = cases.SHAPES[shape]
    return 4 * L * N * H


def prefill_flops(shape: str, texts: int, length: int, before: int = 0, wanted: int = 1) -> float:
    """FLOPs of a forward pass without the output matrix.

    Args:
      shape: of the model.
      texts: number of texts.
      length: tokens of each text that are processed.
      before: tokens in front of them that are already in the KV cache.
      wanted: the hidden states of so many last tokens are needed. For the other tokens, the last layer must only give
        keys and values.
    """
    _, D, L, _, K, H, _ = cases.SHAPES[shape]
    layer, skipped = matmul_params(shape)[0] // L, length - wanted
    products = L * layer * length - skipped * (layer - 2 * D * K * H)
    attended = length * before + length * (length + 1) / 2
    attended_skipped = (skipped * before + skipped * (skipped + 1) / 2) / L
    return texts * (2 * products + attention_flops(shape) * (attended - attended_skipped))


def decode_cost(shape: str, rows: int, cached_tokens: float, attended_tokens: float, dtype: str) -> tuple[float, float]:
    """Bytes and FLOPs of a decode step.

    Each weight is read once, and the keys and values of `cached_tokens` tokens in all. Each row attends to
    `attended_tokens` tokens.
    """
    weights = sum(matmul_params(shape))
    size = 2 if dtype == "bfloat16" else 4
    num_bytes = size * (weights + cached_tokens * kv_numbers(shape))
    return num_bytes, rows * (2 * weights + attended_tokens * attention_flops(shape))


def training_flops(shape: str, prompts: int, prompt_length: int, responses: int, response_length: int) -> float:
    """FLOPs of a forward and a backward pass, which takes twice as many. Each prompt is processed once; the output
    matrix is applied to the responses only."""
    forward = prefill_flops(shape, prompts, prompt_length)
    forward += prefill_flops(shape, responses, response_length, prompt_length, response_length)
    return 3 * (forward + 2 * matmul_params(shape)[1] * responses * response_length)


def machine_share(ours: Worker, dtype: str, parts: list[tuple[float, float, int]], seconds: float) -> dict[str, Any]:
    """The machine's rates, and the fraction of `seconds` that it would take at these rates.

    Args:
      ours: the worker that measures the rates.
      dtype: of the matrix products.
      parts: (bytes, FLOPs, repetitions) of each part of the case.
      seconds: measured for the case.
    """
    rates = ours.request(task="machine", case={})
    flops_per_s = rates[f"{dtype}_flops"]
    bound = sum(n * max(size / rates["bytes"], flops / flops_per_s) for size, flops, n in parts)
    machine = {name: f"{value:.3g}" for name, value in rates.items()}
    return {"machine": machine, "share_of_the_machine": round(bound / seconds, 3)}

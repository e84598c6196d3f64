"""Inputs of the comparisons, the same for both sides: models, prompts, pairs of random ids. Needs no JAX or torch."""

import numpy as np

# Of DecoderConfig: vocab_size, dim, num_layers, num_heads, num_kv_heads, head_dim, mlp_dim.
SHAPES = {
    "tiny": (768, 96, 3, 4, 2, 32, 240),  # of the toy world
    "6.5m": (4096, 256, 6, 8, 4, 32, 688),
    "135m": (49152, 576, 30, 9, 3, 64, 1536),  # SmolLM2-135M's
    "gemma3_270m": (262144, 640, 18, 4, 1, 256, 2048),
    "gemma3_270m_cut": (32768, 640, 18, 4, 1, 256, 2048),  # the same with the pieces of English texts alone
    "1b": (128256, 2048, 16, 32, 8, 64, 8192),  # Llama 3.2 1B's
    "8b": (128256, 4096, 32, 32, 8, 128, 14336),  # Llama 3.1 8B's
}
GEMMA3 = ("gemma3_270m", "gemma3_270m_cut")  # the others are Llamas
TIED = ("tiny", "135m", "1b", *GEMMA3)  # the output matrix is the embedding
_FIELDS = (  # of config.json, in the order of SHAPES
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    "intermediate_size",
)
_GEMMA3_FIELDS = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "sliding_window": 512,
    "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(18)],
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "tie_word_embeddings": True,
}
FIRST = 3  # ids below are special tokens


def gemma3_config(shape: str) -> dict:
    """The config.json of a shape in GEMMA3."""
    return {**_GEMMA3_FIELDS, **dict(zip(_FIELDS, SHAPES[shape], strict=True))}


def prompts(shape: str, count: int, length: int, shared: int = 0) -> list[list[int]]:
    """Prompts of `length` ids, with the first `shared` ids in common."""
    rng = np.random.default_rng(count + length)
    ids = rng.integers(FIRST, SHAPES[shape][0], (count, length))
    ids[:, :shared] = ids[0, :shared]
    return ids.tolist()


def pairs(shape: str, count: int, prompt: int, response: int) -> list[dict[str, list[int]]]:
    """Pairs of responses of `response` ids to prompts of `prompt` ids."""
    rng = np.random.default_rng(prompt + response)
    lengths = {"prompt": prompt, "chosen": response, "rejected": response}
    return [
        {name: rng.integers(FIRST, SHAPES[shape][0], n).tolist() for name, n in lengths.items()} for _ in range(count)
    ]

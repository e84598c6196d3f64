"""The shapes and options of a decoder: all in which families, layers and machines differ."""

import dataclasses
from typing import NamedTuple

from selfreward_jax.llm.rotary import RopeScaling, Yarn


class LayerKind(NamedTuple):
    """How a layer attends, where the layers of a model differ in it."""

    window: int | None = None  # a query attends to this many tokens, itself included
    rope_theta: float | None = 10_000.0  # None: no rotary embedding (SmolLM3)
    rope_scaling: RopeScaling | Yarn | None = None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shapes and options of a Llama, or of a family that differs from it in these options. Hashable, so it can be a
    static argument of a jitted function."""

    vocab_size: int  # V
    dim: int  # D
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K; divides N
    head_dim: int  # H; even, for rotary pairs
    mlp_dim: int  # F
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | Yarn | None = None
    rotary_dim: int | None = None  # only the first entries of a head are rotated (Phi-4-mini); None: all
    norm_eps: float = 1e-5
    norm_offset: float = 0.0  # added to the weight of every norm (Gemma: 1)
    pre_norm: bool = True  # a norm before attention and MLP
    post_norm: bool = False  # a norm on the output of attention and MLP (Gemma; OLMo 2 has only these)
    activation: str = "silu"  # a key of ACTIVATIONS
    num_experts: int = 0  # MLPs of a layer, of which a router chooses some for each token (Qwen3-MoE); 0: one MLP
    experts_per_token: int = 0
    normalize_routing: bool = True  # the weights of the chosen experts sum to 1
    tie_embeddings: bool = True
    attention_bias: bool = False  # on q, k, v (Qwen2)
    qk_norm: str = ""  # RMSNorm on q and k: "head", on each head (Qwen3), or "width", on all heads together (OLMo 2)
    sliding_window: int | None = None  # a query attends to this many tokens, itself included (Mistral)
    layer_kinds: tuple[LayerKind, ...] = ()  # of each layer; (): all have sliding_window, rope_theta and rope_scaling
    attention_scale: float | None = None  # of the scores; None: 1 / sqrt(H)
    attention_softcap: float | None = None  # c in c tanh(score / c) (Gemma 2)
    embed_scale: float = 1.0  # of the embeddings (Gemma: sqrt(D))
    residual_scale: float = 1.0  # of the output of attention and MLP (Granite)
    logit_scale: float = 1.0
    logit_softcap: float | None = None  # c in c tanh(logit / c) (Gemma 2)
    fused_weights: bool = False  # a folder stores q, k, v as one matrix, and gate and up as another (Phi-3)
    dropout: float = 0.0  # on the embedding and on each residual branch, if a dropout key is passed
    dtype: str = "float32"  # of the matrix products
    param_dtype: str = "float32"  # of the stored weights
    scan_layers: bool = False  # compile one layer and scan it; else compile L copies, which run faster on a CPU
    remat: str = "none"  # what the backward pass recomputes; a key of REMAT_POLICIES
    attention: str = "reference"  # one of self_attention.IMPLEMENTATIONS
    kv_layout: str = "columns"  # of the sampler's keys: "columns", "mixed" or "tokens" (sampling/kv_cache.py)
    lora_rank: int = 0  # of the adapters; 0: no adapters
    lora_alpha: float = 16.0  # an adapter's output is scaled by alpha / rank
    lora_targets: tuple[str, ...] = ()  # the matrices with adapters; keys of MATRICES

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}: choose a multiple"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embeddings rotate pairs: choose an even number")
        if len(self.layer_kinds) not in (0, self.num_layers):
            raise ValueError(f"layer_kinds has {len(self.layer_kinds)} entries: give one for each of {self.num_layers}")
        if not 0 <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token {self.experts_per_token} must be at most num_experts {self.num_experts}"
            )
        if self.num_experts and (adapted := {"w_gate", "w_up", "w_down"} & {*self.lora_targets}) and self.lora_rank:
            raise ValueError(f"lora.targets {', '.join(sorted(adapted))}: adapters of experts are not supported")

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kinds of layers that the model has, each once."""
        return tuple(dict.fromkeys(self.layer_kinds)) or (
            LayerKind(self.sliding_window, self.rope_theta, self.rope_scaling),
        )

    def kind_indices(self) -> tuple[int, ...]:
        """For each layer the index of its kind in `kinds`."""
        return tuple(map(self.kinds.index, self.layer_kinds)) or (0,) * self.num_layers

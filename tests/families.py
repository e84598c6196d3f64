"""Options of models of two layers that differ in all that families differ in."""

from selfreward_jax.llm.model_config import LayerKind
from selfreward_jax.llm.rotary import Yarn

# One layer with a window of 3 tokens and one that sees everything, each with its own rotary base.
TWO_KINDS = {"layer_kinds": (LayerKind(3, 100.0), LayerKind(None, 1e4))}
GEMMA = TWO_KINDS | {
    "norm_offset": 1.0,
    "post_norm": True,
    "qk_norm": "head",
    "activation": "gelu_tanh",
    "attention_scale": 0.3,
    "attention_softcap": 2.0,
    "embed_scale": 4.0,
    "logit_softcap": 20.0,
}
OLMO = {
    "layer_kinds": (LayerKind(None, None), LayerKind(4, 1e4, Yarn(4.0, 16, 1.1))),
    "pre_norm": False,
    "post_norm": True,
    "qk_norm": "width",
    "rotary_dim": 4,
    "residual_scale": 0.5,
    "logit_scale": 2.0,
}
EXPERTS = {"num_experts": 4, "experts_per_token": 2}

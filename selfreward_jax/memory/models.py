"""The shapes of the pretrained models in the presets: memory can be estimated before weights are downloaded."""

from pathlib import PurePosixPath

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax.config import ConfigError
from selfreward_jax.llm.hf_config import read_config
from selfreward_jax.llm.model_config import DecoderConfig
from selfreward_jax.llm.rotary import RopeScaling

KNOWN_MODELS = {
    "SmolLM2-135M": DecoderConfig(49152, 576, 30, 9, 3, 64, 1536, 1e5, tie_embeddings=True),
    "TinyLlama-1.1B": DecoderConfig(32000, 2048, 22, 32, 4, 64, 5632, tie_embeddings=False),
    "Llama-3.1-8B": DecoderConfig(
        128256, 4096, 32, 32, 8, 128, 14336, 5e5, RopeScaling(8.0, 1.0, 4.0, 8192), tie_embeddings=False
    ),
    "Qwen3-8B-Base": DecoderConfig(
        151936, 4096, 36, 32, 8, 128, 12288, 1e6, norm_eps=1e-6, tie_embeddings=False, qk_norm="head"
    ),
    "Llama-2-70b-hf": DecoderConfig(32000, 8192, 80, 64, 8, 128, 28672, tie_embeddings=False),
}


def known_config(cfg: ConfigDict) -> DecoderConfig | None:
    """The shapes of the model in model.init: from its folder if it exists, else by its name. None without model.init.

    Raises:
      ConfigError: the folder does not exist and the name is unknown.
      ModelFormatError: the folder cannot be used.
    """
    init = cfg.model.init
    if not init:
        return None
    if "://" not in init and ":" not in init and (folder := epath.Path(init)).exists():
        return read_config(folder)[0]
    name = PurePosixPath(init.split("@")[0]).name
    if name not in KNOWN_MODELS:
        raise ConfigError(
            f"model.init is {init!r}, which is neither a local folder nor a known name: give a folder (its config.json "
            f"is enough), or one of {', '.join(KNOWN_MODELS)}"
        )
    return KNOWN_MODELS[name]

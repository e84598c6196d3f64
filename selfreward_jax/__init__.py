"""Self-rewarding language models, native to JAX: a model that improves by judging itself.

The Python API: `run`, `load`, `parse_score`, and the errors that they raise (docs/api.md). A name is imported when it
is first used, so `import selfreward_jax` does not import jax.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "run": "selfreward_jax.api",
    "load": "selfreward_jax.api",
    "Model": "selfreward_jax.api",
    "Sample": "selfreward_jax.api",
    "Judgment": "selfreward_jax.api",
    "parse_score": "selfreward_jax.method.judge_parsing",
    "InputError": "selfreward_jax.config",
    "ConfigError": "selfreward_jax.config",
    "DataError": "selfreward_jax.data.readers",
    "ModelFormatError": "selfreward_jax.llm.hf_config",
    "ChatError": "selfreward_jax.llm.chat",
    "TemplateError": "selfreward_jax.method.templates",
    "StageError": "selfreward_jax.stages",
    "StorageError": "selfreward_jax.storage",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

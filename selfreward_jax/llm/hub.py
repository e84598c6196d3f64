"""Finds a model's folder: on disk, or in the local cache of the Hugging Face hub."""

import re

from etils import epath

from selfreward_jax.llm.hf_config import ModelFormatError

HUB_PREFIX = "hub:"
_HUB_NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)@([\w.-]+)")
_ALLOWED_FILES = ("*.safetensors", "*.json", "tokenizer.model", "chat_template.jinja")  # no pickles, no code


def is_hub_id(name: str) -> bool:
    """Whether a name has the form hub:OWNER/NAME@REVISION."""
    return _HUB_NAME.fullmatch(name) is not None


def resolve_model_dir(name: str) -> epath.Path:
    """The folder on disk: `name` itself, or for hub:OWNER/NAME@REVISION the hub's own cache, downloaded if missing.

    HF_HUB_OFFLINE, HF_HOME and the user's token are respected, because the hub's library downloads the files.

    Raises:
      ModelFormatError: the folder does not exist, no revision is named, or the download fails.
    """
    if not name.startswith(HUB_PREFIX):
        if not (epath.Path(name) / "config.json").exists():
            raise ModelFormatError(
                f"model {name!r}: no such folder with a config.json; give a Hugging Face model folder, "
                "or hub:OWNER/NAME@REVISION"
            )
        return epath.Path(name)
    match = _HUB_NAME.fullmatch(name)
    if not match:
        raise ModelFormatError(
            f"model {name!r}: name a revision, as in hub:OWNER/NAME@REVISION; a commit is fixed, a branch can change"
        )
    import huggingface_hub  # slow to import; needed only here

    try:
        path = huggingface_hub.snapshot_download(match[1], revision=match[2], allow_patterns=list(_ALLOWED_FILES))
    except Exception as error:  # the library and the network raise many types
        line = " ".join(str(error).split())
        raise ModelFormatError(
            f"{name} cannot be downloaded from the hub ({type(error).__name__}: {line[:300]}): check the name, the "
            "token and the network, or give a local folder"
        ) from None
    return epath.Path(path)

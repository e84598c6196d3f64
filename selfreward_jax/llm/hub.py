"""Where a model's folder is: on disk, or on the Hugging Face hub where the user names it there."""

import re

from etils import epath

from selfreward_jax.llm.hf_config import ModelFormatError

HUB_PREFIX = "hub:"
_NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)@([\w.-]+)")
_NEEDED = ("*.safetensors", "*.json", "tokenizer.model", "chat_template.jinja")  # no pickles, no code


def resolve_model_dir(name: str) -> epath.Path:
    """The folder on disk: `name` itself, or for hub:OWNER/NAME@REVISION the hub's own cache, filled if need be.

    HF_HUB_OFFLINE, HF_HOME and the user's token are honoured: the hub's library does the work.

    Raises:
      HubError: there is no such folder, no revision is named, or the hub does not give it.
    """
    if not name.startswith(HUB_PREFIX):
        if not (epath.Path(name) / "config.json").exists():
            raise ModelFormatError(
                f"model {name!r}: there is no such folder with a config.json; give a Hugging Face model folder, "
                "or hub:OWNER/NAME@REVISION"
            )
        return epath.Path(name)
    found = _NAME.fullmatch(name)
    if not found:
        raise ModelFormatError(
            f"model {name!r}: name a revision, as in hub:OWNER/NAME@REVISION; a branch may hold another model "
            "tomorrow, a commit does not"
        )
    import huggingface_hub  # only where it is asked for

    try:
        path = huggingface_hub.snapshot_download(found[1], revision=found[2], allow_patterns=list(_NEEDED))
    except Exception as error:  # the library's and the network's are many
        line = " ".join(str(error).split())
        raise ModelFormatError(f"{name} cannot be had from the hub ({type(error).__name__}: {line[:300]})") from None
    return epath.Path(path)

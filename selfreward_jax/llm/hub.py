"""The Hugging Face hub: finds a model's folder, on disk or in the hub's local cache, and uploads what is exported."""

import os
import re

from etils import epath

from selfreward_jax.config import InputError
from selfreward_jax.llm.hf_config import ModelFormatError, check_no_adapter

HUB_PREFIX = "hub:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_NAME = re.compile(rf"{HUB_PREFIX}({_REPOSITORY.pattern})@([\w.-]+)")
_WEIGHTS = "*.safetensors"
_ALLOWED_FILES = (_WEIGHTS, "*.json", "tokenizer.model", "chat_template.jinja")  # no pickles, no code
# What an upload replaces. Files of an earlier one that have other names would be loaded instead of these.
_WEIGHT_FILES = ("model.safetensors*", "model-*.safetensors", "adapter_config.json", "adapter_model.safetensors")


class UploadError(InputError, RuntimeError):
    """An upload to the hub failed; the message names the repository, the reason and the remedy."""


def with_prefix(name: str) -> str:
    """The name, with "hub:" in front where it has the form OWNER/NAME@REVISION and is no model's folder."""
    if not _HUB_NAME.fullmatch(f"{HUB_PREFIX}{name}") or (epath.Path(name) / "config.json").exists():
        return name
    return f"{HUB_PREFIX}{name}"


def resolve_model_dir(name: str, weights: bool = True) -> epath.Path:
    """The folder on disk: `name` itself, or for OWNER/NAME@REVISION, with or without "hub:" in front, the hub's own
    cache, downloaded if missing.

    HF_HUB_OFFLINE, HF_HOME and the user's token are respected, because the hub's library downloads the files.

    Args:
      name: of the model.
      weights: without them a description and a tokenizer are downloaded alone.

    Raises:
      ModelFormatError: the folder does not exist, no revision is named, or the download fails.
    """
    name = with_prefix(name)
    if not name.startswith(HUB_PREFIX):
        check_no_adapter(epath.Path(name))
        if not (epath.Path(name) / "config.json").exists():
            raise ModelFormatError(
                f"model {name!r}: no such folder with a config.json; give a Hugging Face model folder, "
                "or hub:OWNER/NAME@REVISION"
            )
        return epath.Path(name)
    repository, revision = parse_name(name)
    import huggingface_hub  # slow to import, and needed only for the hub

    try:
        files = [pattern for pattern in _ALLOWED_FILES if weights or pattern != _WEIGHTS]
        path = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=files)
    except Exception as error:  # the library and the network raise many types
        raise ModelFormatError(
            f"{name} cannot be downloaded from the hub ({_one_line(error)}): check the name, the token and the "
            "network, or give a local folder"
        ) from None
    return epath.Path(path)


def parse_name(name: str) -> tuple[str, str]:
    """The repository and the revision of hub:OWNER/NAME@REVISION.

    Raises:
      ModelFormatError: it names no revision.
    """
    match = _HUB_NAME.fullmatch(name)
    if not match:
        raise ModelFormatError(
            f"model {name!r}: name a revision, as in hub:OWNER/NAME@REVISION; a commit is fixed, a branch can change"
        )
    return match[1], match[2]


def is_repository(name: str) -> bool:
    """Whether `name` has the form OWNER/NAME."""
    return _REPOSITORY.fullmatch(name) is not None


def upload(path: epath.Path, repository: str, private: bool = True) -> str:
    """Uploads a folder as a model, or a file as a data set. This is the only function that writes to the hub.

    The user's token and the hub's environment variables are respected, because the hub's library uploads the files.

    Args:
      path: the folder or the file. It is never changed.
      repository: OWNER/NAME; created if missing.
      private: whether a new repository is private. An existing one keeps its visibility.

    Returns:
      The address of the repository.

    Raises:
      UploadError: there is no token, the hub cannot be reached, or it refuses the upload.
    """
    import huggingface_hub

    repo_type, name_there = ("model", ".") if path.is_dir() else ("dataset", path.name)
    target = {"repo_id": repository, "repo_type": repo_type}
    remedy = f"{path} is complete; upload it with: hf upload {repository} {path} {name_there} --repo-type={repo_type}"
    if private:
        remedy += " --private"
    if huggingface_hub.get_token() is None:
        raise UploadError(f"no token for {repository}: set HF_TOKEN, or log in with: hf auth login. {remedy}")
    try:
        api = huggingface_hub.HfApi()
        address = api.create_repo(**target, exist_ok=True, private=private)
        if repo_type == "model":
            api.upload_folder(**target, folder_path=os.fspath(path), delete_patterns=list(_WEIGHT_FILES))
        else:
            api.upload_file(**target, path_or_fileobj=os.fspath(path), path_in_repo=name_there)
    except Exception as error:  # the library and the network raise many types
        raise UploadError(f"{repository} cannot be uploaded ({_one_line(error)}). {remedy}") from None
    return str(address)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

"""selfreward-jax export: a model of a run as a folder for transformers, vLLM, llama.cpp and Ollama, or its adapters for
peft; or preference pairs for TRL. With --push=OWNER/NAME it is then uploaded to the Hugging Face hub.
"""

import argparse

from etils import epath

from selfreward_jax.config import ConfigError
from selfreward_jax.console import streams
from selfreward_jax.integrations.formats import PAIR_FORMATS
from selfreward_jax.llm import hub
from selfreward_jax.report.export import MODEL_FORMATS, write_model, write_pairs


def main(options: argparse.Namespace) -> int:
    """Exports. Returns the exit code."""
    export(options)
    return 0


def export(options: argparse.Namespace) -> None:
    """Writes what the options name, uploads it if they say so, and prints where it is.

    Raises:
      ConfigError, ModelFormatError, StorageError, OSError: nothing was exported.
      UploadError: what was exported was not uploaded.
    """
    form, out = check_options(options), epath.Path(options.out)
    if options.pairs:
        exported = write_pairs(options.workdir, options.pairs, out, form)
    else:
        exported = write_model(options.workdir, options.model, out, form, options.dtype or "", options.shard_gb * 1e9)
    lines = [f"{exported} -> {out}"]
    if options.push:  # before anything is printed: an upload needs no reader
        lines.append(f"{out} -> {hub.upload(out, _repository(options), private=not options.public)}")
    streams.result(*lines)


def check_options(options: argparse.Namespace) -> str:
    """Checks that the options fit together, before anything is read or written. Returns the format.

    Raises:
      ConfigError: they do not.
    """
    if "://" in options.out and (options.push or not options.pairs):
        raise ConfigError(f"--out is {options.out}; models, and what is pushed, are written to a local path: give one")
    if epath.Path(options.out).exists():
        raise ConfigError(f"--out {options.out} exists already: give another name, or move it away")
    if options.model and options.pairs:
        raise ConfigError(f"--model={options.model} excludes --pairs={options.pairs}: give one of them")
    known, what = (PAIR_FORMATS, "pairs") if options.pairs else (MODEL_FORMATS, "a model")
    form = options.format or known[0]
    if form not in known:
        raise ConfigError(f"--format is {form}; the formats of {what} are {', '.join(known)}")
    if not options.shard_gb > 0:
        raise ConfigError(f"--shard_gb is {options.shard_gb}; it must be above 0")
    if options.push and not hub.is_repository(_repository(options)):
        raise ConfigError(f"--push is {options.push!r}; it must be OWNER/NAME of the Hugging Face hub")
    if options.public and not options.push:
        raise ConfigError("--public is for --push: give --push=OWNER/NAME too")
    return form


def _repository(options: argparse.Namespace) -> str:
    return options.push.removeprefix(hub.HUB_PREFIX)

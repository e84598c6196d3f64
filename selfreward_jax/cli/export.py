"""Writes a model of a run as a folder for transformers, vLLM, llama.cpp and Ollama; or preference pairs for TRL.

python -m selfreward_jax export --workdir=runs/a --model=m3 --out=m3_hf/
python -m selfreward_jax export --workdir=runs/a --model=m3 --out=m3_peft/ --format=peft
python -m selfreward_jax export --workdir=runs/a --pairs=m2 --out=pairs.jsonl [--format=standard]
With --push=OWNER/NAME it is then uploaded to the Hugging Face hub. Without it nothing uses the network.
"""

import argparse
import sys

from etils import epath

from selfreward_jax import storage
from selfreward_jax.cli import args
from selfreward_jax.config import ConfigError
from selfreward_jax.integrations.formats import PAIR_FORMATS
from selfreward_jax.llm import hub
from selfreward_jax.llm.hf_config import DTYPES, ModelFormatError
from selfreward_jax.report.export import MODEL_FORMATS, write_model, write_pairs


def main(argv: list[str]) -> int:
    """Exports. Returns the exit code: 0, or 2 after a one-line error message."""
    parser = args.make_parser("export", __doc__)
    add_options(parser)
    try:
        export(parser.parse_args(argv[1:]))
    except (ConfigError, ModelFormatError, hub.UploadError, storage.StorageError, OSError) as error:
        print(f"selfreward_jax: {error}", file=sys.stderr)
        return 2
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this subcommand."""
    parser.add_argument("--workdir", required=True, help="working directory of the run")
    parser.add_argument("--model", default="", help="model to export, such as m3 (default: the last one)")
    parser.add_argument("--out", required=True, help="folder or file to write; it must not exist")
    parser.add_argument("--pairs", default="", help="export the preference pairs of a round, such as m2, not a model")
    parser.add_argument(
        "--format",
        default="",
        choices=["", *MODEL_FORMATS, *PAIR_FORMATS],
        help="of a model: hf (default), the whole model, or peft, the adapters of a run with lora.rank; "
        "of pairs: conversational (default) or standard",
    )
    parser.add_argument(
        "--dtype",
        default="",
        choices=["", *DTYPES],
        help="dtype of the weights (default: that of the initial model; float32 for adapters)",
    )
    parser.add_argument("--shard_gb", type=float, default=5.0, help="maximum gigabytes per weight file")
    parser.add_argument("--push", default="", help="upload to OWNER/NAME of the Hugging Face hub, with your token")
    parser.add_argument("--public", action="store_true", help="make a new repository of --push public, not private")


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
        exported = write_model(options.workdir, options.model, out, form, options.dtype, options.shard_gb * 1e9)
    print(f"{exported} -> {out}")
    if options.push:
        print(f"{out} -> {hub.upload(out, _repository(options), private=not options.public)}")


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


if __name__ == "__main__":
    sys.exit(main(sys.argv))

"""Writes a model of a run as a folder that transformers, vLLM, llama.cpp and Ollama load; or pairs as TRL reads them.

python -m selfreward_jax export --workdir=runs/a --model=m3 --to=out/
python -m selfreward_jax export --workdir=runs/a --pairs=m2 --to=pairs.jsonl [--form=standard]
"""

import argparse
import json
import sys
from typing import Any

from etils import epath

from selfreward_jax import storage
from selfreward_jax.cli import args
from selfreward_jax.config import ConfigError
from selfreward_jax.integrations import formats
from selfreward_jax.llm import hf
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.hf_config import DTYPES, ModelFormatError, stored_dtype, write_config
from selfreward_jax.llm.hf_tokenizer import write_tokenizer
from selfreward_jax.report.card import card
from selfreward_jax.runs.loading import LoadedModel, load_model
from selfreward_jax.storage.artifacts import JsonlArtifact, encode_rows


def main(argv: list[str]) -> int:
    """Exports. Returns the exit code: 0, or 2 after one line that says what to mend."""
    parser = args.parser("export", __doc__)
    parser.add_argument("--workdir", required=True, help="the run's working directory")
    parser.add_argument("--model", default="", help="which model, such as m3; the last one if not given")
    parser.add_argument("--to", required=True, help="what to write; it must not be there yet")
    parser.add_argument("--pairs", default="", help="not a model: the preference pairs of a round, such as m2")
    parser.add_argument("--form", default=formats.PAIR_FORMATS[0], choices=formats.PAIR_FORMATS, help="of the pairs")
    parser.add_argument("--dtype", default="", choices=["", *DTYPES], help="of the weights; as they came if not given")
    parser.add_argument("--shard_gb", type=float, default=5.0, help="most gigabytes a file")
    try:
        options = parser.parse_args(argv[1:])
        to = epath.Path(options.to)
        if to.exists():
            raise ConfigError(f"--to {to} is there already: give another name, or move it away")
        if options.model and options.pairs:
            raise ConfigError(f"--model={options.model} and --pairs={options.pairs} are two things: give one of them")
        what = write_pairs(options, to) if options.pairs else write_model(options, to)
    except (ConfigError, ModelFormatError, storage.StorageError, OSError) as error:
        print(f"selfreward_jax: {error}", file=sys.stderr)
        return 2
    print(f"{what} -> {to}")
    return 0


def write_pairs(options: argparse.Namespace, to: epath.Path) -> str:
    """Writes the preference pairs of a round as JSON lines, and says what it wrote.

    Raises:
      ConfigError: the round has no pairs.
    """
    run = epath.Path(options.workdir)
    path = run / options.pairs / "pairs.jsonl"
    if not path.exists():
        there = sorted(p.parent.name for p in run.glob("m*/pairs.jsonl"))
        raise ConfigError(f"workdir {run} holds pairs of {', '.join(there) or 'no round'}, not of {options.pairs}")
    rows = formats.to_trl_rows(JsonlArtifact(path).rows(), options.form)
    storage.write_atomic(to, encode_rows(rows))
    return f"{len(rows)} pairs of {options.pairs}"


def write_model(options: argparse.Namespace, to: epath.Path) -> str:
    """Writes a model of the run, and says which."""
    model = load_model(options.workdir, options.model)
    write(model, to, options.dtype or stored_dtype(model.hf_config or {}), options.shard_gb * 1e9)
    return model.name


def write(model: LoadedModel, to: epath.Path, dtype: str, shard_bytes: float) -> None:
    """Writes the whole folder beside `to`, and gives it its name when it is whole."""
    making = to.with_name(to.name + ".partial")
    if making.exists():
        making.rmtree()
    making.mkdir(parents=True)
    assert model.run is not None, "what is exported is a run's model"
    write_tokenizer(making, model.chat, model.run.workdir / "tokenizer", own=model.hf_config is None)
    storage.write_json(making / "config.json", write_config(model.cfg, model.hf_config, dtype, **_token_facts(model)))
    hf.save(making, model.cfg, model.params, dtype, shard_bytes)
    (making / "Modelfile").write_text(modelfile(model.chat))
    (making / "README.md").write_text(card(model.run, model.name, dtype))
    making.rename(to)


def _token_facts(model: LoadedModel) -> dict[str, Any]:
    if model.hf_config:
        return {}
    ids = model.chat.tokenizer.special_tokens
    facts = {"max_position_embeddings": model.max_length, "eos_token_id": list(model.chat.stop_ids)}
    return facts | ({"bos_token_id": ids[model.chat.bos]} if model.chat.bos else {})


def modelfile(chat: Chat) -> str:
    """Ollama's Modelfile: where the weights are, the template in Go's dialect, and the pieces that end a response."""
    piece_of = {i: piece for piece, i in chat.tokenizer.special_tokens.items()}
    stops = "".join(f"PARAMETER stop {json.dumps(piece_of[i])}\n" for i in chat.stop_ids if i in piece_of)
    template = chat.render_text("{{ .Prompt }}", "{{ .Response }}").removeprefix(
        chat.bos or ""
    )  # Ollama adds the first piece
    return f'FROM .\nTEMPLATE """{template}"""\n{stops}'


if __name__ == "__main__":
    sys.exit(main(sys.argv))

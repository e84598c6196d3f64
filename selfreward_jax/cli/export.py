"""selfreward-jax export: a model of a run as a folder for transformers, vLLM, llama.cpp and Ollama; or preference pairs
for TRL.
"""

import argparse
import json
from typing import Any

from etils import epath

from selfreward_jax import storage
from selfreward_jax.config import ConfigError
from selfreward_jax.integrations import formats
from selfreward_jax.llm import hf
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.hf_config import stored_dtype, write_config
from selfreward_jax.llm.hf_tokenizer import write_tokenizer
from selfreward_jax.report.card import model_card
from selfreward_jax.runs.loading import LoadedModel, load_model
from selfreward_jax.runs.run import CONFIG_FILE, stored_settings
from selfreward_jax.storage.artifacts import JsonlArtifact, encode_rows


def main(options: argparse.Namespace) -> int:
    """Exports. Returns the exit code."""
    out = epath.Path(options.out)
    if out.exists():
        raise ConfigError(f"--out {out} exists already: give another name, or move it away")
    if options.model and options.pairs:
        raise ConfigError(f"--model={options.model} excludes --pairs={options.pairs}: give one of them")
    exported = write_pairs(options, out) if options.pairs else write_model(options, out)
    print(f"{exported} -> {out}")
    return 0


def write_pairs(options: argparse.Namespace, out: epath.Path) -> str:
    """Writes the preference pairs of a round as JSON lines. Returns a description of them.

    Raises:
      ConfigError: another version made the run, or the round has no pairs.
    """
    workdir = epath.Path(options.workdir)
    if (workdir / CONFIG_FILE).exists():  # without it the round's own files are enough
        stored_settings(workdir)
    path = workdir / options.pairs / "pairs.jsonl"
    if not path.exists():
        folders = sorted(workdir.iterdir()) if workdir.is_dir() else []
        rounds = [folder.name for folder in folders if (folder / "pairs.jsonl").exists()]
        raise ConfigError(f"workdir {workdir} holds pairs of {', '.join(rounds) or 'no round'}, not of {options.pairs}")
    rows = formats.to_trl_rows(JsonlArtifact(path).rows(), options.format or formats.PAIR_FORMATS[0])
    storage.write_atomic(out, encode_rows(rows))
    return f"{len(rows)} pairs of {options.pairs}"


def write_model(options: argparse.Namespace, out: epath.Path) -> str:
    """Writes a model of the run. Returns its name."""
    model = load_model(options.workdir, options.model)
    write_hf_folder(model, out, options.dtype or stored_dtype(model.hf_config or {}), options.shard_gb * 1e9)
    return model.name


def write_hf_folder(model: LoadedModel, out: epath.Path, dtype: str, shard_bytes: float) -> None:
    """Writes the folder under a temporary name, and renames it to `out` when it is complete."""
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        partial.rmtree()
    partial.mkdir(parents=True)
    assert model.run is not None, "only a model of a run is exported"
    write_tokenizer(partial, model.chat, model.run.workdir / "tokenizer", trained_here=model.hf_config is None)
    config = write_config(model.cfg, model.hf_config, dtype, **_tokenizer_fields(model))
    storage.write_json(partial / "config.json", config)
    hf.save(partial, model.cfg, model.params, dtype, shard_bytes)
    (partial / "Modelfile").write_text(ollama_modelfile(model.chat))
    (partial / "README.md").write_text(model_card(model.run, model.name, dtype))
    partial.rename(out)


def _tokenizer_fields(model: LoadedModel) -> dict[str, Any]:
    """Fields of config.json that come from the tokenizer; none if the initial model's config.json has them."""
    if model.hf_config:
        return {}
    ids = model.chat.tokenizer.special_tokens
    fields = {"max_position_embeddings": model.max_length, "eos_token_id": list(model.chat.stop_ids)}
    return fields | ({"bos_token_id": ids[model.chat.bos]} if model.chat.bos else {})


def ollama_modelfile(chat: Chat) -> str:
    """Ollama's Modelfile: where the weights are, the template in Go's syntax, and the tokens that end a response."""
    token_of = {i: token for token, i in chat.tokenizer.special_tokens.items()}
    stops = "".join(f"PARAMETER stop {json.dumps(token_of[i])}\n" for i in chat.stop_ids if i in token_of)
    template = chat.render_text("{{ .Prompt }}", "{{ .Response }}").removeprefix(chat.bos or "")  # Ollama adds BOS
    return f'FROM .\nTEMPLATE """{template}"""\n{stops}'

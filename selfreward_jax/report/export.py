"""What leaves a run: a model as a Hugging Face folder or as adapters for peft, and preference pairs for TRL.

A folder is written under a temporary name and renamed when it is complete. Nothing here uses the network.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from selfreward_jax import storage
from selfreward_jax.config import ConfigError
from selfreward_jax.integrations import formats
from selfreward_jax.llm import hf, peft
from selfreward_jax.llm.chat import Chat
from selfreward_jax.llm.hf_config import stored_dtype, write_config
from selfreward_jax.llm.hf_tokenizer import write_tokenizer
from selfreward_jax.report.card import model_card
from selfreward_jax.runs.loading import LoadedModel, load_model, open_run_model
from selfreward_jax.runs.run import CONFIG_FILE, Run, stored_settings
from selfreward_jax.storage.artifacts import JsonlArtifact, encode_rows

MODEL_FORMATS = ("hf", "peft")
INCOMPLETE = "INCOMPLETE"  # a file in a folder that is still being written


def write_model(
    workdir: str, name: str, out: epath.Path, form: str = "hf", dtype: str = "", shard_bytes: float = 5e9
) -> str:
    """Writes a model of a run. Returns its name.

    Args:
      workdir: the working directory of the run.
      name: the model, such as "m3"; "" for the last one.
      out: the folder to write, which must not exist.
      form: one of MODEL_FORMATS.
      dtype: of the weights; "" for that of the initial model, or float32 for adapters.
      shard_bytes: the maximum size of a weight file.

    Raises:
      ConfigError, ModelFormatError, StorageError: there is no such model, it cannot have this form, or the file system
        refuses it.
    """
    if form == "peft":
        run, name = open_run_model(workdir, name)
        write_adapter_folder(run, name, out, dtype or "float32")
        return f"{name}'s adapters"
    model = load_model(workdir, name)
    write_hf_folder(model, out, dtype or stored_dtype(model.hf_config or {}), shard_bytes)
    return model.name


def write_hf_folder(model: LoadedModel, out: epath.Path, dtype: str, shard_bytes: float) -> None:
    """Writes a model with its tokenizer, a model card and a Modelfile for Ollama. Adapters are merged.

    Raises:
      ConfigError: it is not a model of a run.
      StorageError: the file system refuses it.
    """
    if model.run is None:
        raise ConfigError(f"{model.name} is a model folder already: give the --workdir of a run")
    with _complete_folder(out) as partial:
        write_tokenizer(partial, model.chat, model.run.workdir / "tokenizer", trained_here=model.hf_config is None)
        config = write_config(model.cfg, model.hf_config, dtype, **_tokenizer_fields(model))
        storage.write_json(partial / "config.json", config)
        hf.save(partial, model.cfg, model.params, dtype, shard_bytes)
        (partial / "Modelfile").write_text(ollama_modelfile(model.chat))
        (partial / "README.md").write_text(model_card(model.run, model.name, dtype))


def write_adapter_folder(run: Run, name: str, out: epath.Path, dtype: str) -> None:
    """Writes the adapters of a model, with its tokenizer and a model card.

    Raises:
      ConfigError: the model has no adapters.
      StorageError: the file system refuses it.
    """
    if not run.cfg.lora.rank:
        raise ConfigError(f"--format=peft: {name} has no adapters (lora.rank is 0): use --format=hf")
    if name == "m0":
        raise ConfigError("--format=peft: m0 is the base model of the adapters and has none: use --format=hf")
    cfg, base = run.models.model_config(adapters=True), peft.base_model(run.cfg.model.init)
    with _complete_folder(out) as partial:
        write_tokenizer(partial, run.models.chat, run.workdir / "tokenizer", trained_here=not run.cfg.model.init)
        peft.save(partial, cfg, run.models.load_trainable(name), dtype, base)
        (partial / "README.md").write_text(model_card(run, name, dtype, base))


@contextlib.contextmanager
def _complete_folder(out: epath.Path) -> Iterator[epath.Path]:
    """A new folder that is renamed to `out` at the end. One that an export left incomplete is removed."""
    partial = out.with_name(out.name + ".partial")
    mark = partial / INCOMPLETE
    try:
        if partial.exists() and not mark.exists():
            raise ConfigError(f"--out {out}: {partial} exists and is not of an export: move it away, or rename --out")
        storage.remove(partial)
        partial.mkdir(parents=True)
        mark.touch()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--out {out} cannot be written ({reason}): give a path in a folder that can") from None
    yield partial
    mark.unlink()
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


def write_pairs(workdir: str, name: str, out: epath.Path, form: str = formats.PAIR_FORMATS[0]) -> str:
    """Writes the preference pairs of a round as JSON Lines. Returns a description of them.

    Args:
      workdir: the working directory of the run.
      name: the model that learned from them, such as "m2".
      out: the file to write.
      form: one of formats.PAIR_FORMATS.

    Raises:
      ConfigError: another version made the run, or the round has no pairs.
      StorageError: the file system refuses it.
    """
    folder = epath.Path(workdir)
    if (folder / CONFIG_FILE).exists():  # without it the round's own files are enough
        stored_settings(folder)
    path = folder / name / "pairs.jsonl"
    if not path.exists():
        folders = sorted(folder.iterdir()) if folder.is_dir() else []
        rounds = [f.name for f in folders if (f / "pairs.jsonl").exists()]
        raise ConfigError(f"workdir {folder} holds pairs of {', '.join(rounds) or 'no round'}, not of {name}")
    rows = formats.to_trl_rows(JsonlArtifact(path).rows(), form)
    storage.write_atomic(out, encode_rows(rows))
    return f"{len(rows)} pairs of {name}"

"""Before M1: seed rows, tokenizer, and M0."""

import hashlib
from functools import partial
from random import Random
from typing import Any

import jax.numpy as jnp
from etils import epath

from selfreward_jax import storage
from selfreward_jax.data import seed_sets
from selfreward_jax.data.eft import build_eft
from selfreward_jax.llm import chat, hf, hub
from selfreward_jax.llm.hf_tokenizer import TOKENIZER_FILES as TOKENIZER_FILES
from selfreward_jax.llm.llama import Llama, param_specs, parameter_count
from selfreward_jax.llm.tokenizer import BOS, EOS, PAD, train_sentencepiece
from selfreward_jax.parallel import processes
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.common import StageError, eft_source_set, filter_few_shot, judge_template, prompt_template
from selfreward_jax.stages.self_reward import judge
from selfreward_jax.stages.training import is_trained, train_packed
from selfreward_jax.telemetry.progress import Progress, log_line
from selfreward_jax.train import checkpoints

Row = dict[str, Any]


def seed(run: Run) -> None:
    """seed/*.jsonl: instruction rows, judged rows (or the ranked answers they are to be made of), held-out prompts and
    ranked answers, plain documents."""
    made = run.jsonl("seed", "documents").manifest
    if made and all(run.jsonl("seed", name).manifest for name in made["sets"]):
        return
    if processes.is_primary():  # the only one that needs the user's files
        _make_seed(run)
    processes.barrier("the seeds are made", timeout=24 * 3600)  # it may have to download them


def _make_seed(run: Run) -> None:
    progress = Progress("seed", 0)
    c = run.cfg
    if c.data.ift:
        sets, report = seed_sets.from_files(c.data, c.seed, c.eft, c.judge.output_format)
    else:
        sets, report = seed_sets.from_world(c.data, c.seed, c.judge.output_format)
    shots = run.cfg.prompts.num_seed_examples + run.cfg.prompts.num_generated_examples
    if (shown := len(filter_few_shot(run, sets["ift"]))) <= shots:
        raise seed_sets.DataError(
            f"{shown} instruction rows have prompts of {run.cfg.prompts.min_words} to {run.cfg.prompts.max_words} "
            f"words on one line, and each few-shot prompt shows {shots} others: give more rows, or lower "
            "prompts.num_seed_examples"
        )
    for name, rows in sets.items():
        if name != "documents":
            _write_seed(run, name, rows)
    storage.write_json(run.workdir / "seed" / "report.json", report)
    for line in seed_sets.format_report(report):
        log_line(line)
    _write_seed(run, "documents", sets["documents"], sets=list(sets))
    progress.add(sum(map(len, sets.values())))
    progress.close(", ".join(f"{len(rows)} {name}" for name, rows in sets.items()))


def _write_seed(run: Run, name: str, rows: list[Row], **facts: Any) -> None:
    run.jsonl("seed", name).finish([{"id": f"{name}/{i}", **row} for i, row in enumerate(rows)], **facts)


def tokenizer(run: Run) -> None:
    """tokenizer/: the tokenizer and chat template of model.init; or a tokenizer trained on all training texts of the
    seeds, and our template."""
    folder = run.workdir / "tokenizer"
    if (made := storage.read_checksummed(folder / "manifest.json")) is not None:
        if processes.broadcast_from_primary(lambda: _hashes(folder)) != made["files"]:
            raise storage.CorruptionError(f"{folder} is not the tokenizer that was made", folder)
        return
    if run.cfg.model.init:
        _adopt_tokenizer(hub.resolve_model_dir(run.cfg.model.init), folder)
    else:
        _train_tokenizer(run, folder)
    processes.barrier("the tokenizer is written")
    facts = {"init": run.cfg.model.init, "pieces": run.chat.tokenizer.vocab_size}
    storage.write_checksummed(
        folder / "manifest.json", {**facts, "files": processes.broadcast_from_primary(lambda: _hashes(folder))}
    )
    log_line(f"tokenizer: {run.chat.tokenizer.vocab_size} pieces")


def _hashes(folder: epath.Path) -> dict[str, str]:
    files = sorted(p for p in folder.iterdir() if not p.name.startswith("manifest.json"))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _adopt_tokenizer(source: epath.Path, folder: epath.Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            storage.write_atomic(folder / name, (source / name).read_bytes())


def _train_tokenizer(run: Run, folder: epath.Path) -> None:
    rows = [row for name in ("ift", eft_source_set(run), "documents") for row in run.jsonl("seed", name).rows()]
    texts = [row[f] for row in rows for f in ("prompt", "response", "judgment", "text") if f in row]
    texts += [judge_template(run), prompt_template(run)]
    settings = run.cfg.tokenizer
    try:
        model = train_sentencepiece(texts, settings.vocab_size, settings.byte_fallback)
    except RuntimeError as error:  # SentencePiece says in its own words what is too small or too large
        raise StageError(f"tokenizer.vocab_size {settings.vocab_size} does not suit the seeds: {error}") from None
    storage.write_json(folder / "tokenizer_config.json", {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD})
    storage.write_atomic(folder / "chat_template.jinja", chat.builtin_template("control").encode())
    storage.write_atomic(folder / "tokenizer.model", model)


def eft(run: Run) -> None:
    """seed/eft.jsonl: what the SFT baseline wrote of ranked answers, where it agrees with their human order. Nothing to
    do where the seed stage has made it."""
    out = run.jsonl("seed", "eft")
    if eft_source_set(run) == "eft" or out.manifest is not None:
        return
    asked, rows = [], []
    for row in run.jsonl("seed", "eft_answers").rows():
        if all("judgment" in a for a in row["answers"]):  # people's own words need no agreement
            rows += [{"prompt": row["prompt"], **a} for a in row["answers"]]
        else:
            answers = [{**a, "id": f"{row['id']}/{i}"} for i, a in enumerate(row["answers"])]
            asked.append({**row, "answers": answers})
    judged = [{"prompt": row["prompt"], **answer} for row in asked for answer in row["answers"]]
    settings = run.cfg.eft
    judgments = []
    if judged:
        judge(run, "sft", judged, "seed", "eft_judgments", settings.num_samples)
        judgments = run.jsonl("seed", "eft_judgments").rows()
    rng = Random(f"{run.cfg.seed} eft")
    built, counts = build_eft(asked, judgments, settings.agreement, settings.max_share, rng)
    counts["written"] = len(rows)
    rows = (rows + built)[: run.cfg.data.eft_rows or None]
    counts |= {"over_the_limit": counts["written"] + len(built) - len(rows), "kept": len(rows)}
    log_line(f"eft: {counts}")
    if not rows:
        raise StageError(
            f"seed eft: the SFT baseline's judgments agree with no human order ({counts}): in a new --workdir give "
            "written judgments of all answers, take eft.source=scores, raise eft.num_samples, or set eft.agreement=weak"
        )
    out.finish([{"id": f"eft/{i}", **row} for i, row in enumerate(rows)], counts=counts)


def pretrain(run: Run) -> None:
    """m0: the weights of model.init; or a base model trained on plain documents, from random weights."""
    if is_trained(run, "m0"):
        return
    if run.cfg.model.init:
        _adopt_weights(run, hub.resolve_model_dir(run.cfg.model.init))
    else:
        texts = [row["text"] for row in run.jsonl("seed", "documents").rows()]
        width = run.cfg.pretrain.seq_len
        examples = [piece for text in texts for piece in chat.chunk_document(run.chat.document(text), width)]
        declared = param_specs(run.model_config())
        log_line(f"model: {parameter_count(declared):,} parameters, {run.mesh.size} device(s)")
        make = lambda key: Llama(run.model_config()).init(key, jnp.zeros((1, 1), int))["params"]  # noqa: E731
        train_packed(run, "m0", "pretrain", examples, partial(run.init_params, make, declared, "m0"))


def _adopt_weights(run: Run, source: epath.Path) -> None:
    progress = Progress("m0 init", 1)
    params = hf.load(source, run.model_config(), run.shardings(param_specs(run.model_config())))
    facts = {"stage": "init", "rows": 0, "steps": 0, "tokens": 0}
    facts["weights"] = checkpoints.save(run.workdir / "m0" / "checkpoint", params)
    storage.write_checksummed(run.workdir / "m0" / "manifest.json", facts)
    progress.add(1)
    progress.close(f"{parameter_count(param_specs(run.model_config())):,} parameters of {source}")
    run.flush_usage()

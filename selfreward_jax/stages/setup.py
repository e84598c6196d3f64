"""Before M1: seed sets, tokenizer, M0, and EFT."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from selfreward_jax import foreign, storage
from selfreward_jax.data import checkable_seeds, seed_sets
from selfreward_jax.data.eft import build_eft, format_counts
from selfreward_jax.data.pool import read_pool
from selfreward_jax.llm import chat, hf, hub
from selfreward_jax.llm.decoder import Decoder
from selfreward_jax.llm.hf_tokenizer import TOKENIZER_FILES
from selfreward_jax.llm.parameters import Params, param_specs, parameter_count
from selfreward_jax.llm.tokenizer import BOS, EOS, PAD, train_sentencepiece
from selfreward_jax.method import prompt_generation
from selfreward_jax.method.rows import InstructionRow, JudgedRow, JudgeInput, RankedRow, Row, without_system
from selfreward_jax.parallel import processes
from selfreward_jax.runs.run import Run
from selfreward_jax.stages.common import StageError, eft_source_set, few_shot_pool, judge_template, prompt_template
from selfreward_jax.stages.sampling import judge
from selfreward_jax.stages.sft import train_packed
from selfreward_jax.stages.training import is_trained
from selfreward_jax.telemetry.numbers import counted, counts
from selfreward_jax.telemetry.progress import Progress
from selfreward_jax.telemetry.terminal import log_line
from selfreward_jax.train import checkpoints

REPORT_FILE = "seed/report.json"
DOWNLOAD_TIMEOUT = 24 * 3600.0  # seconds that other processes wait while the primary downloads seeds


def seed(run: Run, model: str) -> None:
    """seed/*.jsonl: instruction rows, judged rows (or ranked answers from which EFT is built), held-out prompts and
    ranked answers, plain documents."""
    if run.files.is_complete(model, "documents"):
        manifest = run.files.jsonl(model, "documents").manifest
        if all(run.files.is_complete(model, name) for name in manifest["sets"]):
            if run.files.own(run.workdir / REPORT_FILE) is None:  # for people only: no need to read the seeds again
                _write_report(run, manifest["report"])
            return
    if processes.is_primary():  # it alone needs the user's files
        _make_seeds(run, model)
    processes.barrier("the seed sets", timeout=DOWNLOAD_TIMEOUT)


def _make_seeds(run: Run, model: str) -> None:
    progress, c = Progress(f"{model} documents", 0), run.cfg
    if c.world == "checkable":
        sets, report = checkable_seeds.from_tasks(c.data, c.seed, c.judge.output_format)
    elif c.data.ift:
        sets, report = seed_sets.from_files(c.data, c.seed, c.eft, c.judge.output_format)
    else:
        sets, report = seed_sets.from_world(c.data, c.seed, c.judge.output_format)
    _check_few_shot(run, sets["ift"])
    if c.prompts.source:
        sets["pool"] = read_pool(c.prompts.source)
        _check_pool(run, len(sets["pool"]))
    for name, rows in sets.items():
        if name != "documents":
            _write_set(run, name, rows)
    _write_report(run, report)
    _write_set(run, "documents", sets["documents"], sets=list(sets), report=report)  # last: it completes the stage
    progress.add(sum(map(len, sets.values())))
    progress.close(counts({name: len(rows) for name, rows in sets.items()}))
    for line in seed_sets.format_report(report):
        log_line(f"  {line}")


def _write_report(run: Run, report: dict[str, Any]) -> None:
    storage.write_checksummed(run.workdir / REPORT_FILE, {"owner": run.files.owner, **report})


def _check_pool(run: Run, size: int) -> None:
    """Raises DataError where the rounds would need more prompts than the file has."""
    c = run.cfg.prompts
    rounds = run.cfg.iterations - 1
    needed = c.count + (rounds - 1) * (c.later_count or c.count) if rounds else 0
    if size < needed:
        raise seed_sets.DataError(
            f"prompts.source {c.source} has {counted(size, 'prompt')}, but {counted(rounds, 'round')} take {needed:,} "
            f"(prompts.count {c.count}, prompts.later_count {c.later_count}): give more, or lower these or iterations"
        )


def _check_few_shot(run: Run, rows: Sequence[InstructionRow]) -> None:
    """Raises DataError where too few prompts have the form of a few-shot example, and says why the others have not."""
    c, data = run.cfg.prompts, run.cfg.data
    num_examples = c.num_seed_examples + c.num_generated_examples
    reasons = Counter(prompt_generation.rejection_reason(without_system(row), c) for row in rows)
    pool = reasons.pop(None, 0)
    if pool > num_examples:
        return
    raise seed_sets.DataError(
        f"data.ift {data.ift}: {pool} of {counted(len(rows), 'instruction row')} can be few-shot examples for prompt "
        f"generation, and {num_examples + 1} are needed (the others: {counts(reasons)}): give more prompts of "
        f"{c.min_words} to {c.max_words} words (prompts.min_words, prompts.max_words) on one line, set "
        "prompts.multiline=True for several lines, or lower prompts.num_seed_examples"
    )


def _write_set(run: Run, name: str, rows: Sequence[Row], **metadata: Any) -> None:
    run.files.jsonl("seed", name).finish([{"id": f"{name}/{i}", **row} for i, row in enumerate(rows)], **metadata)


def tokenizer(run: Run, model: str) -> None:
    """tokenizer/: the tokenizer and chat template of model.init; or a tokenizer trained on the training texts of the
    seeds, with the built-in template.

    Raises:
      storage.CorruptionError: the files are not those that were written.
    """
    folder = run.workdir / model
    if (manifest := run.files.own(folder / "manifest.json", folder)) is not None:
        if processes.broadcast_from_primary(lambda: _hashes(folder)) != manifest["files"]:
            raise storage.CorruptionError(f"{folder} is not the tokenizer that was written", folder)
        return
    if run.cfg.model.init:
        _copy_tokenizer(hub.resolve_model_dir(run.cfg.model.init, weights=False), folder)
    else:
        _train_tokenizer(run, folder)
    processes.barrier("the tokenizer")
    vocab_size = run.models.chat.tokenizer.vocab_size
    files = processes.broadcast_from_primary(lambda: _hashes(folder))
    manifest = {"owner": run.files.owner, "init": run.cfg.model.init, "pieces": vocab_size, "files": files}
    storage.write_checksummed(folder / "manifest.json", manifest)
    log_line(f"  tokenizer: {vocab_size:,} pieces")


def _hashes(folder: epath.Path) -> dict[str, str]:
    """SHA-256 of each file that a tokenizer is read from; "" where no regular file is there."""

    def digest(path: epath.Path) -> str:
        try:
            return hashlib.sha256(foreign.read_bytes(path, foreign.MAX_TOKENIZER)).hexdigest()
        except OSError as error:
            if error.errno not in foreign.NO_FILE:
                raise
            return ""

    return {name: digest(folder / name) for name in TOKENIZER_FILES if (folder / name).exists()}


def _copy_tokenizer(source: epath.Path, folder: epath.Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            storage.write_atomic(folder / name, foreign.read_bytes(source / name, foreign.MAX_TOKENIZER))


def _train_tokenizer(run: Run, folder: epath.Path) -> None:
    names = ("ift", eft_source_set(run), "documents")
    rows = [row for name in names for row in run.files.jsonl("seed", name).rows()]
    texts = [row[f] for row in rows for f in ("prompt", "response", "judgment", "text") if f in row]
    texts += [judge_template(run), prompt_template(run)]
    if run.cfg.prompts.multiline:  # its marks are in no other text
        texts += [prompt_generation.few_shot_prompt("{examples}", [p], multiline=True) for p in few_shot_pool(run)]
    settings = run.cfg.tokenizer
    try:
        model = train_sentencepiece(texts, settings.vocab_size, settings.byte_fallback)
    except RuntimeError as error:  # SentencePiece says what is too small or too large
        needed = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        reason = f"their characters alone need {needed[1]} pieces" if needed else str(error).splitlines()[0]
        raise StageError(
            f"tokenizer.vocab_size {settings.vocab_size} does not suit the seeds ({reason}): raise it; "
            "tokenizer.byte_fallback=True spells the rarest characters in bytes, and takes 256 pieces for that"
        ) from None
    storage.write_json(folder / "tokenizer_config.json", {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD})
    storage.write_atomic(folder / "chat_template.jinja", chat.builtin_template("control").encode())
    storage.write_atomic(folder / "tokenizer.model", model)


def pretrain(run: Run, model: str) -> None:
    """m0: the weights of model.init; or a base model trained on plain documents, from random weights."""
    if is_trained(run, model):
        return
    if run.cfg.model.init:
        _load_pretrained(run, model, hub.resolve_model_dir(run.cfg.model.init))
        return
    texts = [row["text"] for row in run.files.jsonl("seed", "documents").rows()]
    seq_len, as_document = run.cfg.pretrain.seq_len, run.models.chat.document
    examples = [piece for text in texts for piece in chat.chunk_document(as_document(text), seq_len)]
    decoder = Decoder(run.models.model_config())
    specs = param_specs(decoder.cfg)
    log_line(f"  {model}: {parameter_count(specs):,} parameters on {counted(run.models.mesh.size, 'device')}")

    def init(key: jax.Array) -> Params:
        return decoder.init(key, jnp.zeros((1, 1), int))["params"]

    train_packed(run, model, "pretrain", examples, partial(run.models.init_params, init, specs, model))


def _load_pretrained(run: Run, model: str, source: epath.Path) -> None:
    progress, cfg = Progress(f"{model} init", 1), run.models.model_config()
    specs = param_specs(cfg)
    params = hf.load(source, cfg, run.models.shardings(specs))
    fingerprint = checkpoints.save(run.workdir / model / "checkpoint", params, run.files.owner)
    manifest = {**run.files.made_by(), "stage": "init", "rows": 0, "steps": 0, "tokens": 0, "weights": fingerprint}
    storage.write_checksummed(run.workdir / model / "manifest.json", manifest)
    progress.add(1)
    progress.close(f"{parameter_count(specs):,} parameters of {source}")
    run.log.flush()


def eft(run: Run, model: str) -> None:
    """seed/eft.jsonl: the SFT baseline's judgments of ranked answers, where they agree with the human order. Nothing to
    do where the seed stage has made it.

    Raises:
      StageError: no judgment agrees.
    """
    artifact = run.files.jsonl(model, "eft")
    if eft_source_set(run) == "eft" or run.files.is_complete(model, "eft"):
        return
    written: list[JudgedRow] = []
    ranked: list[RankedRow] = []
    for row in run.files.jsonl(model, "eft_answers").rows():
        if all("judgment" in answer for answer in row["answers"]):  # people's own judgments need no agreement
            written += [{"prompt": row["prompt"], **answer} for answer in row["answers"]]
        else:
            answers = [{**answer, "id": f"{row['id']}/{i}"} for i, answer in enumerate(row["answers"])]
            ranked.append({**row, "answers": answers})
    settings = run.cfg.eft
    responses: list[JudgeInput] = [
        {"id": answer["id"], "prompt": row["prompt"], "response": answer["response"]}
        for row in ranked
        for answer in row["answers"]
    ]
    judged = judge(run, "sft", responses, model, "eft_judgments", settings.num_samples) if responses else []
    rng = Random(f"{run.cfg.seed} eft")
    built, outcomes = build_eft(ranked, judged, settings.agreement, settings.max_share, rng)
    rows = (written + built)[: run.cfg.data.eft_rows or None]
    over = len(written) + len(built) - len(rows)
    outcomes |= {"written": len(written), "over_the_limit": over, "kept": len(rows)}
    log_line(f"  eft: {format_counts(outcomes)}")
    if not rows:
        raise StageError(
            f"seed eft: the SFT baseline's judgments agree with no human order ({format_counts(outcomes)}): in a new "
            "--workdir give written judgments of all answers, set eft.source=scores, raise eft.num_samples, or set "
            "eft.agreement=weak"
        )
    artifact.finish([{"id": f"eft/{i}", **row} for i, row in enumerate(rows)], counts=outcomes)

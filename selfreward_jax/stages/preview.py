"""What a run would read and learn from, found out without writing to its working directory."""

import contextlib
import io
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from selfreward_jax import storage
from selfreward_jax.console.escape import escape
from selfreward_jax.data.seed_sets import format_report
from selfreward_jax.llm.chat import Chat, Example, chunk_document
from selfreward_jax.llm.tokenizer import SentencePiece, Tokenizer
from selfreward_jax.method.judge import judge_prompt
from selfreward_jax.runs.run import Run, make_run
from selfreward_jax.stages.common import check_inputs, eft_source_set, judge_template, seed_examples
from selfreward_jax.stages.setup import seed, tokenizer
from selfreward_jax.stages.training import drop_overlong

MAX_SHOWN = 1200  # characters of an example
NOTICEABLE_UNKNOWN = 0.01  # share of the characters
MAX_CHARACTERS = 10  # that a warning shows


@contextlib.contextmanager
def seeded(run: Run) -> Iterator[Run]:
    """The run if it has its seeds and tokenizer; else one in a temporary folder, where they are made in the same way.

    Raises:
      InputError: as the run itself would.
    """
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stderr(io.StringIO()):  # what the stages log is shown in another form
            copy = make_run(run.cfg, folder)
            pinned = run.workdir / "prompts_writer.json"
            if pinned.exists():
                (copy.workdir / pinned.name).write_bytes(pinned.read_bytes())
            check_inputs(copy, weights=False)  # a model of the hub may have more than this machine can hold
            if _has_seeds(run):
                copy = run
            seed(copy, "seed")
            tokenizer(copy, "tokenizer")
        yield copy


def _has_seeds(run: Run) -> bool:
    manifests = ("seed/documents.manifest.json", "tokenizer/manifest.json")
    return all(storage.exists(run.workdir / name) for name in manifests)


def training_sets(run: Run) -> dict[str, list[Example]]:
    """The examples of each set that SFT trains on, and of the plain documents if M0 is pretrained."""
    names = [name for name in run.cfg.sft.sets if name != "eft" or eft_source_set(run) == "eft"]
    sets = seed_examples(run, names)
    if not run.cfg.model.init:
        texts = [row["text"] for row in run.files.jsonl("seed", "documents").rows()]
        as_document = run.models.chat.document
        sets["documents"] = [c for t in texts for c in chunk_document(as_document(t), run.cfg.pretrain.seq_len)]
    return sets


def describe_seeds(run: Run, sets: dict[str, list[Example]]) -> list[str]:
    """What each filter took, and how the lengths of each set compare with what fits.

    Raises:
      StageError: nothing of a set fits.
    """
    lines = format_report(run.files.jsonl("seed", "documents").manifest["report"])
    lines += ["", f"{'set':12s} {'rows':>9s} {'median':>8s} {'longest':>8s} {'limit':>8s} {'too long':>9s}   in tokens"]
    too_long = []
    for name, examples in sets.items():
        setting = f"{'pretrain' if name == 'documents' else 'sft'}.seq_len"
        limit = run.cfg["pretrain" if name == "documents" else "sft"].seq_len
        lengths = [len(example.ids) for example in examples]
        over = sum(length > limit for length in lengths)
        cells = (len(lengths), round(statistics.median(lengths)), max(lengths), limit, over)
        lines.append(f"{name:12s} " + " ".join(f"{c:{w},}" for c, w in zip(cells, (9, 8, 8, 8, 9), strict=True)))
        too_long += [f"{name}: {over:,} of {len(lengths):,} rows are left out, longer than {setting} {limit}"] * bool(
            over
        )
    lines += too_long
    with contextlib.redirect_stderr(io.StringIO()):
        drop_overlong(
            [e for name, of in sets.items() if name != "documents" for e in of],
            run.cfg.sft.seq_len,
            "m1 sft",
            "sft.seq_len",
        )
    held_out = {name: len(run.files.jsonl("seed", name).rows()) for name in ("heldout", "ranked_heldout")}
    lines.append(
        f"held out: {held_out['heldout']:,} prompts to answer, {held_out['ranked_heldout']:,} with ranked answers"
    )
    return lines + unknown_warnings(run.models.chat.tokenizer, _seed_texts(run))


def count_held_out(run: Run) -> int:
    """The number of prompts that each model answers for its evaluation."""
    return len(run.files.jsonl("seed", run.cfg.evaluate.split).rows())


def _seed_texts(run: Run) -> dict[str, list[str]]:
    """The texts of the seeds themselves, without any template."""
    ift, eft = (run.files.jsonl("seed", name).rows() for name in ("ift", eft_source_set(run)))
    answers = [answer for row in eft for answer in row.get("answers", [row])]
    return {
        "data.ift": [text for row in ift for text in (row["prompt"], row["response"])],
        "data.eft": [row["prompt"] for row in eft] + [answer["response"] for answer in answers],
    }


def unknown_warnings(tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each set of texts of whose characters a noticeable share is unknown to the tokenizer."""
    unknown, lines = unknown_ids(tokenizer), []
    for name, of_set in texts.items():
        counts = Counter(c for text in of_set if unknown & set(tokenizer.encode(text)) for c in text)
        missing = {c: n for c, n in counts.items() if unknown & set(tokenizer.encode(c))}
        share = sum(missing.values()) / max(1, sum(map(len, of_set)))
        if share >= NOTICEABLE_UNKNOWN:
            most = " ".join(sorted(missing, key=lambda c: -missing[c])[:MAX_CHARACTERS])
            lines.append(
                f"warning: {name}: the tokenizer has no token for {share:.1%} of the characters, such as "
                f"{escape(most)}: use a model.init whose tokenizer has, or tokenizer.byte_fallback=True without one"
            )
    return lines


def unknown_ids(tokenizer: Tokenizer) -> set[int]:
    """The id for what a tokenizer has no piece for; none if it spells everything in bytes."""
    if isinstance(tokenizer, SentencePiece):
        return {i for i, piece in enumerate(tokenizer.pieces()) if piece.kind == "unknown"}
    # No vocabulary holds a private character of the last plane. No text gives any other special token.
    return set(tokenizer.encode("\U0010fffd")) & set(tokenizer.special_tokens.values())


def show_examples(run: Run, sets: dict[str, list[Example]]) -> list[str]:
    """The first example of each set as the model sees it: special tokens visible, «what carries loss» marked."""
    lines = []
    for name, examples in sets.items():
        shown = _shorten(render_example(run.models.chat, examples[0]))
        lines += [f"{name}, 1 of {len(examples):,}:", *_indent(shown)]
    if eft_source_set(run) != "eft" and "eft" in run.cfg.sft.sets:
        row = run.files.jsonl("seed", "eft_answers").rows()[0]
        prompt = judge_prompt(judge_template(run), row["prompt"], row["answers"][0]["response"])
        shown = _shorten(run.models.chat.render_text(prompt, "(to be written by the SFT baseline)"))
        lines += ["eft, what the SFT baseline is fewer:", *_indent(shown)]
    return lines


def render_example(chat: Chat, example: Example) -> str:
    """An example as text: special tokens by name, « before and » after each span of targets."""
    token_of = {i: token for token, i in chat.tokenizer.special_tokens.items()}
    parts: list[str] = []
    start = 0
    for end in range(1, len(example.ids) + 1):
        inside = end < len(example.ids) and example.ids[end] not in token_of and example.ids[end - 1] not in token_of
        if inside and example.target[end] == example.target[start]:
            continue
        ids = example.ids[start:end]
        before = "«" if example.target[start] and (start == 0 or not example.target[start - 1]) else ""
        last = example.target[start] and (end == len(example.ids) or not example.target[end])
        text = token_of.get(ids[0]) or chat.tokenizer.decode(ids)
        parts.append(before + text + "»" * last)
        start = end
    return "".join(parts)


def _shorten(text: str) -> str:
    if len(text) <= MAX_SHOWN:
        return text
    half = MAX_SHOWN // 2
    return f"{text[:half]} [... {len(text) - MAX_SHOWN:,} characters ...] {text[-half:]}"


def _indent(text: str) -> Sequence[str]:
    return [f"    {escape(line)}" for line in text.split("\n")]

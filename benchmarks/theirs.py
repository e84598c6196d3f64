"""The worker process of the peer: transformers' generate and TRL's trainers. See side_by_side.py."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, TrainerCallback

from benchmarks import cases
from benchmarks.side_by_side import serve

Run = Callable[[], dict[str, Any]]
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
SPECIAL = {"pad_token": "w0", "bos_token": "w1", "eos_token": "w2"}


def _now() -> float:
    """Seconds, after the device has finished its work."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(TrainerCallback):
    """Times each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Starts the time of a step."""
        self.times.append(-_now())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Completes the time of a step."""
        self.times[-1] += _now()


def _model(case: dict[str, Any]) -> Any:
    return AutoModelForCausalLM.from_pretrained(case["folder"], dtype=getattr(torch, case["dtype"])).to(DEVICE)


def load(case: dict[str, Any]) -> Run:
    """Reads the folder into the memory of the device."""
    model = _model(case)
    # A sum reads what was only mapped.
    return lambda: {
        "bytes": sum(p.nbytes for p in model.parameters()),
        "sum": sum(float(p.sum()) for p in model.parameters()),
    }


def generate(case: dict[str, Any]) -> Run:
    """Samples with `generate`, `batch` prompts at a time, each with all its samples."""
    model = _model(case).eval()
    ids = torch.tensor(
        cases.prompts(case["shape"], case["prompts"], case["length"], case.get("shared", 0)), device=DEVICE
    )
    sampling = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "num_return_sequences": case["samples"],
    }
    sampling |= {"max_new_tokens": case["new"], "min_new_tokens": case["new"], "pad_token_id": 0}

    def run() -> dict[str, Any]:
        start, tokens = _now(), 0
        with torch.inference_mode():
            for part in ids.split(case["batch"]):
                output = model.generate(part, attention_mask=torch.ones_like(part), **sampling)
                tokens += output.shape[0] * (output.shape[1] - part.shape[1])
        return {"seconds": _now() - start, "tokens": tokens}

    return run


def dpo_step(case: dict[str, Any]) -> Run:
    """Steps of TRL's own training loop, timed by its callbacks from the start to the end of each step."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    vocabulary = {f"w{i}": i for i in range(cases.SHAPES[case["shape"]][0])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_word_level(vocabulary), **SPECIAL)
    # TRL appends EOS itself.
    rows = cases.pairs(case["shape"], case["pairs"], case["prompt"], case["response"] - 1)
    text = lambda ids: " ".join(f"w{i}" for i in ids)  # noqa: E731
    pairs = [
        {"prompt": text(r["prompt"]), "chosen": " " + text(r["chosen"]), "rejected": " " + text(r["rejected"])}
        for r in rows
    ]

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            args = DPOConfig(**_arguments(case, folder, len(pairs)), precompute_ref_log_probs=not case["reference"])
            data = Dataset.from_list(pairs * (case["steps"] + 1))
            return _train(DPOTrainer(model=_model(case), args=args, train_dataset=data, processing_class=tokenizer))

    return run


def sft_step(case: dict[str, Any]) -> Run:
    """Steps of TRL's SFTTrainer on rows of ids, of which the responses are targets."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"input_ids": r["prompt"] + r["chosen"], "labels": [-100] * len(r["prompt"]) + r["chosen"]}
        for r in cases.pairs(case["shape"], case["rows"], case["prompt"], case["response"])
    ]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_word_level({"w0": 0, "w1": 1, "w2": 2}), **SPECIAL)

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            args = SFTConfig(**_arguments(case, folder, len(rows)), dataset_kwargs={"skip_prepare_dataset": True})
            data = Dataset.from_list(rows * (case["steps"] + 1))
            return _train(SFTTrainer(model=_model(case), args=args, train_dataset=data, processing_class=tokenizer))

    return run


def _word_level(vocabulary: dict[str, int]) -> Any:
    """A tokenizer whose words are its pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _arguments(case: dict[str, Any], folder: str, batch_size: int) -> dict[str, Any]:
    """What both trainers have in common."""
    return {
        "output_dir": folder,
        "use_cpu": not GPU,
        "bf16": case["autocast"],
        "report_to": "none",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": batch_size,
        "max_steps": case["steps"] + 1,
        "max_length": None,
        "learning_rate": 1e-6,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }


def _train(trainer: Any) -> dict[str, Any]:
    """Trains. Returns the mean seconds of a step; the first warms up."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return {"seconds": sum(clock.times[1:]) / (len(clock.times) - 1)}


if __name__ == "__main__":
    torch.manual_seed(0)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    with contextlib.redirect_stdout(sys.stderr):
        serve({f.__name__: f for f in (load, generate, dpo_step, sft_step)}, versions)

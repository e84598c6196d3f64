"""The other side of a comparison: transformers' generate and TRL's DPOTrainer. See side_by_side.py."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks import cases
from benchmarks.side_by_side import serve

Run = Callable[[], dict[str, Any]]
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def _now() -> float:
    """Seconds, when the device has done what it was told."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def _model(case: dict[str, Any]) -> Any:
    return AutoModelForCausalLM.from_pretrained(case["folder"], dtype=getattr(torch, case["dtype"])).to(DEVICE)


def generate(case: dict[str, Any]) -> Run:
    """Draws with `generate`, `batch` prompts at a time, each with all its samples."""
    model = _model(case).eval()
    ids = torch.tensor(
        cases.prompts(case["shape"], case["prompts"], case["length"], case.get("shared", 0)), device=DEVICE
    )
    how = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "num_return_sequences": case["samples"]}
    how |= {"max_new_tokens": case["new"], "min_new_tokens": case["new"], "pad_token_id": 0}

    def run() -> dict[str, Any]:
        start, tokens = _now(), 0
        with torch.inference_mode():
            for part in ids.split(case["batch"]):
                made = model.generate(part, attention_mask=torch.ones_like(part), **how)
                tokens += made.shape[0] * (made.shape[1] - part.shape[1])
        return {"seconds": _now() - start, "tokens": tokens}

    return run


def dpo_step(case: dict[str, Any]) -> Run:
    """Steps of TRL's own training loop, by its own clock between the beginnings of steps."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    vocabulary = {f"w{i}": i for i in range(cases.SHAPES[case["shape"]][0])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2")
    # TRL adds the end of text itself.
    rows = cases.pairs(case["shape"], case["pairs"], case["prompt"], case["response"] - 1)
    text = lambda ids: " ".join(f"w{i}" for i in ids)  # noqa: E731
    made = [
        {"prompt": text(r["prompt"]), "chosen": " " + text(r["chosen"]), "rejected": " " + text(r["rejected"])}
        for r in rows
    ]

    class Clock(TrainerCallback):
        """When each step began and ended."""

        times: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            """Notes the time."""
            self.times.append(-_now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """Notes the time."""
            self.times[-1] += _now()

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            args = DPOConfig(
                output_dir=folder,
                use_cpu=not GPU,
                bf16=case["autocast"],
                report_to="none",
                gradient_checkpointing=False,
                per_device_train_batch_size=len(made),
                max_steps=case["steps"] + 1,
                precompute_ref_log_probs=not case["reference"],
                max_length=None,
                learning_rate=1e-6,
                save_strategy="no",
                disable_tqdm=True,
                logging_strategy="no",
            )
            clock = Clock()
            clock.times = []
            data = Dataset.from_list(made * (case["steps"] + 1))
            own = DPOTrainer(
                model=_model(case), args=args, train_dataset=data, processing_class=tokenizer, callbacks=[clock]
            )
            own.train()
        steps = clock.times[1:]  # the first warms up
        return {"seconds": sum(steps) / len(steps)}

    return run


if __name__ == "__main__":
    torch.manual_seed(0)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    with contextlib.redirect_stdout(sys.stderr):
        serve({f.__name__: f for f in (generate, dpo_step)}, versions)

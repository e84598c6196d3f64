"""Writes trl_losses.npz: the losses over pairs and their gradients, as TRL's own trainers compute them in float32.

pip install torch transformers trl    # made with torch 2.13.0 (CPU), transformers 5.23.0 and trl 1.16.0
python tests/goldens/make_trl_losses.py

Each value is what the `compute_loss` of a DPOTrainer (of a CPOTrainer for simpo) returns for a collated batch, and each
gradient what its `backward` leaves in the model. Where TRL's number depends on how pairs are grouped (the token mean of
`sft`, the sorting of `aot`), the pairs are passed one by one and the results are averaged. TRL has no IPO on sums; it
is the paper's formula on the log-probs of the same model, in float64.

The test takes the weights and the pairs from here, so torch is imported only where it is used.
"""

import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import hf_folders

CONFIG = hf_folders.FAMILIES["llama3"] | {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
}
# Our name -> our settings, TRL's settings, and whether its pairs are passed one by one.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "sigmoid": ({"beta": 0.3}, {"loss_type": ["sigmoid"]}, False),
    "hinge": ({"beta": 0.3}, {"loss_type": ["hinge"]}, False),
    "ipo_mean": ({"beta": 0.3}, {"loss_type": ["ipo"]}, False),
    "cdpo": ({"beta": 0.3, "label_smoothing": 0.1}, {"loss_type": ["aot"], "label_smoothing": 0.1}, True),
    "robust": ({"beta": 0.3, "label_smoothing": 0.1}, {"loss_type": ["robust"], "label_smoothing": 0.1}, False),
    "simpo": ({"beta": 2.0, "gamma": 0.7}, {"loss_type": "simpo", "simpo_gamma": 0.7, "cpo_alpha": 0.0}, False),
    "sigmoid_norm": ({"beta": 5.0}, {"loss_type": ["sigmoid_norm"]}, False),
    "rpo": ({"beta": 0.3, "nll_weight": 0.6}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.6]}, True),
}
IPO_BETA = 0.3


def weights(role: str) -> dict[str, np.ndarray]:
    """Float32 weights by name, of the "policy" or of the "reference", which differ by some noise."""
    made = hf_folders.tensors(CONFIG)
    for name, x in made.items():
        # A smaller output layer: with logits of order 10 the margins would be where every loss is linear or flat.
        x *= 0.3 if name == "lm_head.weight" else 1.0
        noise = np.random.default_rng(zlib.crc32(f"{role} {name}".encode())).normal(0, 0.3, x.shape)
        x += (x.std() * noise).astype(np.float32)
    return made


def pairs() -> list[dict[str, list[int]]]:
    """Prompt, chosen and rejected ids of five pairs, no two of the same lengths."""
    rng = np.random.default_rng(11)
    lengths = [(3, 4, 7), (6, 1, 2), (2, 9, 3), (5, 5, 8), (4, 3, 1)]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{n: rng.integers(3, 40, k).tolist() for n, k in zip(names, row, strict=True)} for row in lengths]


def model(role: str, dtype: Any) -> Any:
    """A Hugging Face Llama with these weights."""
    import torch
    from transformers import DecoderConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(DecoderConfig(**CONFIG, attn_implementation="eager")).to(dtype)
    llama.load_state_dict({name: torch.tensor(x).to(dtype) for name, x in weights(role).items()})
    return llama


def trainer(settings: dict[str, Any], dtype: Any, folder: str) -> Any:
    """TRL's trainer of these settings. It requires a dataset, which is not used."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2")
    common = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
    }
    kwargs = {
        "model": model("policy", dtype),
        "train_dataset": Dataset.from_list([{"prompt": "w5 w6", "chosen": " w7", "rejected": " w8"}]),
        "processing_class": tokenizer,
    }
    if settings["loss_type"] == "simpo":
        return CPOTrainer(args=CPOConfig(**common, **settings), **kwargs)
    return DPOTrainer(args=DPOConfig(**common, **settings), ref_model=model("reference", dtype), **kwargs)


def cpo_row(pair: dict[str, list[int]]) -> dict[str, Any]:
    """A pair in the form that the CPO trainer's collator takes."""
    row = {"prompt": "", "prompt_input_ids": pair["prompt_ids"], "prompt_attention_mask": [1] * len(pair["prompt_ids"])}
    for side in ("chosen", "rejected"):
        ids = pair["prompt_ids"] + pair[f"{side}_ids"]
        row[f"{side}_input_ids"], row[f"{side}_attention_mask"] = ids, [1] * len(ids)
        row[f"{side}_labels"] = [-100] * len(pair["prompt_ids"]) + pair[f"{side}_ids"]
    return row


def computed(settings: dict[str, Any], dtype: Any, one_by_one: bool = False) -> tuple[float, dict[str, np.ndarray]]:
    """TRL's loss and its gradients by the names of the weights."""
    with tempfile.TemporaryDirectory() as folder:
        trl = trainer(settings, dtype, folder)
        rows = [cpo_row(pair) for pair in pairs()] if settings["loss_type"] == "simpo" else pairs()
        total = 0.0
        groups = [[row] for row in rows] if one_by_one else [rows]
        for group in groups:
            loss = trl.compute_loss(trl.model, trl.data_collator(group)) / len(groups)
            loss.backward()
            total += loss.item()
        return total, {name: p.grad.numpy() for name, p in trl.model.named_parameters()}


def ipo_of_the_paper() -> tuple[float, dict[str, np.ndarray], np.ndarray]:
    """Eq. 17 on sums in float64: loss, gradients, and the log-probs [policy and reference, chosen and rejected, B]."""
    import torch

    policy, reference = model("policy", torch.float64), model("reference", torch.float64)

    def logprob(llama: Any, prompt: list[int], response: list[int]) -> Any:
        ids = torch.tensor(prompt + response)
        each = llama(ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])
        return each[len(prompt) - 1 :].sum()

    sides = ("chosen_ids", "rejected_ids")
    nested = [[[logprob(m, p["prompt_ids"], p[side]) for p in pairs()] for side in sides] for m in (policy, reference)]
    logprobs = torch.stack([torch.stack([torch.stack(row) for row in sides]) for sides in nested])
    ratios = logprobs[0] - logprobs[1].detach()
    loss = ((ratios[0] - ratios[1] - 1 / (2 * IPO_BETA)) ** 2).mean()
    loss.backward()
    return loss.item(), {n: p.grad.float().numpy() for n, p in policy.named_parameters()}, logprobs.detach().numpy()


def main() -> None:
    """Computes and writes all losses."""
    import torch

    out: dict[str, Any] = {}

    def add(name: str, loss: float, grads: dict[str, np.ndarray]) -> None:
        out[f"{name}/loss"] = loss
        out.update({f"{name}/{weight}": x for weight, x in grads.items()})

    for name, (ours, theirs, one_by_one) in CASES.items():
        settings = {"beta": ours["beta"]} | theirs
        loss, grads = computed(settings, torch.float32, one_by_one)
        add(name, loss, grads)
        exact, exact_grads = computed(settings, torch.float64, one_by_one)
        off = max(np.linalg.norm(grads[n] - x) / np.linalg.norm(x) for n, x in exact_grads.items())
        print(f"{name:13} {loss:.7f}  float32 from float64: {abs(loss / exact - 1):.1e}, gradients {off:.1e}")
    loss, grads, out["logprobs"] = ipo_of_the_paper()
    add("ipo", loss, grads)
    # Two numbers of TRL that are not ours: smoothing given to `sigmoid`, and `sft` over a batch.
    smoothed = {"loss_type": ["sigmoid"], "label_smoothing": 0.1}
    out["smoothed sigmoid/loss"] = computed({"beta": 0.3} | smoothed, torch.float32)[0]
    out["sft of the batch/loss"] = computed({"beta": 0.3, "loss_type": ["sft"]}, torch.float32)[0]
    np.savez_compressed(Path(__file__).with_name("trl_losses.npz"), **out)


if __name__ == "__main__":
    main()

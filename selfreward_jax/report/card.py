"""The model card of an exported model: what it is, its metrics in the run, and what it was made from."""

import json
from typing import Any

from selfreward_jax import storage
from selfreward_jax.evaluate import model_metrics
from selfreward_jax.llm import peft
from selfreward_jax.llm.peft import BaseModel
from selfreward_jax.report.meanings import MEANINGS
from selfreward_jax.runs.run import Run
from selfreward_jax.worlds import world_of

_DATA = {"ift": "instructions", "eft": "judgments", "prompts": "prompt writing"}  # by training set


def model_card(run: Run, name: str, dtype: str, adapters_of: BaseModel | None = None) -> str:
    """README.md of the model `name` of a run, with the front matter that the Hugging Face Hub reads.

    Args:
      run: the run.
      name: the model, such as "m3".
      dtype: of the weights in the folder.
      adapters_of: the base model, if the folder holds only adapters.
    """
    config = run.cfg
    init = config.model.init or "random weights"
    judge = f"the template `{config.judge.template}` and {config.judge.num_samples} votes per response"
    return f"""{_front_matter(peft.base_model(config.model.init), adapters_of is not None)}
# {name}

A self-rewarding language model (arXiv 2401.10020), trained with selfreward_jax: {_history(run, name)} The run
started from {init}. The judge uses {judge}. The weights are stored as {dtype}.
{_loading(run, adapters_of) if adapters_of else ""}
## Metrics

{_metrics(run, name)}

They come from this run alone, on its own held-out prompts.

## Made from

{_hashes(run, name)}

## Settings

```json
{json.dumps(storage.read_json(run.workdir / "config.json"), indent=2, ensure_ascii=False)}
```
"""


def _front_matter(base: BaseModel, adapters: bool) -> str:
    """The hub refuses a base_model that is not an id of its own, so a folder is not named there."""
    named, lora = f"base_model: {base.hub_id}\n" * bool(base.hub_id), "- lora\n" * adapters
    return f"""---
library_name: {"peft" if adapters else "transformers"}
pipeline_tag: text-generation
{named}tags:
- self-rewarding
{lora}---
"""


def _loading(run: Run, base: BaseModel) -> str:
    """How to load adapters."""
    lora, name = run.cfg.lora, base.name or "FOLDER"
    revision = f', revision="{base.revision}"' if base.revision else ""
    where = "" if base.name else " FOLDER is that base model, m0 of the same run, exported as a whole model."
    return f"""
## Load

This folder holds adapters of rank {lora.rank} (alpha {lora.alpha:g}), not the whole model. They are added to the base
model that the run started from.{where}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{name}"{revision})
model = PeftModel.from_pretrained(base, "THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
```
"""


def _history(run: Run, name: str) -> str:
    if name == "m0":
        return "the base model."
    if name in ("sft", "m1"):
        sets = ("ift",) if name == "sft" else run.cfg.sft.sets
        return f"after supervised fine-tuning on {', '.join(_DATA[s] for s in sets)}."
    t = int(name[1:])
    method = (
        f"{run.cfg.dpo.loss} preference training" if run.cfg.dpo.dpo_weight else "supervised training on chosen answers"
    )
    source = "random preferences, a control experiment" if run.cfg.judge.kind == "random" else "preferences of its own"
    return f"after {t - 1} round{'s' * (t > 2)} of {method} on {source}."


def _metrics(run: Run, name: str) -> str:
    metrics = storage.read_checksummed(run.workdir / name / "eval.json")
    if metrics is None:
        return "None: the model was not evaluated."
    lines = ["| metric | value | what it is |", "|---|---|---|"]
    for part, meanings in MEANINGS.items():
        values = metrics.get(part, {}) if part else metrics
        lines += [
            f"| {part} {name} | {value:.4g} | {meanings[name]} |".replace("|  ", "| ")
            for name, value in values.items()
            if isinstance(value, int | float)
        ]
    for other, v in _win_rates(run, name).items():
        rates = ", ".join(f"{v[name]:.3f}" for name in ("win", "tie", "lose"))
        lines.append(f"| against {other}: win, tie, lose | {rates} | fractions, by the oracle |")
    return "\n".join(lines)


def _win_rates(run: Run, name: str) -> dict[str, dict[str, Any]]:
    """Against every other model that was evaluated, by the oracle; none where there is no oracle."""
    if not (world := world_of(run.cfg)):
        return {}
    names = [m for m in run.files.model_names() if run.files.jsonl(m, "eval_answers").manifest]
    return model_metrics.pairwise_win_rates(run.workdir, names, world).get(name, {})


def _hashes(run: Run, name: str) -> str:
    lines = ["| file | rows | sha256 |", "|---|---|---|"]
    files = [("seed", s) for s in ("ift", "eft", "documents")]
    last_round = 0 if name == "sft" else int(name[1:])
    files += [(f"m{t}", s) for t in range(2, last_round + 1) for s in ("prompts", "judgments", "pairs")]
    for model_name, stage in files:
        if manifest := run.files.jsonl(model_name, stage).manifest:
            lines.append(f"| {model_name}/{stage}.jsonl | {manifest['rows']} | `{manifest['sha256']}` |")
    return "\n".join(lines)

"""The model card of an exported model: what it is, its metrics in the run, and what it was made from."""

import json
from typing import Any

from selfreward_jax import storage
from selfreward_jax.runs.run import Run

_DATA = {"ift": "instructions", "eft": "judgments", "prompts": "prompt writing"}  # by training set


def model_card(run: Run, name: str, dtype: str) -> str:
    """README.md of the model `name` of a run, with the front matter that the Hugging Face Hub reads."""
    config = run.cfg
    init = config.model.init or "random weights"
    judge = f"the template `{config.judge.template}` and {config.judge.num_samples} votes per response"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- self-rewarding
---

# {name}

A self-rewarding language model (arXiv 2401.10020), trained with selfreward_jax: {_history(run, name)} The run
started from {init}. The judge uses {judge}. The weights are stored as {dtype}.

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
    source = "preferences of its own" if run.cfg.judge.kind == "model" else "random preferences, a control experiment"
    return f"after {t - 1} round{'s' * (t > 2)} of {method} on {source}."


def _metrics(run: Run, name: str) -> str:
    metrics = storage.read_checksummed(run.workdir / name / "eval.json")
    if metrics is None:
        return "None: the model was not evaluated."
    lines = ["| metric | value |", "|---|---|"]
    for part in ("oracle", "judge"):
        lines += [f"| {part} {k} | {v:.4g} |" for k, v in metrics.get(part, {}).items() if isinstance(v, int | float)]
    lines += [f"| {k} | {v:.4g} |" for k, v in metrics.items() if isinstance(v, int | float)]
    summary: dict[str, Any] = (storage.read_json(run.workdir / "summary.json") or {}).get("models", {}).get(name, {})
    for other, v in summary.get("versus", {}).items():
        lines.append(f"| against {other}: win, tie, lose | {v['win']:.3f}, {v['tie']:.3f}, {v['lose']:.3f} |")
    return "\n".join(lines)


def _hashes(run: Run, name: str) -> str:
    lines = ["| file | rows | sha256 |", "|---|---|---|"]
    files = [("seed", s) for s in ("ift", "eft", "documents")]
    last_round = 0 if name == "sft" else int(name[1:])
    files += [(f"m{t}", s) for t in range(2, last_round + 1) for s in ("prompts", "judgments", "pairs")]
    for model_name, stage in files:
        if manifest := run.files.jsonl(model_name, stage).manifest:
            lines.append(f"| {model_name}/{stage}.jsonl | {manifest['rows']} | `{manifest['sha256']}` |")
    return "\n".join(lines)

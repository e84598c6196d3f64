"""The model card of an exported model: what it is, the run's own figures, and what it was made from."""

import json
from typing import Any

from selfreward_jax import storage
from selfreward_jax.runs.run import Run


def card(run: Run, name: str, dtype: str) -> str:
    """README.md of the model `name` of a run, with the front matter that the hub reads."""
    config = run.cfg
    started = config.model.init or "random weights"
    judge = f"the template `{config.judge.template}`, {config.judge.num_samples} votes an answer"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- self-rewarding
---

# {name}

A model of a self-rewarding run (arXiv 2401.10020), made with selfreward_jax: {_history(run, name)} The run
started from {started}. The judge has {judge}. The weights are stored as {dtype}.

## Figures

{_figures(run, name)}

They are of this run alone, on its own held-out prompts.

## Made from

{_hashes(run, name)}

## Settings

```json
{json.dumps(storage.read_json(run.workdir / "config.json"), indent=2, ensure_ascii=False)}
```
"""


def _history(run: Run, name: str) -> str:
    what = {"ift": "instructions", "eft": "judgments", "prompts": "the writing of prompts"}
    if name == "m0":
        return "its base."
    if name in ("sft", "m1"):
        sets = ("ift",) if name == "sft" else run.cfg.sft.sets
        return f"after supervised training on {', '.join(what[s] for s in sets)}."
    t = int(name[1:])
    way = (
        f"{run.cfg.dpo.loss} preference training" if run.cfg.dpo.dpo_weight else "supervised training on chosen answers"
    )
    whose = "preferences of its own" if run.cfg.judge.kind == "model" else "random preferences, a control experiment"
    return f"after {t - 1} round{'s' * (t > 2)} of {way} on {whose}."


def _figures(run: Run, name: str) -> str:
    found = storage.read_checksummed(run.workdir / name / "eval.json")
    if found is None:
        return "None: it was not measured."
    lines = ["| figure | value |", "|---|---|"]
    for part in ("oracle", "judge"):
        lines += [f"| {part} {k} | {v:.4g} |" for k, v in found.get(part, {}).items() if isinstance(v, int | float)]
    lines += [f"| {k} | {v:.4g} |" for k, v in found.items() if isinstance(v, int | float)]
    versus: dict[str, Any] = (storage.read_json(run.workdir / "summary.json") or {}).get("models", {}).get(name, {})
    for other, v in versus.get("versus", {}).items():
        lines.append(f"| against {other}: win, tie, lose | {v['win']:.3f}, {v['tie']:.3f}, {v['lose']:.3f} |")
    return "\n".join(lines)


def _hashes(run: Run, name: str) -> str:
    lines = ["| file | rows | sha256 |", "|---|---|---|"]
    files = [("seed", s) for s in ("ift", "eft", "documents")]
    rounds = 0 if name == "sft" else int(name[1:])
    files += [(f"m{t}", s) for t in range(2, rounds + 1) for s in ("prompts", "judgments", "pairs")]
    for owner, stage in files:
        if manifest := run.jsonl(owner, stage).manifest:
            lines.append(f"| {owner}/{stage}.jsonl | {manifest['rows']} | `{manifest['sha256']}` |")
    return "\n".join(lines)

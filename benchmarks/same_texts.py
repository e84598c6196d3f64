"""Does this machine's accelerator draw the same texts as its CPU? The same run on both, to M1's responses.

    python -m benchmarks.same_texts HERE CPU [--config=iter2]

M1 is trained on the accelerator alone. Both then answer the same prompts with it. Prints how many responses are the
same, and for the others the first character that differs.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

_CONFIG = flags.DEFINE_string("config", "iter2", "Configuration of the run.")
ANSWERS = "m1/eval_answers.jsonl"


def run(workdir: Path, platform: str) -> None:
    """A run to M1, or the rest of it, on a platform as JAX names it; "" is what JAX chooses."""
    command = [sys.executable, "-m", "selfreward_jax", "run", _CONFIG.value, f"--workdir={workdir}"]
    environment = os.environ | ({"JAX_PLATFORMS": platform} if platform else {})
    subprocess.run([*command, "--config.iterations=1"], env=environment, check=True, stdout=sys.stderr)


def responses(workdir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each response with the id of its prompt and its number."""
    for line in (workdir / ANSWERS).read_text().splitlines():
        row = json.loads(line)
        for number, response in enumerate(row["responses"]):
            yield f"{row['id']}/{number}", response


def first_difference(a: str, b: str) -> int:
    """The first character that differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def main(argv: list[str]) -> None:
    """Runs and compares."""
    here, cpu = map(Path, argv[1:3])
    run(here, "")
    shutil.copytree(here, cpu, dirs_exist_ok=True)
    for path in cpu.glob("m1/eval*"):  # the CPU makes them again
        path.unlink()
    run(cpu, "cpu")
    theirs, same, total = dict(responses(cpu)), 0, 0
    for name, response in responses(here):
        total += 1
        if response["text"] == theirs[name]["text"]:
            same += 1
            continue
        at = first_difference(response["text"], theirs[name]["text"])
        print(f"{name}: differs from character {at} of {len(response['text'])} on")
    print(f"{same} of {total} responses are the same")


if __name__ == "__main__":
    app.run(main)

"""How much memory does loading a Hugging Face folder take, beside transformers?

    python -m benchmarks.load [--shapes=6.5m,gemma3_270m] [--peer_python=PYTHON]

Writes a random model in float32 and loads it in a new process of each side. Prints a JSON line per model: the gigabytes
of its weights, and for each side the peak of the process before and after. The peak counts the pages of mapped files
that were read, which the kernel takes back when it needs memory.
"""

import json
from pathlib import Path

from absl import app

from benchmarks.side_by_side import SHAPES, start_workers


def main(_: list[str]) -> None:
    """Measures and prints."""
    for shape in SHAPES.value:
        with start_workers(("ours",)) as (writer, folder):
            case = {"shape": shape, "folder": str(Path(folder) / shape), "dtype": "float32"}
            writer.request(task="save", case=case)
            row: dict[str, object] = {"task": "load", "shape": shape}
            for side in ("ours", "theirs"):
                with start_workers((side,)) as (worker, _):
                    peaks = [worker.request(task="peak", case={})["bytes"]]
                    row["weights_gb"] = round(worker.request(task="load", case=case)["bytes"] / 1e9, 3)
                    peaks.append(worker.request(task="peak", case={})["bytes"])
                row[side] = [round(peak / 1e9, 3) for peak in peaks]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)

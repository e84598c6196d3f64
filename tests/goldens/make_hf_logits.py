"""Writes hf_logits.npz: what transformers computes for every family of tests/hf_folders.py, on the CPU in float32.

pip install torch transformers    # made with torch 2.13.0 (CPU) and transformers 5.23.0
python tests/goldens/make_hf_logits.py
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
import hf_folders


def main() -> None:
    """Computes and writes the logits of all families."""
    logits = {}
    for family in hf_folders.FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            path = hf_folders.write(Path(folder), family)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        for i, ids in enumerate(hf_folders.tokens()):
            with torch.no_grad():
                logits[f"{family}/{i}"] = model(torch.tensor(ids)[None]).logits[0].numpy()
        print(family, type(model).__name__, "largest logit", max(np.abs(logits[f"{family}/{i}"]).max() for i in (0, 1)))
    np.savez_compressed(Path(__file__).with_name("hf_logits.npz"), **logits)


if __name__ == "__main__":
    main()

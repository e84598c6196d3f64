"""Writes hf_story.json: transformers' greedy continuation of BOS by the stories model, 200 tokens.

python tests/goldens/make_hf_story.py FOLDER    # made with torch 2.13.0 (CPU) and transformers 5.23.0
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    """Decodes greedily, with transformers' own generate."""
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    out = model.generate(
        torch.tensor([[1]]), max_new_tokens=200, min_new_tokens=200, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    Path(__file__).with_name("hf_story.json").write_text(json.dumps(out[0, 1:].tolist()) + "\n")


if __name__ == "__main__":
    main()

"""Writes tokenizer_ids.npz: small tokenizers of tests/hard_strings.py, and what transformers makes of its hard strings.

pip install transformers sentencepiece    # made with transformers 5.24.0, tokenizers 0.23.3, sentencepiece 0.2.3
python tests/goldens/make_tokenizer_ids.py
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
import hard_strings

MISTRAL = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "mistral_v1.model"


def main() -> None:
    """Trains the tokenizers, and writes them with their ids."""
    made, texts = {}, hard_strings.texts()
    for kind in (*hard_strings.KINDS, *hard_strings.MODELS, "mistral"):
        with tempfile.TemporaryDirectory() as folder:
            if kind in hard_strings.KINDS:
                data = hard_strings.specification(kind).encode()
                path = hard_strings.write_folder(Path(folder), data.decode())
            elif kind == "mistral":  # a real vocabulary
                path = hard_strings.write_model_folder(Path(folder), "llama", MISTRAL.read_bytes())
                data = b""
            else:
                data = hard_strings.sentencepiece_model(kind)
                path = hard_strings.write_model_folder(Path(folder), kind, data)
            tokenizer = AutoTokenizer.from_pretrained(path)
            ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        made[f"{kind.removesuffix('_legacy')}/file"] = np.frombuffer(data, np.uint8)
        made[f"{kind}/ids"] = np.array([i for row in ids for i in row], np.int16)
        made[f"{kind}/lengths"] = np.array([len(row) for row in ids], np.int16)
        print(kind, type(tokenizer).__name__, len(tokenizer), "ids,", sum(map(len, ids)), "in", len(texts), "texts")
    np.savez_compressed(Path(__file__).with_name("tokenizer_ids.npz"), **made)


if __name__ == "__main__":
    main()

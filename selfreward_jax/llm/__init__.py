"""The model, its tokenizer and its chat format."""

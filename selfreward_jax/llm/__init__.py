"""The model, its tokenizer, its chat format."""

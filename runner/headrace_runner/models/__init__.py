"""A model's files in memory: weights, tokenizer, chat template."""

"""Weights, tokenizer, prompts, packed attention, and log-prob and entropy per token."""

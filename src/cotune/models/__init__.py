"""Causal language models: the only folder that knows transformers and PEFT."""

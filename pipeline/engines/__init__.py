"""Engines: prompts in, samples out. `vllm` and `scripted` are two; both pass one contract test."""

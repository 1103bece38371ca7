"""Engines: prompts in, samples out. `vllm`, `http` (a server) and `scripted`; all pass one contract test."""

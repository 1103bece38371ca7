"""Inference: prompts in, samples out, by engines that run under Ray Data.

`base` says what an engine is. `vllm` runs a model in this process (`vllm_stepper` steps it for several callers),
`openai_server` asks a model at a server (`server_check` tries it before a run), and `scripted` answers from a function.
`pool` streams rows through many engines and restarts those that die; `crash_log` remembers what they had.
`special_tokens` keeps articles from writing special tokens, and `sampling` asks a policy for summaries.
"""

"""Inference: engines turn prompts into samples, and run under Ray Data.

- `base` defines the engine interface: `Sample`, `Reply`, `Engine`.
- `vllm` runs a model in this process; `vllm_stepper` steps it for several callers at once.
- `openai_server` sends prompts to a server; `server_check` tests the server before a run.
- `scripted` answers from a Python function.
- `pool` streams rows through many engines; `actors` holds the engines, which stay from stage to stage.
- `special_tokens` stops quoted text from producing special tokens.
- `sampling` samples summaries from a policy.
"""

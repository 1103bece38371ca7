"""Sends prompts to a server that speaks OpenAI's API.

`openai_server` is the engine, and `batch_server` the one for a batch API. `server_check` tests a server before a run.
Whether a model is served is a setting: `judge.served`, or `compare.NAME`.
"""

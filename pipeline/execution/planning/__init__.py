"""Estimates a run before it starts: rows, prompts, tokens, time, cost and memory, from settings and earlier records.

`estimator` walks the run, `stage_counts` counts rows and tokens, `prompt_lengths` tokenizes a sample of the articles,
`throughput` reads rates from the records of earlier runs, and `gpu_memory` adds up the memory of models.
`articles_left` says which articles will be skipped, and `token_habits` which token limits cut off summaries.
`engine_arguments` checks arguments for vLLM.
"""

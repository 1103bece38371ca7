"""Estimates before a run: rows, prompts, tokens, time, cost and memory of each stage, from settings and old records.

`estimator` walks the run, `stage_counts` counts rows and tokens, `prompt_lengths` tokenizes a sample of the articles,
`throughput` reads rates from the records of earlier runs, and `gpu_memory` adds up what models take.
"""

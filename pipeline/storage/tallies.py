"""Names of the counts that tables and inference engines add to a stage's record.

A row counts things in its column `tally`, by name. A finished table adds these counts up over its rows and writes the
sums into `tally` of its `record.json`. Records lie on users' disks, so these strings never change. The judge's counts
and those of pairs have their names in `judging/tallies.py`.
"""

# Of requests to an engine (`inference/base.py`, `inference/openai_server.py`):
TOKENS_IN = "tokens_in"  # prompt tokens
TOKENS_CACHED = "tokens_cached"  # prompt tokens that the prefix cache had
TOKENS_OUT = "tokens_out"  # sampled tokens
RETRIES = "retries"  # requests that were sent to a server again
MICRO_USD = "micro_usd"  # what a server charges, in millionths of a US dollar

# Of the engines themselves (`inference/pool.py`), in milliseconds:
ENGINE_STARTS = "engine starts"
ENGINE_START_MS = "engine start ms"  # added up over all starts
ENGINE_MS = "engine ms"  # time in which an engine had work, without its start

SUMMARIES = "summaries"  # summaries that a row got
MERGED = "merged"  # rows that were merged into this one

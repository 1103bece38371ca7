"""Compares whole rounds: with a plain script that does the same work, and with Ray Data alone.

`python -m bench.round` times `rondo run` and the script of `plain_script.py`. `row_overhead.py` leaves the models out,
and measures what Rondo itself adds to each row.
"""

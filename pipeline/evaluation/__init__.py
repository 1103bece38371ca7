"""Evaluates rounds: win rates with intervals, the judge card, the champion, and the report.

`comparison` compares the held-out summaries of two writers, and `win_rate` has the statistics for it. `kl` estimates
how far a policy is from the base, and `judge_card` shows how far the judge can be trusted. `stopping` has the rules of
the setting `stop`. `round_result` is what one round hands to the next, and `champion` assesses a round. `report` writes
metrics.json, report.md and report.png.
"""

"""What a round came to: win rates with intervals, the judge's card, the champion, the report.

`win_rate` has the statistics, `comparison` compares two writers, `kl` estimates how far a policy is from the base, and
`judge_card` how far the judge can be trusted. `stopping` has a rule for each setting of `stop`. `round_result` is what
a round hands to the next, and `champion` assesses a round. `report` writes metrics.json, report.md and report.png.
"""

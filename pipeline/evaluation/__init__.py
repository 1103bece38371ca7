"""Evaluates rounds: win rates with intervals, the judge card, the champion, benchmarks, and the report.

`comparison` compares the held-out summaries of two writers, and `win_rate` has the statistics for it. `judge_card`
shows how far the judge can be trusted. `stopping` has the rules of the setting `stop`, and the KL from the base.
`round_result` is what one round hands to the next, and `champion` assesses a round. `benchmark` measures what a policy
has forgotten. `report` writes metrics.json, report.md, report.png and report.html.
"""

"""The report of a run, written again after every round.

`metrics` collects the figures for metrics.json, `render` makes tables for the terminal and report.md (`report.md.j2`),
`plot` draws report.png, and `examples` chooses articles that show what changed.
"""

"""Writes the report of a run, again after every round.

`metrics` collects the figures for metrics.json, and `tables` puts them into tables. `render` writes report.md from the
template `report.md.j2`. `plot` draws report.png, `page` makes report.html, `examples` chooses articles that show what
changed, and `looks` counts how often the test articles were looked at.
`tracked` sends figures, samples and the report to W&B and MLflow.
"""

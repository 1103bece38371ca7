"""Carrying a run out: what is to be made, by which recipe, with which resources, under Ray.

`dry_run` finds what is made, stale or missing, and `runner` makes it. `recipe` says what decides a result,
`resources` what stages are given, `ray_cluster` starts or joins Ray, and `progress` shows how far it is. `planning`
estimates tokens, time and memory before anything starts. `align` trains on pairs from elsewhere.
"""

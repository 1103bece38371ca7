"""Executes a run: decides which artifacts must be made, and makes them with Ray.

`executor` decides whether an artifact is reused, made or refused. `dry_run` makes nothing, and `runner` makes
artifacts. `recipe` describes what a result depends on, and `resources` builds the engines and other resources of
stages. `ray_cluster` starts or joins Ray, and `progress` shows the progress. `preflight` checks a run before Ray
starts, and `planning` estimates its tokens, time and memory. `align` trains on pairs that were made elsewhere.
"""

"""Measures what a policy has forgotten: benchmarks of lm-evaluation-harness, the base against every round.

`models` finds the models of a run, and `harness` runs a task on a model; only it imports lm_eval, which is an optional
package. `results` keeps the figures of each document, one folder for each model and task. `comparison` turns them into
paired differences with intervals, and `table` shows these. `tasks` has two tasks that need no network.
"""

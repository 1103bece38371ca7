"""Direct preference optimization on article trees: pure torch, but for `worker.py`, which is the Ray Train job.

`rows` reads what to learn from, `plan` says which pairs make which step, `tree` lays them out, `logps` scores them,
`losses` judges the scores, `weights` are model folders, `optimizer`, `sharding` and `checkpoint` are what they say,
and `loop` is the training run. Left out: how the pairs were made, and where the reference log-probabilities come from.
"""

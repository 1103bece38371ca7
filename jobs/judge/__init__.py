"""The commands about judges: `rondo judge-card` and `rondo judge-eval`.

`card` tries a judge without a policy and shows how far its scores can be trusted. `evaluate` compares its scores with
what people think (`ratings`), by the figures of `agreement` and `correlation`. Both leave the run folder's other
artifacts as they are.
"""

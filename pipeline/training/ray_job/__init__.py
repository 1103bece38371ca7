"""Runs DPO training on Ray Train workers, on one or many, on CPUs or GPUs, and resumes it after a crash.

`driver` starts a Ray Train job, which stays from training to training, and gives it trainings. `board` is the actor
between the driver and the workers. `worker` is what each worker runs, `training` is its share of one training, and
`checkpoints` keeps checkpoints where all nodes can read them. Reference log-probabilities are computed in
`stages/references.py`, and the trained policy is judged in `stages/scores.py`.
"""

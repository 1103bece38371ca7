"""DPO training on article trees, in plain torch. Only `ray_job` imports Ray.

`ray_job` runs the training on Ray Train workers and resumes it; `loop` runs one worker's share of it. `losses` has the
preference losses under TRL's names, and adds them up; `optimizer` has AdamW on float32 master weights, `metrics`
computes the metrics of a step and of a run, and `checkpoint` writes and reads checkpoints, from which a run resumes.
`consistency` checks, before training, that all ways to score a completion agree. `tracking` sends metrics to
TensorBoard, W&B and MLflow. `batches` turns rows with pairs into packed rows of tokens, and `modeling` loads, scores,
shards and saves the model.
"""

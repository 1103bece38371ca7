"""DPO on article trees, in plain torch: only `ray_job` knows Ray.

`ray_job` runs the training on Ray Train workers and resumes it; `loop` is one worker's share of the run. `losses` has
the preference losses by TRL's names, `optimizer` AdamW on float32 masters, `metrics` what is measured, `checkpoint`
what a resumed run reads. `consistency` checks before training that every way to score a completion agrees. `tracking`
sends metrics to TensorBoard, W&B and MLflow. `batches` turns rows of pairs into packed rows of tokens, and `modeling`
loads, scores, shards and saves the model.
"""

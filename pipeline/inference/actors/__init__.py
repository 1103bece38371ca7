"""Ray actors that hold engines and live through a run.

- `engine_actor` holds one engine and runs the batches of whichever stage has borrowed it.
- `worker_group` runs the work of an engine that needs several actors.
- `residents` starts these actors, decides how many fit beside each other, and ends them.
- `crash_log` records the rows that an engine was working on when it died.
"""

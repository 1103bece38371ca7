"""The model that is trained: loaded, scored on article trees, sharded, saved.

`loading` reads and writes model folders and names weights by digest; `lora` is the adapter part of that. `logprobs`
gives the log-probabilities of completions, with `tree_attention`, `last_layer` and `lm_head`. `fsdp` spreads a policy
over workers.
"""

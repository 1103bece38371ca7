"""Loads, scores, shards and saves the model that is trained.

`loading` reads and writes model folders, and computes the digest that names their weights. `lora` handles adapters.
`logprobs` computes the log-probabilities of completions, with the help of `tree_attention`, `last_layer` and `lm_head`.
`fsdp` shards a policy over workers. `frozen` scores under a policy that is not trained, whole or sharded.
"""

# Largest number of logits that the LM head holds at one time: 128 MiB of float32. It is here, in a module that needs no
# torch, because the dry run estimates memory from it.
LOGITS_PER_CHUNK = 1 << 25

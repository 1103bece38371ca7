"""Loads, scores, shards and saves the model that is trained.

`loading` reads and writes model folders, and computes the digest that names their weights. `lora` handles adapters.
`logprobs` computes the log-probabilities of completions, with the help of `tree_attention`, `recurrent_layers`,
`last_layer`, `lm_head` and `products`.
`fsdp` shards a policy over workers. `frozen` scores under a policy that is not trained, whole or sharded.
"""

# These are here, in a module that needs no torch, because the dry run estimates memory from them.
# Largest number of logits that the LM head keeps at one time: 128 MiB of float32. On a GPU it also computes this many.
MOST_LOGITS = 1 << 25
# The number that it computes at one time on a CPU: 16 MiB, which stay in its cache.
LOGITS_IN_CACHE = 1 << 22
# Largest number of attention probabilities that all layers together keep for backward on a CPU: 128 MiB of float32.
MOST_KEPT_SCORES = 1 << 25

"""Finds model folders by path, URI or hub name, checks and fetches them. No weights are loaded.

`hub` finds and fetches a model. `validation` checks that a folder holds a complete and safe model, and `adapters` that
an adapter is one that Rondo can use. `node_cache` keeps one copy of a remote model on each node. `shapes` reads sizes
from the headers of the weights. `chat_template` writes conversations as a tokenizer has them. `engine_check` holds the
log-probabilities with which an engine proves a trained policy's weights. `card` writes model cards.
"""

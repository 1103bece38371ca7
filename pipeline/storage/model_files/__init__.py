"""Model folders: found by path, URI or hub name, checked, and fetched, without loading any weights.

`hub` says where a model is and fetches it. `validation` checks that a folder holds a whole, safe model. `node_cache`
keeps one copy on each node of a model that is elsewhere. `shapes` reads sizes from the headers of the weights.
"""

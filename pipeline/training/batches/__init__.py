"""From the rows of the `references` table to packed rows of tokens.

`dataset` reads the rows, `example` is what there is to learn from one article, `batching` decides which pairs make
which step and which worker computes what, and `article_tree` lays a prompt and its completions out in one row.
"""

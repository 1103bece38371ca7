"""Turns rows of the `references` table into packed rows of tokens.

`dataset` reads the rows. `example` holds what training needs of one article. `batching` decides which pairs make which
step, and which worker computes what. `article_tree` lays out a prompt and its completions in one row.
"""

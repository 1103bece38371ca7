"""Turns rows of the `references` table into packed rows of tokens.

`dataset` reads the rows and writes them to a file, which `node_file` shares among the workers of a node and
`example_table` maps. `example` holds the data of one article that training needs. `batching` divides pairs into steps,
and each step among workers. `article_tree` lays out a prompt and its completions in one row.
"""

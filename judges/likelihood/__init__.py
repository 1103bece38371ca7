"""The judge `likelihood`: a small LM scores summaries without writing anything.

`judge` makes the prompts and computes the value. `key_sentences` finds what matters in an article: sentences, and the
weight of each word. `restore` gives a summary back the capital letters and spacing that its article has.
"""

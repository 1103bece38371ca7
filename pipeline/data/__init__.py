"""Input data: files of rows, duplicates, and preference pairs as others write them.

`readers` yields the rows of a JSONL, JSON or Parquet file or a Hugging Face dataset. `dedup` tells which of many texts
came before, in little memory. `preference_formats` reads a row of TRL's, UltraFeedback's, Intel's or LLaMA-Factory's
columns as one preference pair, and `pair_tokenizer` makes token ids of it, as TRL does. `merge_rows` puts rows about
one article, by several writers, into one row.
"""

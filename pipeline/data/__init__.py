"""Input data: readers, deduplication, and preference pairs in other people's formats.

- `readers` reads rows from a JSONL, JSON or Parquet file, or from a Hugging Face dataset.
- `dedup` finds repeated texts in little memory.
- `preference_formats` reads a row in any of the public formats as a preference pair.
- `messages` reads the messages of any data set as dicts with `role` and `content`.
- `pair_tokenizer` turns a pair into token ids, as TRL does.
- `merge_rows` merges rows about one article, by several writers, into one row.
"""

"""Input data: readers, deduplication, and preference pairs in other people's formats.

- `readers` reads rows from a JSONL, JSON or Parquet file, or from a Hugging Face dataset.
- `dedup` finds repeated texts in little memory.
- `preference_formats` reads a row in the format of TRL, UltraFeedback, Intel or LLaMA-Factory as a preference pair.
- `pair_tokenizer` turns a pair into token ids, as TRL does.
- `merge_rows` merges rows about one article, by several writers, into one row.
"""

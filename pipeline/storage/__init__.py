"""A run folder on disk: what is in it, how it is written, and when it is finished.

`files` opens, reads and replaces files by path or URI. `lock` lets one driver write at a time. `ledger` keeps artifacts
at readable addresses, each with a record that is written last. `schema` says what a row is. `parts` are the Parquet
files of a table, `tables` begins, resumes and finishes a table, and `streams` moves rows between tables with Ray Data.
`run_folder` keeps a run's settings in its folder, `provenance` says which code made a record, and `model_files` finds,
checks and fetches model folders.
"""

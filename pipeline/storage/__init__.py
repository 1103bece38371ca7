"""A run folder on disk: its contents, how they are written, and when an artifact is finished.

`files` opens, reads and replaces files by path or URI. `lock` lets one driver at a time write. `ledger` keeps artifacts
at readable addresses; each has a record, which is written last. `schema` defines the columns of a row. `parts` writes
and reads the Parquet files of a table. `tables` begins, resumes and finishes a table. `streams` moves rows between
tables with Ray Data. `run_folder` keeps a run's settings in its folder. `provenance` states which code made a record.
`model_files` finds, checks and fetches model folders.
"""

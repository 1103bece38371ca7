"""Tests of the line of a finished stage."""

from pipeline.execution.progress import start_seconds, summarize_record


def test_the_line_of_pairs_says_why_summaries_could_not_be_paired():
    unusable = {"unusable: cut off": 240, "unusable: too short": 12}
    record = {"in": 64, "kept": 9, "skipped": {"under two usable summaries": 51, "all ties": 4}, "seconds": 1.25}
    record["tally"] = {"train": 9, "pairs": 20, "summaries to pair": 384, **unusable}
    assert summarize_record(record) == (
        "    64 in       9 kept  55 skipped (under two usable summaries 51, all ties 4)  20 pairs  "
        "unusable summaries: cut off 240 of 384, too short 12  1.2s"
    )


def test_the_line_of_a_table_with_both_splits_counts_each():
    record = {"in": 260, "kept": 116, "skipped": {"over 800 words": 144}, "tally": {"train": 104, "eval": 12}}
    line = "   260 in     116 kept (104 train, 12 eval)  144 skipped (over 800 words 144)"
    assert summarize_record(record) == line


def test_the_line_of_summaries_counts_those_that_were_cut_off():
    tally = {"train": 4, "summaries": 32, "replies": 32, "replies cut off": 20, "tokens_out": 900}
    record = {"in": 4, "kept": 4, "skipped": {}, "tally": tally}
    assert summarize_record(record).endswith("4 kept  20 of 32 cut off")
    assert "cut off" not in summarize_record(record | {"tally": tally | {"replies cut off": 0}})
    assert "cut off" not in summarize_record(record | {"tally": {"summaries": 32}}), "of an older run"


def record(seconds, **tally):
    return {"seconds": seconds, "tally": {name.replace("_", " "): count for name, count in tally.items()}}


def test_replicas_start_together_and_a_load_counts_as_a_start():
    assert start_seconds(record(30.0, engine_ms=9, engine_starts=2, engine_start_ms=20_000)) == 10.0
    assert start_seconds(record(30.0, engine_ms=9, engine_loads=1, engine_start_ms=200)) == 0.2
    assert start_seconds(record(30.0, engine_ms=9, engine_starts=1, engine_loads=1, engine_start_ms=8200)) == 4.1
    assert start_seconds(record(5.0, engine_ms=9, engine_starts=1, engine_start_ms=8000)) == 5.0


def test_engines_that_stayed_need_no_start_and_older_records_do_not_say():
    assert start_seconds(record(30.0, engine_ms=9)) == 0.0
    assert start_seconds(record(30.0)) is None
    assert start_seconds({"seconds": 42.5, "training": {"seconds": 18.5}}) == 24.0
    assert start_seconds({"seconds": 10.0, "training": {"seconds": 18.5}}) == 0.0  # resumed: of all attempts


def test_the_line_splits_seconds_into_start_and_work():
    assert summarize_record({"seconds": 12.3, "start_seconds": 9.8}) == "12.3s (start 9.8s, work 2.5s)"
    assert summarize_record({"seconds": 95.0, "start_seconds": 0.0}) == "1m35s"

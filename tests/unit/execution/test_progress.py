"""Tests of the line of a finished stage."""

from pipeline.execution.progress import summarize_record


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

"""Merges rows about one article, by several writers, into one row, so that a round can train on all of them.

A table holds each article once, so summaries by another policy are added to the article's own row. Each added summary
names its writer. Its `logp` is removed, because it is the log-probability under its writer, not under this round's
policy. `stages/pairs.py` decides which rows are merged.
"""

from pipeline.storage.schema import Row


def mark_writer(row: Row) -> Row:
    """Name the writer in each summary that names none, and remove the summaries' `logp`."""
    marked = [
        summary | {"writer": summary.get("writer") or row["writer"], "logp": None} for summary in row["summaries"]
    ]
    return row | {"summaries": marked}


def merge_rows(row: Row, other: Row) -> Row:
    """Append the summaries of `other`, with their scores and pairs, to those of `row`.

    Raises:
        ValueError: the rows are about two articles, or the two policies were given different prompts.
    """
    for name in ("article_id", "prompt_ids"):
        if list(row[name]) != list(other[name]):
            raise ValueError(
                f"article {row['article_id']}: its {name} differs from that of the row to merge, of article "
                f"{other['article_id']}: both rows must be of one run, with one tokenizer and one instruction"
            )
    offset = len(row["summaries"])
    other_pairs = [
        pair | {"chosen": pair["chosen"] + offset, "rejected": pair["rejected"] + offset}
        for pair in other.get("pairs") or []
    ]
    return row | {
        "summaries": [*row["summaries"], *mark_writer(other)["summaries"]],
        "scores": [*row["scores"], *other["scores"]],
        "pairs": [*(row.get("pairs") or []), *other_pairs],
    }

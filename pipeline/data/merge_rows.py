"""An article's row with summaries of other writers in it: what a round learns from beside its own.

A table holds each article once, so what another policy wrote about it joins the article's row. It is marked: each such
summary names its writer, and has no `logp`, which was that writer's and not this round's. Left out: which rows are
mixed (`replay.py`, `pairs.py`).
"""

from pipeline.storage.schema import Row


def mark_writer(row: Row) -> Row:
    """The row with each summary marked as its writer's."""
    marked = [
        summary | {"writer": summary.get("writer") or row["writer"], "logp": None} for summary in row["summaries"]
    ]
    return row | {"summaries": marked}


def merge_rows(row: Row, other: Row) -> Row:
    """`row`, and after its own the summaries of `other`, a row of the same article, with their scores and pairs.

    Raises:
        ValueError: they are of two articles, or the two policies were asked with different prompts.
    """
    for name in ("article_id", "prompt_ids"):
        if list(row[name]) != list(other[name]):
            raise ValueError(
                f"article {row['article_id']}: its {name} is not that of the row to join, of {other['article_id']}: "
                "both must be of one run, with one tokenizer and one instruction"
            )
    shift = len(row["summaries"])
    moved = [
        pair | {"chosen": pair["chosen"] + shift, "rejected": pair["rejected"] + shift}
        for pair in other.get("pairs") or []
    ]
    return row | {
        "summaries": [*row["summaries"], *mark_writer(other)["summaries"]],
        "scores": [*row["scores"], *other["scores"]],
        "pairs": [*(row.get("pairs") or []), *moved],
    }

"""Puts together the folder of a run's data for other people: pairs and scores as Parquet, and a dataset card.

The pairs have TRL's columns first, so that `load_dataset` and a trainer need nothing else, and then what the judge
thought of both answers. The scores have every summary, also those that are in no pair.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.sharing.export import (
    find_pair_tables,
    load_run_tokenizer,
    read_rounds,
    to_pairs,
    write_parquet,
)
from jobs.sharing.formats import Form, to_row
from pipeline.config import Config, UserError
from pipeline.config.messages import markdown_environment
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.model_files.card import CARD, MARK
from pipeline.storage.model_files.card.public_names import PublicNames, public_names
from pipeline.storage.model_files.card.writing import answer_noun, data_set_of, describe_judges
from pipeline.storage.run_folder import round_folder, round_number
from pipeline.storage.schema import COLUMNS, Row
from pipeline.storage.tables import iterate_rows

_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
_SCORE = COLUMNS["scores"].value_type
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_data(ledger: Ledger, out: Path, repo: str, number: int | None, base: str | None) -> str:
    """Write the folder of a run's pairs and scores.

    Args:
        ledger: the run folder.
        out: the folder, which exists and is empty.
        repo: OWNER/NAME on the hub, for the card.
        number: the only round; None: all rounds.
        base: the base policy's name on the hub; None: as the run has it.

    Returns:
        what the folder holds, in a few words.

    Raises:
        UserError: the folder holds no run of rounds, or no pairs of that round.
    """
    config = read_rounds(ledger)
    names = public_names(ledger, config, {config.policy.model: base} if base else None)
    writers = _name_writers(ledger)
    tables = find_pair_tables(ledger, number)
    pairs = _write_pairs(ledger, config, tables, out, writers)
    if not pairs:
        raise UserError(f"{ledger.root} has no pairs to push: no summary was preferred yet")
    scored = 0
    for round_ in tables:
        if table := ledger.find(f"{round_folder(round_)}/scores"):
            scored += _write(_score_rows(ledger, table, round_, writers), out / "scores", round_, _score_schema())
    card = _write_card(config, names, repo, tuple(tables), pairs, scored)
    (out / CARD).write_text(card, encoding="utf-8")
    return f"{pairs:,} pairs and {scored:,} scored {answer_noun(config)[1]}"


def _write_pairs(
    ledger: Ledger, config: Config, tables: dict[int, Artifact], out: Path, writers: Callable[[Any], str | None]
) -> int:
    tokenizer = load_run_tokenizer(config, ledger)
    text = _MESSAGES if tokenizer.has_chat_template else pa.string()
    schema = pa.schema(
        {"prompt": text, "chosen": text, "rejected": text}
        | ({"chat_template_kwargs": pa.struct({"enable_thinking": pa.bool_()})} if tokenizer.knows_thinking else {})
        | {
            "round": pa.int32(),
            "article_id": pa.string(),
            "reason": pa.string(),
            "weight": pa.float32(),
            "chosen_writer": pa.string(),
            "rejected_writer": pa.string(),
            "questions": COLUMNS["questions"],
            "chosen_score": _SCORE,
            "rejected_score": _SCORE,
        }
    )

    def rows(table: Artifact, round_: int) -> Iterator[Row]:
        for row in iterate_rows(ledger, table):
            for place, (pair, _) in zip(row["pairs"], to_pairs(row, config.policy, tokenizer), strict=True):
                beside = {"round": round_, "article_id": row["article_id"], "questions": row.get("questions")}
                for side in ("chosen", "rejected"):
                    summary = row["summaries"][place[side]]
                    beside[f"{side}_writer"] = writers(summary.get("writer") or row.get("writer"))
                    beside[f"{side}_score"] = (row.get("scores") or [None] * len(row["summaries"]))[place[side]]
                yield to_row(pair, Form.TRL) | beside | {"reason": place.get("reason"), "weight": place.get("weight")}

    return sum(_write(rows(table, round_), out / "pairs", round_, schema) for round_, table in tables.items())


def _score_schema() -> pa.Schema:
    return pa.schema(
        {
            "round": pa.int32(),
            "article_id": pa.string(),
            "article": pa.string(),
            "summary": pa.string(),
            "writer": pa.string(),
            "finish_reason": pa.string(),
            "questions": COLUMNS["questions"],
            "score": _SCORE,
        }
    )


def _score_rows(ledger: Ledger, table: Artifact, round_: int, writers: Callable[[Any], str | None]) -> Iterator[Row]:
    for row in iterate_rows(ledger, table):
        for summary, score in zip(row["summaries"], row["scores"], strict=True):
            yield {
                "round": round_,
                "article_id": row["article_id"],
                "article": row["article"],
                "summary": summary["text"],
                "writer": writers(summary.get("writer") or row.get("writer")),
                "finish_reason": summary["finish_reason"],
                "questions": row.get("questions"),
                "score": score,
            }


def _write(rows: Iterable[Row], folder: Path, round_: int, schema: pa.Schema) -> int:
    folder.mkdir(exist_ok=True)
    return write_parquet(rows, str(folder / f"{round_folder(round_)}.parquet"), schema)


def _name_writers(ledger: Ledger) -> Callable[[Any], str | None]:
    """A function that turns the build id of a policy into `base` or `round-01`."""
    folders = {
        artifact.build: artifact.address.partition("/")[0]
        for artifact in ledger.artifacts()
        if artifact.address.endswith("/policy")
    }
    return lambda build: "base" if round_number(folders.get(build, "")) == 0 else folders.get(build)


def _write_card(config: Config, names: PublicNames, repo: str, rounds: tuple[int, ...], pairs: int, scored: int) -> str:
    from huggingface_hub import DatasetCard, DatasetCardData

    one, many = answer_noun(config)
    source = data_set_of(config)
    text = (
        markdown_environment(Path(__file__).parent, names.hide)
        .get_template("dataset_card.md.j2")
        .render(
            mark=MARK,
            title=repo.partition("/")[2],
            repo=repo,
            config=config,
            base=names.name(config.policy.model),
            base_is_local=names.is_local(config.policy.model),
            source=source,
            articles=names.name(config.articles.path),
            rounds=rounds,
            pairs=pairs,
            scored=scored,
            judges=describe_judges(config)[: 1 + len(config.judge.members)],
            asks_questions=config.judge.kind in ("mcq", "cloze"),
            one=one,
            many=many,
        )
    )
    configs = [{"config_name": "pairs", "data_files": "pairs/*.parquet", "default": True}]
    configs += [{"config_name": "scores", "data_files": "scores/*.parquet"}] if scored else []
    data = DatasetCardData(
        tags=["rondo", "preference", "dpo", "trl", "synthetic"],
        task_categories=["text-generation"],
        size_categories=next((name for limit, name in _SIZES if pairs < limit), "n>1M"),
        source_datasets=[source] if source else None,
        configs=configs,
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{names.hide(text)}"))

"""`rondo export`: writes a run's pairs as a file for other tools."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from jobs.sharing.formats import ExportedPair, Form, dataset_info, merge_dataset_info, read_form, to_row
from pipeline.config import Alignment, Config, UserError
from pipeline.config.messages import one_line
from pipeline.config.run import PolicySettings
from pipeline.data.pair_tokenizer import PairIds, PairTokenizer, load_pair_tokenizer
from pipeline.data.preference_formats import Preference
from pipeline.inference.sampling import fill_article, instruction_prompt
from pipeline.inference.special_tokens import break_special_tokens, special_tokens_of
from pipeline.storage.files import atomic_writer, open_location
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.model_files.card.public_names import public_names
from pipeline.storage.run_folder import read_settings, round_folder, round_number
from pipeline.storage.schema import Row
from pipeline.storage.tables import iterate_rows

_ROWS_PER_GROUP = 1024  # of a Parquet file
# The endings that a form may have. A .json file of TRL's has one line for each pair, as it always had here.
_ENDINGS = dict.fromkeys(Form, (".jsonl", ".json", ".parquet")) | {Form.ARGILLA: (".json",)}


def export(folder: str, out: str, number: int | None, form: str = Form.TRL) -> None:
    """Export the pairs of a run. Print their number, and how many of their texts give the sampled token ids again.

    Raises:
        UserError: there is no such form, the folder holds no run of rounds, or no pairs.
    """
    read, ledger = read_form(form), Ledger(folder)
    exported = export_pairs(read_rounds(ledger), ledger, out, number, read)
    rounds = f"round{'s' * (len(exported.rounds) > 1)} {', '.join(map(str, exported.rounds))}"
    print(f"{out}: {exported.pairs:,} pairs of {rounds}")
    if exported.info:
        print(f"{exported.info}: says what is in it, for LLaMA-Factory")
    print(f"Tokenized again, the text of {exported.same_ids:,} of them gives the token ids that were sampled.")


def read_rounds(ledger: Ledger) -> Config:
    """The settings of a run of rounds. Raises UserError if the folder has none."""
    config = read_settings(ledger)
    if isinstance(config, Alignment):
        raise UserError(f"{ledger.root} was trained on pairs made elsewhere: they are in {config.pairs}")
    return config


def load_run_tokenizer(config: Config, ledger: Ledger) -> PairTokenizer:
    """The tokenizer of a run's policy, also where its base is not at hand: trained policies have it in their folders.

    Raises:
        UserError: there is neither the base nor a trained policy.
    """
    try:
        return load_pair_tokenizer(config.policy.model)
    except Exception as error:  # no such folder, offline, gated: a dozen error classes with one meaning
        reason = one_line(error, limit=200)
    trained = (each for each in ledger.artifacts() if "training" in each.record and each.address.endswith("/policy"))
    if (policy := next(trained, None)) is None:
        raise UserError(
            f"policy.model is {config.policy.model!r}, which is not here ({reason}), and {ledger.root} has no trained "
            "policy yet: start the command where the run was started, so that the path is right"
        )
    return load_pair_tokenizer(policy.uri)


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        rounds: the numbers of the rounds.
        pairs: the number of pairs.
        same_ids: pairs whose text, tokenized again, gives the token ids that were sampled.
        info: the location of LLaMA-Factory's dataset_info.json; None for other forms.
    """

    rounds: tuple[int, ...]
    pairs: int
    same_ids: int
    info: str | None = None


def export_pairs(
    config: Config, ledger: Ledger, out: str, number: int | None = None, form: Form = Form.TRL
) -> Exported:
    """Write pairs as JSONL, JSON or Parquet, by the ending of the file. `rondo train` reads each of them back.

    If the chat template knows `enable_thinking`, a row also has chat_template_kwargs, which turn thinking off: a
    summary is the answer only, without the thought that a policy with `policy.thinking` sampled before it. Text that is
    tokenized again may give other ids than the sampled ones, so the result counts how often it gives the same ids.

    Args:
        config: the run's settings, for the policy's tokenizer and instruction.
        out: path or URI of the file; an existing file is replaced.
        number: the number of the round to export; None: all rounds, in order.
        form: the form of the rows.

    Raises:
        UserError: there is no such round or no pair, the file cannot be written, its name does not fit the form, or
            the form cannot hold the pairs.
    """
    if not out.endswith(_ENDINGS[form]):
        raise UserError(
            f"--out is {out!r}: it should be the name of a JSONL file, such as pairs.jsonl, or end in .json or .parquet"
            if form is not Form.ARGILLA
            else f"--out is {out!r}: Argilla reads its records from one JSON list, so it should end in .json"
        )
    pair_tables = find_pair_tables(ledger, number)
    tokenizer = load_run_tokenizer(config, ledger)
    counts = {"pairs": 0, "same_ids": 0}

    def rows() -> Iterator[Row]:
        for pair, has_same_ids in read_pairs(config, ledger, pair_tables, tokenizer):
            counts["pairs"], counts["same_ids"] = counts["pairs"] + 1, counts["same_ids"] + has_same_ids
            yield to_row(pair, form)

    stream = rows()
    if (first := next(stream, None)) is None:
        raise UserError(f"{ledger.root} has no pairs to export: no summary was preferred yet")
    with _open_output(out) as file:
        _write(chain([first], stream), file, out, as_list=form is Form.ARGILLA)
    info = _write_dataset_info(out, first, form)
    return Exported(tuple(pair_tables), counts["pairs"], counts["same_ids"], info)


def _write(rows: Iterable[Row], file: Any, out: str, as_list: bool) -> None:
    if out.endswith(".parquet"):
        first = next(iter(rows := iter(rows)))
        write_parquet(chain([first], rows), file, infer_schema(first))
        return
    separator = b",\n" if as_list else b"\n"
    file.write(b"[\n" if as_list else b"")
    for place, row in enumerate(rows):
        file.write((separator if place else b"") + json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
    file.write(b"\n]\n" if as_list else b"\n")


def write_parquet(rows: Iterable[Row], file: Any, schema: pa.Schema) -> int:
    """Write rows in row groups. Returns their number."""
    rows, count = iter(rows), 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def infer_schema(row: Row) -> pa.Schema:
    """The types of an exported row. A score that is null is still a number."""
    inferred = pa.Table.from_pylist([row]).schema
    return pa.schema([pa.field(each.name, pa.float64()) if pa.types.is_null(each.type) else each for each in inferred])


@contextlib.contextmanager
def _open_output(out: str) -> Iterator[Any]:
    """Open a stream to the file. An error of the file system becomes an error about `--out`."""
    try:
        fs, path = open_location(out)
        if fs.get_file_info(path).type == pafs.FileType.Directory:
            raise IsADirectoryError("it is a folder")
        with atomic_writer(fs, path) as stream:
            yield stream
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"--out is {out!r}, which cannot be written: {error}") from None


def _write_dataset_info(out: str, row: Row, form: Form) -> str | None:
    """Add the file to the dataset_info.json beside it, if LLaMA-Factory is to read it. Returns where that is."""
    name = PurePosixPath(out).name
    if (entry := dataset_info(name, row, form)) is None:
        return None
    info = f"{out.removesuffix(name)}dataset_info.json"
    fs, path = open_location(info)
    text = None
    if fs.get_file_info(path).type == pafs.FileType.File:
        with fs.open_input_stream(path) as stream:
            text = stream.read().decode("utf-8", "replace")
    merged = merge_dataset_info(text, name.rpartition(".")[0], entry, info)
    with _open_output(info) as file:
        file.write(merged.encode())
    return info


def find_pair_tables(ledger: Ledger, number: int | None) -> dict[int, Artifact]:
    """The finished tables of pairs by the number of their round, in order.

    Args:
        ledger: the run folder.
        number: the only round that is wanted; None: all.

    Raises:
        UserError: there are no pairs of that round.
    """
    tables = {}
    for table in ledger.artifacts():
        folder, _, stage = table.address.rpartition("/")
        round_ = round_number(folder)
        if stage == "pairs" and round_ is not None:
            tables[round_] = table
    tables = dict(sorted(tables.items()))
    if number is None:
        return tables
    if number not in tables:
        available = f"pairs of round {', '.join(map(str, tables))}" if tables else "no pairs yet"
        raise UserError(f"{ledger.root} has no pairs of round {number}; it has {available}")
    return {number: tables[number]}


def read_pairs(
    config: Config, ledger: Ledger, pair_tables: dict[int, Artifact], tokenizer: PairTokenizer
) -> Iterator[tuple[ExportedPair, bool]]:
    """Each pair of the tables, with whether its text gives the sampled token ids again."""
    judge = public_names(ledger, config).hide(config.judge.name)
    for number, table in pair_tables.items():
        for row in iterate_rows(ledger, table):
            for place, (pair, has_same_ids) in enumerate(to_pairs(row, config.policy, tokenizer)):
                pair_id = f"{round_folder(number)}/{row['article_id']}/{place}"
                yield replace(pair, pair_id=pair_id, judge=judge), has_same_ids


def to_pairs(row: Row, policy: PolicySettings, tokenizer: PairTokenizer) -> Iterator[tuple[ExportedPair, bool]]:
    """The pairs of a row, as in `read_pairs`, without `pair_id` and `judge`."""
    # The prompt as the policy saw it: special tokens in the article were broken up.
    filled = fill_article(instruction_prompt(policy, max_tokens=0), row["article"])
    messages = list(break_special_tokens(filled, special_tokens_of(tokenizer.tokenizer)))
    has_messages = tokenizer.has_chat_template
    prompt = messages if has_messages else "\n".join(message["content"] for message in messages)
    template = {"enable_thinking": False} if tokenizer.knows_thinking else {}
    scores = [_score(score) for score in row.get("scores") or [None] * len(row["summaries"])]
    for indexes in row["pairs"]:
        better, worse = indexes["chosen"], indexes["rejected"]
        chosen, rejected = row["summaries"][better], row["summaries"][worse]
        pair = ExportedPair(
            prompt=prompt,
            chosen=chosen["text"],
            rejected=rejected["text"],
            template=template,
            reason=indexes.get("reason"),
            score_chosen=scores[better],
            score_rejected=scores[worse],
        )
        answers = [chosen["text"], rejected["text"]]
        texts = [[{"role": "assistant", "content": text}] for text in answers] if has_messages else answers
        ids = tokenizer.encode(Preference(prompt, texts[0], texts[1], template))
        yield pair, ids == PairIds(row["prompt_ids"], chosen["token_ids"], rejected["token_ids"])


def _score(score: Row | None) -> float | None:
    """What the judge thought of a summary. Older versions kept the number of right answers only."""
    if score is None:
        return None
    value = score.get("value")
    return value if value is not None else score.get("correct")

"""A run's pairs for others: JSONL in TRL's format, which `rondo train` reads back.

Text tokenized again need not be the ids that were sampled, so it is counted for how many pairs it is. Within a run
nothing is ever tokenized again. Left out: pairs that came from elsewhere, of which the file is there already.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from judges.base import Prompt, user
from pipeline.config import Config, UserError
from pipeline.data.pair_tokenizer import PairIds, PairTokenizer, load_pair_tokenizer
from pipeline.data.preference_formats import Preference
from pipeline.inference.sampling import fill_article
from pipeline.inference.special_tokens import break_special_tokens, special_tokens_of
from pipeline.storage import parts
from pipeline.storage.files import atomic_writer, open_location
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.schema import Row


@dataclass(frozen=True)
class Exported:
    """What was written: rounds by number, pairs, and of how many the text gives the sampled ids again."""

    rounds: tuple[int, ...]
    pairs: int
    same_ids: int


def export_pairs(config: Config, ledger: Ledger, out: str, number: int | None = None) -> Exported:
    """Write the pairs of a round, or of all rounds one after the other.

    A line has prompt, chosen and rejected: messages where the policy has a chat template, else text; and for a
    template that can think, chat_template_kwargs, since summaries are written without.

    Args:
        config: the run's settings: the policy's tokenizer, and its instruction, in which the article stands.
        out: path or URI of the file; it is replaced.
        number: of the round; None: all.

    Raises:
        UserError: no such round, or no pair in any; a file that cannot be written, or is not to be JSONL by its name.
    """
    if not out.endswith((".jsonl", ".json")):
        raise UserError(f"--out is {out!r}: it should be the name of a JSONL file, such as pairs.jsonl")
    found = _tables(ledger)
    if number is not None and number not in found:
        there = f"pairs of round {', '.join(map(str, found))}" if found else "no pairs yet"
        raise UserError(f"{ledger.root} has no pairs of round {number}; it has {there}")
    rounds = tuple(found) if number is None else (number,)
    tokens = load_pair_tokenizer(config.policy.model)
    pairs = same = 0
    with _written(out) as stream:
        for row in (row for number in rounds for row in _rows(ledger, found[number])):
            for line, is_same in _lines(row, config.policy.instruction, tokens):
                stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                pairs, same = pairs + 1, same + is_same
        if not pairs:
            raise UserError(f"{ledger.root} has no pairs to export: nothing was preferred yet")
    return Exported(rounds, pairs, same)


@contextlib.contextmanager
def _written(out: str) -> Iterator[Any]:
    """A stream to the file; what the file system has against it, it has against `--out`."""
    try:
        fs, path = open_location(out)
        if fs.get_file_info(path).type == pafs.FileType.Directory:
            raise IsADirectoryError("it is a folder")
        with atomic_writer(fs, path) as stream:
            yield stream
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"--out is {out!r}, which cannot be written: {error}") from None


def _tables(ledger: Ledger) -> dict[int, Artifact]:
    """The finished tables of pairs by their round's number, in order."""
    names = ledger.fs.get_file_info(pafs.FileSelector(ledger.base, allow_not_found=True))
    numbers = sorted(int(info.base_name[6:]) for info in names if re.fullmatch(r"round-\d+", info.base_name))
    tables = {number: ledger.find(f"round-{number:02d}/pairs") for number in numbers}
    return {number: table for number, table in tables.items() if table is not None}


def _rows(ledger: Ledger, table: Artifact) -> Iterator[Row]:
    for name in table.record["parts"]:
        yield from parts.read_part(f"{ledger.root}/{table.address}", name).to_pylist()


def _lines(row: Row, instruction: str, tokens: PairTokenizer) -> Iterator[tuple[dict[str, Any], bool]]:
    """The row's pairs, and of each whether its text gives the ids that were sampled."""
    # As the policy was asked: an article that names special tokens was broken up.
    prompt = fill_article(Prompt(user(instruction), max_tokens=0), row["article"])
    messages = list(break_special_tokens(prompt, special_tokens_of(tokens.tokenizer)))
    for pair in row["pairs"]:
        chosen, rejected = row["summaries"][pair["chosen"]], row["summaries"][pair["rejected"]]
        line: dict[str, Any]
        if tokens.chats:
            line = {"prompt": messages}
            line |= {
                name: [{"role": "assistant", "content": summary["text"]}]
                for name, summary in (("chosen", chosen), ("rejected", rejected))
            }
            if "enable_thinking" in str(tokens.tokenizer.chat_template):
                line["chat_template_kwargs"] = {"enable_thinking": False}
        else:
            line = {"prompt": messages[0]["content"], "chosen": chosen["text"], "rejected": rejected["text"]}
        kwargs = line.get("chat_template_kwargs", {})
        ids = tokens.of(Preference(line["prompt"], line["chosen"], line["rejected"], kwargs))
        sampled = PairIds(row["prompt_ids"], chosen["token_ids"], rejected["token_ids"])
        yield line, ids == sampled

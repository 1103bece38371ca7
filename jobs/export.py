"""`rondo export` and `rondo merge`: write a run's pairs, or a complete model, as files for other tools."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.config import Alignment, Config, UserError
from pipeline.config.run import PolicySettings
from pipeline.data.pair_tokenizer import PairIds, PairTokenizer, load_pair_tokenizer
from pipeline.data.preference_formats import Preference
from pipeline.inference.sampling import fill_article, instruction_prompt
from pipeline.inference.special_tokens import break_special_tokens, special_tokens_of
from pipeline.storage import parts
from pipeline.storage.files import atomic_writer, open_location
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.model_files import hub
from pipeline.storage.run_folder import read_settings, round_number
from pipeline.storage.schema import Row


def export(folder: str, out: str, number: int | None) -> None:
    """Export the pairs of a run. Print their number, and how many of their texts give the sampled token ids again.

    Raises:
        UserError: the folder holds no run of rounds, or no pairs.
    """
    ledger = Ledger(folder)
    config = read_settings(ledger)
    if isinstance(config, Alignment):
        raise UserError(f"{folder} was trained on pairs made elsewhere: they are in {config.pairs}")
    exported = export_pairs(config, ledger, out, number)
    rounds = f"round{'s' * (len(exported.rounds) > 1)} {', '.join(map(str, exported.rounds))}"
    print(f"{out}: {exported.pairs:,} pairs of {rounds}")
    print(f"Tokenized again, the text of {exported.same_ids:,} of them gives the token ids that were sampled.")


def merge(adapter: str, out: str) -> None:
    """Merge an adapter into its base, and write the complete model, in the dtype of the base.

    Raises:
        UserError: the adapter or its base is missing or cannot be used, or `out` exists.
    """
    hub.check_model("ADAPTER", adapter)
    if "://" in out or Path(out).exists():
        raise UserError(f"--out is {out!r}: it should be a path on this machine that does not exist yet")
    from pipeline.training.modeling import loading

    try:
        loading.merge_adapter(hub.fetch(adapter), out)
    except ValueError as error:
        raise UserError(f"ADAPTER is {adapter!r}: {error}") from None
    print(f"{out} holds the merged model")


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        rounds: the numbers of the rounds.
        pairs: the number of pairs.
        same_ids: pairs whose text, tokenized again, gives the token ids that were sampled.
    """

    rounds: tuple[int, ...]
    pairs: int
    same_ids: int


def export_pairs(config: Config, ledger: Ledger, out: str, number: int | None = None) -> Exported:
    """Write pairs as JSONL in TRL's format, which `rondo train` reads back.

    A line has prompt, chosen and rejected: messages if the policy has a chat template, else text. If the template knows
    `enable_thinking`, the line also has chat_template_kwargs, which turn thinking off: a summary is the answer only,
    without the thought that a policy with `policy.thinking` sampled before it. Text that is tokenized again may give
    other ids than the sampled ones, so the result counts how often it gives the same ids.

    Args:
        config: the run's settings, for the policy's tokenizer and instruction.
        out: path or URI of the file; an existing file is replaced.
        number: the number of the round to export; None: all rounds, in order.

    Raises:
        UserError: there is no such round or no pair, the file cannot be written, or its name is not that of a JSONL
            file.
    """
    if not out.endswith((".jsonl", ".json")):
        raise UserError(f"--out is {out!r}: it should be the name of a JSONL file, such as pairs.jsonl")
    pair_tables = _find_pair_tables(ledger)
    if number is not None and number not in pair_tables:
        available = f"pairs of round {', '.join(map(str, pair_tables))}" if pair_tables else "no pairs yet"
        raise UserError(f"{ledger.root} has no pairs of round {number}; it has {available}")
    rounds = tuple(pair_tables) if number is None else (number,)
    tokenizer = load_pair_tokenizer(config.policy.model)
    pairs = same_ids = 0
    with _open_output(out) as stream:
        for row in (row for number in rounds for row in _read_rows(ledger, pair_tables[number])):
            for line, has_same_ids in _to_lines(row, config.policy, tokenizer):
                stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                pairs, same_ids = pairs + 1, same_ids + has_same_ids
        if not pairs:
            raise UserError(f"{ledger.root} has no pairs to export: no summary was preferred yet")
    return Exported(rounds, pairs, same_ids)


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


def _find_pair_tables(ledger: Ledger) -> dict[int, Artifact]:
    """The finished tables of pairs by the number of their round, in order."""
    tables = {}
    for table in ledger.artifacts():
        folder, _, stage = table.address.rpartition("/")
        number = round_number(folder)
        if stage == "pairs" and number is not None:
            tables[number] = table
    return dict(sorted(tables.items()))


def _read_rows(ledger: Ledger, table: Artifact) -> Iterator[Row]:
    for name in table.record["parts"]:
        yield from parts.read_part(f"{ledger.root}/{table.address}", name).to_pylist()


def _to_lines(row: Row, policy: PolicySettings, tokenizer: PairTokenizer) -> Iterator[tuple[dict[str, Any], bool]]:
    """The row's pairs as lines of the file, each with whether its text gives the sampled token ids again."""
    # The prompt as the policy saw it: special tokens in the article were broken up.
    prompt = fill_article(instruction_prompt(policy, max_tokens=0), row["article"])
    messages = list(break_special_tokens(prompt, special_tokens_of(tokenizer.tokenizer)))
    for pair in row["pairs"]:
        chosen, rejected = row["summaries"][pair["chosen"]], row["summaries"][pair["rejected"]]
        line: dict[str, Any]
        if tokenizer.has_chat_template:
            line = {"prompt": messages, "chosen": _assistant(chosen["text"]), "rejected": _assistant(rejected["text"])}
            if "enable_thinking" in str(tokenizer.tokenizer.chat_template):
                line["chat_template_kwargs"] = {"enable_thinking": False}
        else:
            text = "\n".join(message["content"] for message in messages)
            line = {"prompt": text, "chosen": chosen["text"], "rejected": rejected["text"]}
        template = line.get("chat_template_kwargs", {})
        ids = tokenizer.encode(Preference(line["prompt"], line["chosen"], line["rejected"], template))
        sampled_ids = PairIds(row["prompt_ids"], chosen["token_ids"], rejected["token_ids"])
        yield line, ids == sampled_ids


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]

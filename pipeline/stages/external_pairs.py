"""The stage `pairs` of `rondo train`: makes a table for references and training from pairs that were made elsewhere.

Rows with the same prompt become one row, an article tree: it has the prompt once, each distinct answer as a branch, and
all the pairs. A pair that occurs twice counts once. If A is preferred over B in one row and B over A in another, both
pairs are kept, because the data says both. Prompts are gathered in the driver's memory. `data/preference_formats.py`
reads the formats, and `data/pair_tokenizer.py` makes the token ids. What was guessed, and columns that were not read,
are counted in the record.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from judges.base import Skip
from pipeline.config import UserError
from pipeline.config.messages import one_line, printable
from pipeline.data import preference_formats, readers
from pipeline.data.messages import Text
from pipeline.data.pair_tokenizer import PairIds, PairTokenizer, load_pair_tokenizer
from pipeline.data.preference_formats import NO_PROMPT_COLUMN, Columns, Preference
from pipeline.judging.tallies import PAIRS
from pipeline.stages.base import stage
from pipeline.storage.parts import MERGED
from pipeline.storage.schema import COLUMNS, Row

# Names of tallies in the record, which count things that a user may not expect in the file.
REPEATED = "pairs given again"
BOTH_WAYS = "pairs given both ways"
MERGED_TOKEN = "answers that begin inside the prompt's last token"
GUESSED = "prompts guessed from the common start of both answers"
REPEATS_PROMPT = "pairs whose answers both begin with the whole prompt"
_UNREAD = "rows with a column that was not read: "  # and its name

_PROMPTS_PER_TABLE = 1000
_MOST_NAMES = 50  # of reasons and of columns in the record; a reason may quote the template, and so any text
_OTHERS = "others"  # these are counted together
_KNOWN = (
    "known are chosen and rejected beside prompt (TRL, UltraFeedback), question (Intel orca), instruction, input or "
    "conversations (LLaMA-Factory), or alone, both with the prompt in them; and the columns of HelpSteer2, HelpSteer3, "
    "PKU-SafeRLHF and OpenAI"
)


@stage(
    "pairs",
    version=1,
    inputs=("policy.build",),
    settings=("pairs", "policy.max_model_len", "policy.merge_system"),
    contents=("pairs",),
    uses=("model",),
    writes=("article_id", "article", "split", "prompt_ids", "summaries", "pairs"),
    limits=("max_skipped",),
)
def collect_pairs(
    policy: str, *, pairs: str, max_model_len: int | None, merge_system: bool = False, model: str
) -> Iterator[pa.Table]:
    """Read preference pairs, and gather the pairs of each prompt in one row.

    Args:
        policy: the build id of the policy whose tokenizer is used.
        pairs: path, URI or hub name of the pairs: see `config.Alignment`.
        max_model_len: the most tokens that prompt and answer may have together; None: what the model allows.
        merge_system: put the system message of each prompt into its first user message.
        model: path, URI or hub name of the policy.

    Yields:
        tables of the columns that the stage writes, and of `tally` and `skipped`. A skipped row of the file is a row
        of its own, named by its number.

    Raises:
        UserError: there is no such file, it has unknown columns or no pair at all, or it has messages and the policy
            has no chat template.
    """
    tokenizer = load_pair_tokenizer(model, max_model_len, merge_system)
    prompts: dict[str, _Prompt] = {}
    skipped: list[Row] = []
    reasons: Counter[str] = Counter()
    unread: Counter[str] = Counter()  # the columns that were not read
    for number, row in enumerate(_check_columns(pairs), 1):
        pair = preference_formats.parse_row(row)
        ids = pair if isinstance(pair, Skip) else _encode(pair, tokenizer, pairs)
        if isinstance(ids, Skip):
            reason = _count(reasons, ids.reason)
            skipped.append({"article_id": f"row {number}", "article": "", "split": "train", "skipped": reason})
            if len(skipped) == _PROMPTS_PER_TABLE:
                yield _make_table(skipped)
                skipped = []
        else:
            assert isinstance(pair, Preference)
            article_id = hashlib.sha256(np.asarray(ids.prompt, "<i4").tobytes()).hexdigest()[:16]
            prompt = prompts.setdefault(article_id, _Prompt(pair.prompt, ids.prompt))
            prompt.add(pair, ids)
            for name in preference_formats.read_columns(row).unread:
                prompt.unread[_count(unread, one_line(printable(name), limit=60))] += 1
    if skipped:
        yield _make_table(skipped)
    if not prompts:
        raise _no_pair(pairs, reasons)
    tree_rows = (prompt.to_row(article_id) for article_id, prompt in prompts.items())
    while batch := list(islice(tree_rows, _PROMPTS_PER_TABLE)):
        yield _make_table(batch)


@dataclass(frozen=True)
class FirstPair:
    """How the first pair of a file is read.

    Attributes:
        columns: where the prompt is, and which columns are not read.
        is_guessed: the prompt is guessed from the common start of both answers.
    """

    columns: Columns
    is_guessed: bool

    def describe(self) -> str:
        """Say it in one line."""
        prompt = " and ".join(self.columns.prompt) or "the common start of chosen and rejected"
        guess = ", which is a guess: no column is known to have it" if self.is_guessed else ""
        names = [one_line(name, limit=60) for name in self.columns.unread[:_MOST_NAMES]]
        unread = f"; not read: {', '.join(names)}" if names else ""
        return f"the prompt is {prompt}{guess}{unread}"


def check_pairs(pairs: str, model: str, max_model_len: int | None = None, merge_system: bool = False) -> FirstPair:
    """Read the file up to its first pair that can be trained on. Arguments and errors as in `collect_pairs`."""
    tokenizer = None
    reasons: Counter[str] = Counter()
    for row in _check_columns(pairs):
        pair = preference_formats.parse_row(row)
        if isinstance(pair, Preference):
            tokenizer = tokenizer or load_pair_tokenizer(model, max_model_len, merge_system)
            if isinstance(ids := _encode(pair, tokenizer, pairs), PairIds):
                return FirstPair(preference_formats.read_columns(row), pair.is_guessed)
            pair = ids
        _count(reasons, pair.reason)
    raise _no_pair(pairs, reasons)


def _count(names: Counter[str], name: str) -> str:
    """Count a reason or a column. Returns its name, or `_OTHERS` after the first `_MOST_NAMES`."""
    name = name if name in names or len(names) < _MOST_NAMES else _OTHERS
    names[name] += 1
    return name


def _no_pair(pairs: str, reasons: Counter[str]) -> UserError:
    counts = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common(5))
    return UserError(f"{pairs} has no pair to train on ({counts or 'it is empty'}); {_KNOWN}")


def _check_columns(pairs: str) -> Iterator[Row]:
    """Yield the rows of the file. Raise UserError if the first readable one has no columns of a known format."""
    rows = readers.read_rows(pairs, "pairs", is_row=preference_formats.has_known_columns)
    for row in rows:
        if readers.UNREADABLE not in row:
            _check_first_row(row, pairs)
        yield row
        if readers.UNREADABLE not in row:
            break
    yield from rows


def _check_first_row(row: Row, pairs: str) -> None:
    found = f"{pairs} has the columns {', '.join(map(str, row))}"
    if not preference_formats.has_known_columns(row):
        raise UserError(f"{found}; {_KNOWN}: rename them")
    if preference_formats.parse_row(row) == Skip(NO_PROMPT_COLUMN):
        suspects = " or ".join(preference_formats.read_columns(row).suspects)
        may = f", and {suspects} may have it" if suspects else ""
        raise UserError(
            f"{found}: none of them is known to have the prompt{may}. Rename the one that has it to prompt; if chosen "
            f"and rejected begin with the whole prompt, remove {suspects or 'the system column'}"
        )


def _encode(pair: Preference, tokenizer: PairTokenizer, pairs: str) -> PairIds | Skip:
    try:
        return tokenizer.encode(pair)
    except UserError as error:
        raise UserError(f"{pairs}: {error}") from None


@dataclass
class _Prompt:
    """A prompt, its distinct answers and its pairs, as far as the file was read.

    Attributes:
        text, ids: the prompt as text or messages, and as token ids.
        answers: the index of each distinct answer in `summaries`, by the bytes of its token ids.
        summaries: the distinct answers.
        pairs: (chosen, rejected) indices into `summaries`; a dict, so that a pair counts once and keeps its place.
        rows: rows of the file with this prompt.
        merged_tokens: rows whose answers begin inside the prompt's last token.
        guessed: rows whose prompt is guessed.
        repeating: rows whose answers both begin with the whole prompt.
        unread: rows that have a column that was not read, by its name.
    """

    text: Text
    ids: list[int]
    answers: dict[bytes, int] = field(default_factory=dict)
    summaries: list[Row] = field(default_factory=list)
    pairs: dict[tuple[int, int], None] = field(default_factory=dict)
    rows: int = 0
    merged_tokens: int = 0
    guessed: int = 0
    repeating: int = 0
    unread: Counter[str] = field(default_factory=Counter)

    def add(self, pair: Preference, ids: PairIds) -> None:
        self.rows += 1
        self.merged_tokens += ids.moved
        self.guessed += pair.is_guessed
        self.repeating += pair.repeats_prompt
        chosen, rejected = self._answer_index(pair.chosen, ids.chosen), self._answer_index(pair.rejected, ids.rejected)
        self.pairs[chosen, rejected] = None

    def _answer_index(self, answer: Text, ids: list[int]) -> int:
        key = np.asarray(ids, np.int32)
        index = self.answers.setdefault(key.tobytes(), len(self.summaries))
        if index == len(self.summaries):
            self.summaries.append({"text": _answer_text(answer), "token_ids": key, "finish_reason": "stop"})
        return index

    def to_row(self, article_id: str) -> Row:
        both_ways = sum(1 for chosen, rejected in self.pairs if chosen < rejected and (rejected, chosen) in self.pairs)
        tally = {
            MERGED: self.rows - 1,
            PAIRS: len(self.pairs),
            REPEATED: self.rows - len(self.pairs),
            BOTH_WAYS: both_ways,
            MERGED_TOKEN: self.merged_tokens,
            GUESSED: self.guessed,
            REPEATS_PROMPT: self.repeating,
            **{f"{_UNREAD}{name}": count for name, count in self.unread.items()},
        }
        return {
            "article_id": article_id,
            "article": _as_text(self.text),
            "split": "train",
            "prompt_ids": self.ids,
            "summaries": self.summaries,
            "pairs": [{"chosen": c, "rejected": r, "reason": "given"} for c, r in self.pairs],
            "tally": [{"what": what, "count": count} for what, count in tally.items() if count],
        }


def _as_text(text: Text) -> str:
    return text if isinstance(text, str) else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in text)


def _answer_text(text: Text) -> str:
    """An answer as text. For a single message this is its content."""
    return text[0]["content"] if isinstance(text, list) and len(text) == 1 else _as_text(text)


def _make_table(rows: list[dict[str, Any]]) -> pa.Table:
    names = (*collect_pairs.writes, "tally", "skipped")
    return pa.table({name: pa.array([row.get(name) for row in rows], COLUMNS[name]) for name in names})

"""Own pairs: preference pairs from elsewhere become the `pairs` table that references and training take.

Rows with the same prompt become one, an article tree: the prompt once, each distinct answer a branch, all the pairs.
A pair given twice counts once; A over B beside B over A is kept, for it is data. Prompts are gathered in memory, on
the driver. Left out: formats (`formats.py`) and token ids (`tokens.py`).
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
from pipeline.data import preference_formats, readers
from pipeline.data.pair_tokenizer import PairIds, PairTokenizer, load_pair_tokenizer
from pipeline.data.preference_formats import Preference, Text
from pipeline.stages.base import stage
from pipeline.storage.schema import COLUMNS, Row

# What the record tallies that a person may not expect of the file.
REPEATED = "pairs given again"
BOTH_WAYS = "pairs given both ways"
MERGED_TOKEN = "answers that begin inside the prompt's last token"

_ROWS = 1000  # prompts a table
_KNOWN = (
    "known are chosen and rejected beside prompt (TRL, UltraFeedback), question (Intel orca), instruction or "
    "conversations (LLaMA-Factory), or alone, both with the prompt in them"
)


@stage(
    "pairs",
    version=1,
    settings=("pairs", "policy.max_model_len"),
    contents=("pairs",),
    uses=("model",),
    writes=("article_id", "article", "split", "prompt_ids", "summaries", "pairs"),
    limits=("max_skipped",),
)
def collect_pairs(policy: str, *, pairs: str, max_model_len: int | None, model: str) -> Iterator[pa.Table]:
    """Read preference pairs, and put those of one prompt together.

    Args:
        policy: the build id of the policy whose tokenizer is used.
        pairs: where they are; see `config.Alignment`.
        max_model_len: tokens that prompt and answer may have together; None: what the model allows.
        model: where the policy is.

    Yields:
        tables of the columns that the stage writes, of `tally` and of `skipped`. A row of the file that is set aside
        is a row of its own, named by its number.

    Raises:
        UserError: no such file, unknown columns, messages for a policy without a chat template, or no pair at all.
    """
    tokens = load_pair_tokenizer(model, max_model_len)
    prompts: dict[str, _Prompt] = {}
    skipped: list[Row] = []
    reasons: Counter[str] = Counter()
    for number, row in enumerate(_checked(pairs), 1):
        pair = preference_formats.parse_row(row)
        ids = pair if isinstance(pair, Skip) else _ids(pair, tokens, pairs)
        if isinstance(ids, Skip):
            reasons[ids.reason] += 1
            skipped.append({"article_id": f"row {number}", "article": "", "split": "train", "skipped": ids.reason})
            if len(skipped) == _ROWS:
                yield _table(skipped)
                skipped = []
        else:
            assert isinstance(pair, Preference)
            article_id = hashlib.sha256(np.asarray(ids.prompt, "<i4").tobytes()).hexdigest()[:16]
            prompts.setdefault(article_id, _Prompt(pair.prompt, ids.prompt)).add(pair, ids)
    if skipped:
        yield _table(skipped)
    if not prompts:
        counts = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common())
        raise UserError(f"{pairs} has no pair to learn from ({counts or 'it is empty'}); {_KNOWN}")
    rows = (prompt.row(article_id) for article_id, prompt in prompts.items())
    while batch := list(islice(rows, _ROWS)):
        yield _table(batch)


def check_pairs(pairs: str, model: str) -> None:
    """Open the file and look at its first pair. Raises UserError as `collect` does."""
    for row in _checked(pairs):
        if not isinstance(pair := preference_formats.parse_row(row), Skip):
            _ids(pair, load_pair_tokenizer(model), pairs)
            return


def _checked(pairs: str) -> Iterator[Row]:
    """The rows of the file, if the first readable one has the columns of a known format."""
    rows = readers.read_rows(pairs, "pairs")
    for row in rows:
        if readers.UNREADABLE not in row and not preference_formats.has_known_columns(row):
            raise UserError(f"{pairs} has the columns {', '.join(map(str, row))}; {_KNOWN}: rename them")
        yield row
        if readers.UNREADABLE not in row:
            break
    yield from rows


def _ids(pair: Preference, tokens: PairTokenizer, pairs: str) -> PairIds | Skip:
    try:
        return tokens.of(pair)
    except UserError as error:
        raise UserError(f"{pairs}: {error}") from None


@dataclass
class _Prompt:
    """A prompt and what was said of its answers, so far."""

    text: Text
    ids: list[int]
    answers: dict[bytes, int] = field(default_factory=dict)
    summaries: list[Row] = field(default_factory=list)
    pairs: dict[tuple[int, int], None] = field(default_factory=dict)
    given: int = 0
    moved: int = 0

    def add(self, pair: Preference, ids: PairIds) -> None:
        self.given += 1
        self.moved += ids.moved
        chosen, rejected = self._index(pair.chosen, ids.chosen), self._index(pair.rejected, ids.rejected)
        self.pairs[chosen, rejected] = None

    def _index(self, answer: Text, ids: list[int]) -> int:
        key = np.asarray(ids, np.int32)
        index = self.answers.setdefault(key.tobytes(), len(self.summaries))
        if index == len(self.summaries):
            self.summaries.append({"text": _answer(answer), "token_ids": key, "finish_reason": "stop"})
        return index

    def row(self, article_id: str) -> Row:
        both_ways = sum(1 for chosen, rejected in self.pairs if chosen < rejected and (rejected, chosen) in self.pairs)
        tally = {
            "merged": self.given - 1,
            "pairs": len(self.pairs),
            REPEATED: self.given - len(self.pairs),
            BOTH_WAYS: both_ways,
            MERGED_TOKEN: self.moved,
        }
        return {
            "article_id": article_id,
            "article": _readable(self.text),
            "split": "train",
            "prompt_ids": self.ids,
            "summaries": self.summaries,
            "pairs": [{"chosen": c, "rejected": r, "reason": "given"} for c, r in self.pairs],
            "tally": [{"what": what, "count": count} for what, count in tally.items() if count],
        }


def _readable(text: Text) -> str:
    return text if isinstance(text, str) else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in text)


def _answer(text: Text) -> str:
    """An answer as a person reads it: one message is what the assistant said."""
    return text[0]["content"] if isinstance(text, list) and len(text) == 1 else _readable(text)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    names = (*collect_pairs.writes, "tally", "skipped")
    return pa.table({name: pa.array([row.get(name) for row in rows], COLUMNS[name]) for name in names})

"""Finds repeated ids and near-copies of texts with tables on disk, so that millions take no more memory than hundreds.

Two texts are near-copies if they share most of their shingles: runs of 5 tokens of `judges.text.tokens`, so of words,
or of characters where a script writes no spaces. MinHash (Broder 1997) estimates the share, and bands of the signature
(Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3) find candidates without a comparison of all pairs.
The caller (`stages/articles.py`) decides what happens to a near-copy.
"""

import hashlib
import sqlite3
import zlib

import numpy as np
from datasketch import MinHash

from judges.text.tokens import normalized_tokens

_SHINGLE = 5  # tokens
_HASHES = 128  # of a signature; the standard error of a share of 0.8 is 0.035
_COMPARED_AT_ONCE = 1000
_MIN_RECALL = 0.98  # chance that two texts at the threshold are compared at all


class SeenTexts:
    """A set of texts that only grows. It holds 16-byte digests in a temporary database, deleted with the object."""

    def __init__(self) -> None:
        self.database = _temporary_database()
        self.database.execute("create table seen (digest blob primary key) without rowid")

    def add(self, text: str) -> bool:
        """Add a text. Returns whether it is new."""
        return self.database.execute("insert or ignore into seen values (?)", (_digest(text),)).rowcount == 1

    def __contains__(self, text: str) -> bool:
        return self.database.execute("select 1 from seen where digest = ?", (_digest(text),)).fetchone() is not None


class SeenArticles:
    """A set of articles without near-copies, in a temporary database.

    It takes 2.0 seconds of CPU time (two-core virtual machine, 2026-11-27) for 1,000 CNN/DailyMail validation articles
    of 640 words, and 0.9 kB of disk for each article.
    """

    def __init__(self, threshold: float | None):
        """
        Args:
            threshold: the share of common shingles, of all shingles of both texts (Jaccard), from which two texts are
                near-copies. None: only texts with the same tokens are.
        """
        self.threshold = threshold
        self.texts = SeenTexts()
        self.database = _temporary_database()
        self.database.execute("create table signatures (id integer primary key, signature blob)")
        self.database.execute("create table bands (key blob, id integer, primary key (key, id)) without rowid")
        self.rows_per_band = _rows_per_band(threshold) if threshold else 0

    def add(self, article: str) -> bool:
        """Add an article, unless it is a near-copy of one that was added before.

        Returns:
            whether it was added.
        """
        tokens = normalized_tokens(article)
        if not self.texts.add(" ".join(tokens) or article):
            return False
        if self.threshold is None or not tokens:
            return True
        signature = _signature(tokens)
        keys = self._band_keys(signature)
        if self._has_near_copy(signature, keys, self.threshold):
            return False
        number = self.database.execute(
            "insert into signatures (signature) values (?)", (signature.tobytes(),)
        ).lastrowid
        self.database.executemany("insert into bands values (?, ?)", ((key, number) for key in keys))
        return True

    def _has_near_copy(self, signature: np.ndarray, keys: list[bytes], threshold: float) -> bool:
        """Whether a text that has a band in common also has the share of equal hashes."""
        marks = ", ".join("?" * len(keys))
        candidates = self.database.execute(
            f"select signature from signatures where id in (select id from bands where key in ({marks}))", keys
        )
        while some := candidates.fetchmany(_COMPARED_AT_ONCE):
            signatures = np.frombuffer(b"".join(blob for (blob,) in some), signature.dtype).reshape(len(some), _HASHES)
            if (signatures == signature).mean(axis=1).max() >= threshold:
                return True
        return False

    def _band_keys(self, signature: np.ndarray) -> list[bytes]:
        """A key of 8 bytes for each band: texts with a common key are compared."""
        size = self.rows_per_band
        bands = (signature[start : start + size] for start in range(0, _HASHES - size + 1, size))
        return [
            hashlib.blake2b(number.to_bytes(2, "big") + band.tobytes(), digest_size=8).digest()
            for number, band in enumerate(bands)
        ]


def _signature(tokens: list[str]) -> np.ndarray:
    """The MinHash signature (_HASHES,) of the text's shingles. A text of fewer tokens is one shingle."""
    starts = range(max(1, len(tokens) - _SHINGLE + 1))
    hashes = MinHash(_HASHES, seed=1, hashfunc=zlib.crc32)  # it mixes these 32 bits; SHA-1, its default, costs more
    hashes.update_batch(
        {" ".join(tokens[start : start + _SHINGLE]).encode("utf-8", "surrogatepass") for start in starts}
    )
    return hashes.hashvalues


def _rows_per_band(threshold: float) -> int:
    """The most rows of a band with which texts at the threshold agree in one band at least, nearly always."""
    return max(
        (rows for rows in range(1, _HASHES + 1) if 1 - (1 - threshold**rows) ** (_HASHES // rows) >= _MIN_RECALL),
        default=1,
    )


def _temporary_database() -> sqlite3.Connection:
    database = sqlite3.connect("")  # without a name it is temporary: SQLite deletes it
    database.executescript("pragma journal_mode=off; pragma synchronous=off; pragma cache_size=-16384;")  # KiB
    return database


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

"""Finds repeated texts with a set on disk, so that a corpus of millions takes no more memory than one of hundreds.

The caller (`stages/articles.py`) decides which texts count as the same.
"""

import hashlib
import sqlite3


class SeenTexts:
    """A set of texts that only grows. It holds 16-byte digests in a temporary database, deleted with the object."""

    def __init__(self) -> None:
        self.database = sqlite3.connect("")  # without a name it is temporary: SQLite deletes it
        self.database.executescript(
            "pragma journal_mode=off; pragma synchronous=off; pragma cache_size=-16384;"  # KiB
            "create table seen (digest blob primary key) without rowid"
        )

    def add(self, text: str) -> bool:
        """Add a text. Returns whether it is new."""
        return self.database.execute("insert or ignore into seen values (?)", (_digest(text),)).rowcount == 1

    def __contains__(self, text: str) -> bool:
        return self.database.execute("select 1 from seen where digest = ?", (_digest(text),)).fetchone() is not None


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

"""Which of many texts have come before, kept on disk: a corpus of millions takes no more memory than one of hundreds.

Left out: what makes two texts the same (`articles.py`).
"""

import hashlib
import sqlite3


class SeenTexts:
    """A set of texts that can only grow, of 16-byte digests in a temporary database that goes with it."""

    def __init__(self) -> None:
        self.file = sqlite3.connect("")  # no name: SQLite removes it
        self.file.executescript(
            "pragma journal_mode=off; pragma synchronous=off; pragma cache_size=-16384;"  # KiB
            "create table seen (digest blob primary key) without rowid"
        )

    def add(self, text: str) -> bool:
        """Whether it is new. From now on it is not."""
        return self.file.execute("insert or ignore into seen values (?)", (_digest(text),)).rowcount == 1

    def __contains__(self, text: str) -> bool:
        return self.file.execute("select 1 from seen where digest = ?", (_digest(text),)).fetchone() is not None


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

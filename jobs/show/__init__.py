"""The commands that look at a run: `status` and `show` (`tables.py`), and `view` (`view.py`, with its server)."""

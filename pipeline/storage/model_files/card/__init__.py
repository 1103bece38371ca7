"""Model cards: the README.md of a trained policy, for people who have never heard of Rondo.

`writing.py` puts a card together, `snippets.py` writes the code that runs the model, `tables.py` the figures of its
evaluation. `public_names.py` keeps local paths out of cards and of shared files.
"""

CARD = "README.md"
MARK = "<!-- Rondo wrote this card. -->"  # tells Rondo's cards from those that came with a model


def is_own_card(head: bytes) -> bool:
    """Whether a README.md that begins like this is one of Rondo's cards."""
    return MARK.encode() in head

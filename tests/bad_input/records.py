"""Bad records and checkpoints in a run folder."""

import torch
from safetensors.torch import save_file

from tests.bad_input.models import evil

RECORDS = [
    ("empty", b""),
    ("not JSON", b"{"),
    ("a list", b"[]"),
    ("a word", b'"made"'),
    ("null", b"null"),
    ("too deep", b"[" * 100_000),
    ("not UTF-8", b"\xff\xfe{}"),
    ("no build", b'{"recipe": {}}'),
    ("no recipe", b'{"build": "abc"}'),
    ("another schema", b'{"build": 5, "recipe": {}}'),
    ("a recipe of words", b'{"build": "abc", "recipe": "the usual"}'),
]
DAMAGED = "{at}/stage/record.json is damaged: remove the folder stage/ to have it made again"

_ONE, _STATE = "rank-00000-of-00001.safetensors", "state.json"


def write_part(folder, name=_ONE, state="{}", **tensors):
    save_file(tensors, folder / name)
    (folder / _STATE).write_text(state)


# A checkpoint should hold `weight`, 4 by 2.
CHECKPOINTS = [
    ("empty", lambda f: None, "is not complete: it has []"),
    (
        "a part missing",
        lambda f: write_part(f, "rank-00001-of-00002.safetensors", weight=torch.ones(2, 2)),
        "is not complete",
    ),
    ("no state", lambda f: save_file({"weight": torch.ones(4, 2)}, f / _ONE), "is not complete"),
    (
        "a part cut off",
        lambda f: (write_part(f), (f / _ONE).write_bytes(b"abc")),
        "is damaged, or another model's (Error while",
    ),
    (
        "another tensor",
        lambda f: write_part(f, bias=torch.ones(4, 2)),
        "is damaged, or another model's (File does not contain",
    ),
    ("too few rows", lambda f: write_part(f, weight=torch.ones(3, 2)), "(weight is (3, 2), and should be (4, 2))"),
    ("another shape", lambda f: write_part(f, weight=torch.ones(4, 3)), "(weight is (4, 3), and should be (4, 2))"),
    (
        "a state cut off",
        lambda f: write_part(f, state="{", weight=torch.ones(4, 2)),
        "is damaged, or another model's (Expecting",
    ),
    ("a pickle for a part", lambda f: (write_part(f), evil(f / _ONE)), "is damaged, or another model's (Error while"),
]

"""Counts how often a run has looked at its test articles: once for each evaluation of a policy on them.

After a look, its user may choose: to play another round, to change a setting. So each look makes the next one less of a
test, and the report says how many there were. They are kept in `test/looks.json`, because a look stays a look when its
evaluation is made again.
"""

import json
from typing import Any

from pipeline.config import UserError
from pipeline.evaluation.round_result import Round
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import TEST

LOOKS = f"{TEST}/looks.json"


def note_look(current: Round, ledger: Ledger) -> None:
    """Note that the test of this round is about to be shown. The same evaluation is noted once."""
    assert current.test is not None, "only a round with a test is a look"
    looks, tested = read_looks(ledger), current.test[1]
    if all(look["evaluation"] != tested.results.build for look in looks):
        looks.append({"round": tested.number, "policy": tested.policy.build, "evaluation": tested.results.build})
        ledger.write(LOOKS, json.dumps(looks, indent=2) + "\n")


def read_looks(ledger: Ledger) -> list[dict[str, Any]]:
    """The looks so far, each with `round`, and the build ids `policy` and `evaluation`.

    Raises:
        UserError: the file is damaged.
    """
    try:
        looks = json.loads(ledger.read(LOOKS) or "[]")
        return [{name: look[name] for name in ("round", "policy", "evaluation")} for look in looks]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{ledger.root}/{LOOKS} is damaged: it should list the looks at the test articles. Remove it to count anew"
        ) from None

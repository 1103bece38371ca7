"""Sends the evaluation of each round, samples of its texts, and the report to the trackers of `report_to`.

All of it is one run of the tracker, named `evaluation`, beside the runs with the curves of each training. Its steps are
the numbers of the rounds. `trackers.json` in the run folder keeps the tracker's id of this run and what was sent, so a
run that is resumed goes on in it and sends nothing twice. How a tracker is reached is in `training/tracking.py`.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

from pipeline.config import Config, UserError
from pipeline.evaluation.round_result import Round
from pipeline.inference.sampling import fill_article, instruction_prompt
from pipeline.judging.preference import judged_value
from pipeline.storage import tables
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.run_folder import TRACKERS
from pipeline.storage.schema import Row
from pipeline.training.tracking import Sender, Tracker, TrackerRun, close_senders, open_senders

REPORT = ("report.md", "report.html")
_MOST_ROWS = 100  # of a table; a hash of the article's id draws them, so that every round shows the same articles
_LONGEST = 5000  # characters of a text in a table
# Of an entry in metrics.json: what is no figure of the evaluation. The means of `faults` are in the entry itself.
_LEFT_OUT = ("round", "previous", "start", "training", "fault_rises", "faults")
_FIELDS = ("article", "writer", "summaries.text", "scores", "pairs")


Call = Callable[[Tracker], None]


class TrackedRun:
    """Sends a run of rounds to its trackers, each thing once. As a context manager, it waits for them at the end.

    Args:
        config, ledger: the run.
        warn: shows one line if a tracker fails; the run goes on.

    Raises:
        UserError: `trackers.json` is damaged.
    """

    def __init__(self, config: Config, ledger: Ledger, warn: Callable[[str], None]):
        self.config, self.ledger, self.warn = config, ledger, warn
        self._senders: dict[str, Sender] = {}
        self._lock = threading.Lock()  # each tracker notes from its own thread what it took
        self._noted = _read_notes(ledger) if config.report_to else {}

    def __enter__(self) -> "TrackedRun":
        return self

    def __exit__(self, *_: object) -> None:
        close_senders(self._senders)

    def send_round(self, current: Round, base: Round, metrics: Mapping[str, Any]) -> None:
        """Send the figures and samples of a round, and after the last one those of the test.

        Args:
            current: the round that was just finished; a round without training has nothing new.
            base: round 0.
            metrics: the content of metrics.json.
        """
        if not self.config.report_to:
            return
        if current.test:
            self._send_evaluation("test", figures_of_test(metrics["test"]), current.test[1], current.test[0])
        elif current.trained:
            self._send_evaluation(f"{current.number}", round_figures(current.number, metrics), current, base)

    def send_report(self) -> None:
        """Send report.md and report.html, if they changed since they were sent."""
        if self.config.report_to:
            texts = {name: self.ledger.read(name) or "" for name in REPORT}
            self._send("report", _digest(texts), lambda: lambda tracker: tracker.log_files("report", texts))

    def _send_evaluation(self, key: str, figures: Mapping[str, float], current: Round, base: Round) -> None:
        def send_table(name: str, table: Artifact, load: Callable[[], list[dict[str, Any]]]) -> None:
            def load_call() -> Call:
                return partial(_log_table, name=name, step=current.number, rows=load())

            self._send(f"{key}/{name}", _digest(table.build), load_call)

        digest = _digest([current.results.build, figures])
        self._send(f"{key}/figures", digest, lambda: lambda tracker: tracker.log(current.number, figures))
        name = "test_completions" if key == "test" else "completions"
        send_table(name, current.results, lambda: _completions(current, base, self.config, self.ledger))
        if (pairs := current.pairs) and key != "test":
            send_table("pairs", pairs, lambda: _pairs(pairs, current.number, self.config, self.ledger))

    def _send(self, key: str, digest: str, load_call: Callable[[], Call]) -> None:
        """Make a call with each tracker of which it is not noted that it took this. `load_call` gives the call."""
        missing = [name for name in self.config.report_to if self._note_of(name)["sent"].get(key) != digest]
        for name in missing:
            if name not in self._senders:
                run_id, settings = self._note_of(name)["id"], _settings(self.config)
                run = TrackerRun(self.ledger.root, "evaluation", settings, "round", run_id)
                self._senders |= open_senders([name], run, self.warn)
        if senders := [self._senders[name] for name in missing if name in self._senders]:
            call = load_call()
            for sender in senders:
                sender.send(partial(self._take, sender.tracker, call, key, digest))

    def _take(self, name: str, call: Call, key: str, digest: str, tracker: Tracker) -> None:
        call(tracker)
        with self._lock:
            self._noted[name] = {"id": tracker.id, "sent": self._note_of(name)["sent"] | {key: digest}}
            self.ledger.write(TRACKERS, json.dumps(self._noted, indent=2) + "\n")

    def _note_of(self, name: str) -> dict[str, Any]:
        return self._noted.get(name, {"id": None, "sent": {}})


def _read_notes(ledger: Ledger) -> dict[str, dict[str, Any]]:
    try:
        notes = json.loads(ledger.read(TRACKERS) or "{}")
        return {name: {"id": note["id"], "sent": dict(note["sent"])} for name, note in notes.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{ledger.root}/{TRACKERS} is damaged: it should say what the trackers took. Remove it to send all again"
        ) from None


def _settings(config: Config) -> dict[str, Any]:
    """The settings that say what was evaluated, without places and servers."""
    return {"policy.model": config.policy.model, "judge": config.judge.name} | {
        name: getattr(config, name) for name in ("seed", "rounds", "start_from")
    }


def round_figures(number: int, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a round under their names in metrics.json, such as `eval/vs_base/strict/win_rate`.

    Round 0 also has those of the baselines and of models at servers, such as `eval/lead/accuracy`.
    """
    if number:
        figures = numbers(next(entry for entry in metrics["rounds"] if entry["round"] == number))
    else:
        figures = numbers(metrics["base"] | metrics["baselines"] | metrics["compared"])
    return {f"eval/{name}": value for name, value in figures.items()}


def figures_of_test(test: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the test articles, such as `test/vs_base/strict/win_rate`; those of the base as `test/base/…`."""
    return {f"test/{name}": value for name, value in numbers(test["policy"] | {"base": test["base"]}).items()}


def numbers(entry: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """All numbers of an entry in metrics.json, by the path to them. Texts and unknown values are left out."""
    found: dict[str, float] = {}
    for name, value in entry.items():
        if name in _LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[f"{prefix}{name}"] = float(value)
    return found


def _log_table(tracker: Tracker, name: str, step: int, rows: list[dict[str, Any]]) -> None:
    if rows:
        tracker.log_table(name, rows, step)


def _completions(current: Round, base: Round, config: Config, ledger: Ledger) -> list[dict[str, Any]]:
    """Held-out summaries with their scores, and from round 1 on the base's beside them.

    `step`, `prompt` and `completion` are the columns of TRL's table `completions`.
    """
    base_rows = {} if current.number == 0 else {row["article_id"]: row for row in _some_rows(base.results, ledger)}
    rows = []
    for row in _some_rows(current.results, ledger):
        line = _described(row, current.number, config)
        line |= {"completion": _text(row, 0), "score": _score(row, 0), "words": row["scores"][0]["words"]}
        if current.number:
            other = base_rows.get(row["article_id"])
            line |= {"base": other and _text(other, 0), "base_score": other and _score(other, 0)}
        rows.append(line)
    return rows


def _pairs(table: Artifact, number: int, config: Config, ledger: Ledger) -> list[dict[str, Any]]:
    """One pair of each article. `prompt`, `chosen` and `rejected` are TRL's columns of a preference data set."""
    return [
        _described(row, number, config)
        | {
            "chosen": _text(row, pair["chosen"]),
            "rejected": _text(row, pair["rejected"]),
            "score_chosen": _score(row, pair["chosen"]),
            "score_rejected": _score(row, pair["rejected"]),
            "reason": pair.get("reason"),
        }
        for row in _some_rows(table, ledger)
        for pair in islice(row["pairs"], 1)
    ]


def _some_rows(table: Artifact, ledger: Ledger) -> list[Row]:
    rows = tables.read_some_rows(ledger, table, _MOST_ROWS, _FIELDS) if table.record["kept"] else []
    return sorted(rows, key=lambda row: row["article_id"])[:_MOST_ROWS]


def _described(row: Row, number: int, config: Config) -> dict[str, Any]:
    messages = fill_article(instruction_prompt(config.policy, max_tokens=0), row["article"]).messages
    prompt = "\n\n".join(message["content"] for message in messages)
    return {"step": number, "article_id": row["article_id"], "prompt": _shorten(prompt)}


def _text(row: Row, place: int) -> str:
    return _shorten(row["summaries"][place]["text"])


def _score(row: Row, place: int) -> float | None:
    """What the judge thinks of a summary; None if it has unread answers."""
    score = row["scores"][place]
    return None if score["unread"] else float(judged_value(score))


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … (cut here)"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

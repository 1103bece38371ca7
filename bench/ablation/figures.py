"""Reads the figures of an arm from its run folder: from metrics.json, the records and the tables of its evaluations."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.config import Config, UserError
from pipeline.evaluation.comparison import CountingSettings, single_summary_rows, verdicts_by_article
from pipeline.inference.base import TOKENS_IN, TOKENS_OUT
from pipeline.stages.summaries import BASELINES
from pipeline.storage import run_folder, tables
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.run_folder import TEST, round_folder
from pipeline.storage.schema import Row

# The steps of a run by the stages' names. The stages of a pipeline have one time for all of them, and one step.
STEPS = {
    "questions": ("articles", "questions", "second_questions"),
    "pairs": ("summaries", "scores", "pairs", "replay", "references", "drift"),
    "training": ("policy",),
    "evaluation": ("exam", "evaluation", "second_scores"),
}
_STEP_OF = {stage: step for step, stages in STEPS.items() for stage in stages}
_WRITER = ("accuracy", "value_mean", "words_median", "copied", "repeated", "off_topic_end", "cut_off")


def arm_figures(run: str, other: str | None, donor: str | None) -> dict[str, Any]:
    """The figures of a finished run's policy: the one that another round would start from.

    Args:
        run: the run folder.
        other: the run folder of the arm that it is compared with.
        donor: the run folder that the run was begun from.

    Returns:
        `rounds`, the number of the policy's round; `stopped`, why the run ended early; figures of its summaries;
        `verdicts` and `second_verdicts` by article, against the base (`base`) and against the policy of `other`
        (`other`), and `test_verdicts`, the first judge's on test articles, which are empty if there are none; `same`:
        whether its policy is that of `other`; `training` and `costs`: see `_training` and `costs`.

    Raises:
        UserError: the run has no trained policy.
    """
    ledger, config, metrics = _open(run)
    entry = _policy_entry(config, metrics)
    number = entry["round"]
    ours = _Evaluation(ledger, config, number)
    opponents = {"base": _Evaluation(ledger, config, 0)}
    if other is not None:
        other_ledger, other_config, other_metrics = _open(other)
        other_number = _policy_entry(other_config, other_metrics)["round"]
        opponents["other"] = _Evaluation(other_ledger, other_config, other_number)
    return {
        "rounds": number,
        "stopped": metrics["stopped"],
        **_writer(entry),
        **_verdicts(ours, opponents),
        "same": "other" in opponents and ours.policy.build == opponents["other"].policy.build,
        "training": _training(ledger, config, entry),
        "costs": costs(ledger, ledger.artifacts(), donor),
    }


def base_figures(run: str) -> dict[str, dict[str, Any]]:
    """The figures of the base policy, and of the baselines that need no training, from any run of the seed."""
    ledger, config, metrics = _open(run)
    base = _Evaluation(ledger, config, 0)
    made = [a for a in ledger.artifacts() if "/" not in a.address or a.address.startswith(f"{round_folder(0)}/")]
    found = {"base": _writer(metrics["base"]) | {"costs": costs(ledger, made, None)}}
    for place, name in enumerate(BASELINES, 1):
        baseline = _Evaluation(ledger, config, 0, place)
        found[name] = _writer(metrics["baselines"][name]) | _verdicts(baseline, {"base": base})
    return found


def _open(run: str) -> tuple[Ledger, Config, dict[str, Any]]:
    ledger = Ledger(run)
    config = run_folder.read_settings(ledger)
    assert isinstance(config, Config), "a study has runs of rounds"
    return ledger, config, json.loads(ledger.read("metrics.json") or "{}")


def _policy_entry(config: Config, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The entry in metrics.json of the round whose policy another round would start from."""
    if not metrics["rounds"]:
        raise UserError(f"no policy was trained: {metrics['stopped']}")
    last = metrics["rounds"][-1]["round"]
    number = metrics["champion"] if config.start_from == "champion" else last
    for entry in metrics["rounds"]:
        if entry["round"] == number:
            return entry
    raise UserError("no round beat the base, so the champion is the base")


def _table(ledger: Ledger, address: str) -> tuple[Ledger, Artifact]:
    table = ledger.find(address)
    if table is None:
        raise UserError(f"{ledger.root} has no {address}: the run is not finished")
    return ledger, table


def _writer(described: Mapping[str, Any]) -> dict[str, Any]:
    return {name: described[name] for name in _WRITER if name in described}


class _Evaluation:
    """The evaluation of a round's policy, or of a baseline, by both judges.

    Args:
        ledger, config: the run.
        number: the round.
        place: of the summary in a row; in round 0, the base's comes first and the baselines' after it.

    Attributes:
        policy: the round's policy.
        rows: the held-out articles, with one summary each and its score.
        second: the same with the second judge's scores; None without a second judge.
        test: the test articles, as `rows`; None if there are none.
    """

    def __init__(self, ledger: Ledger, config: Config, number: int, place: int = 0):
        folder = round_folder(number)
        self.policy = _table(ledger, f"{folder}/policy")[1]
        self.counting = CountingSettings.from_config(config)
        self.rows = single_summary_rows(tables.read_table(*_table(ledger, f"{folder}/evaluation")), place)
        self.second: list[Row] | None = None
        if config.second_judge:
            rows = tables.read_table(*_table(ledger, f"{folder}/second_scores"))
            judged = [row for row in rows if self.counting.second_judge != "answers" or row["second_questions"]]
            self.second = single_summary_rows([row | {"scores": row["second_scores"]} for row in judged], place)
        test = ledger.find(f"{TEST}/{folder if number else 'base'}/evaluation")
        self.test = single_summary_rows(tables.read_table(ledger, test), place) if test else None

    def verdicts(self, other: "_Evaluation") -> dict[str, int]:
        """1 (win), 0 (tie) or -1 (loss) by the strict rule, for each article that both have."""
        return verdicts_by_article(self.rows, other.rows, self.counting.pairs, self.counting.rules["strict"])

    def second_verdicts(self, other: "_Evaluation") -> dict[str, int] | None:
        """The same by the second judge; None without one."""
        if self.second is None or other.second is None:
            return None
        rule = self.counting.second_rules["strict"]
        return verdicts_by_article(self.second, other.second, self.counting.second_pairs, rule)

    def test_verdicts(self, other: "_Evaluation") -> dict[str, int] | None:
        """The first judge's verdicts on the test articles; None if there are none."""
        if self.test is None or other.test is None:
            return None
        return verdicts_by_article(self.test, other.test, self.counting.pairs, self.counting.rules["strict"])


def _verdicts(ours: _Evaluation, opponents: Mapping[str, _Evaluation]) -> dict[str, Any]:
    return {
        "verdicts": {name: ours.verdicts(opponent) for name, opponent in opponents.items()},
        "second_verdicts": {name: ours.second_verdicts(opponent) for name, opponent in opponents.items()},
        "test_verdicts": {name: ours.test_verdicts(opponent) for name, opponent in opponents.items()},
    }


def _training(ledger: Ledger, config: Config, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the training of the policy's round says of itself.

    Returns:
        `pairs` that the round found; `steps`; `eval_accuracy` on `eval_pairs` held-out pairs, and `chosen_fell`,
        the share of pairs whose chosen summary became less likely. Of held-out pairs, in nats per summary and against
        the policy that the round started from: `chosen_change` and `rejected_change` of the log-probability, and `kl`.
        `kl_before`: the KL of this start policy from the base; 0 if it is the base. `best_step`: the step whose weights
        were kept. `stopped_early`.
    """
    training, folder = entry["training"], round_folder(entry["round"])
    lines = [json.loads(line) for line in (ledger.read(f"{folder}/policy/metrics.jsonl") or "").splitlines()]
    final = training["best_step"] if config.training.load_best_model_at_end else training["steps"]
    held_out = [line for line in lines if "eval_loss" in line and line["step"] <= (final or training["steps"])]
    changes: dict[str, float | None] = dict.fromkeys(("chosen_change", "rejected_change", "kl"))
    if held_out:
        first, now = held_out[0], held_out[-1]
        for side in ("chosen", "rejected"):
            changes[f"{side}_change"] = now[f"eval_logps/{side}"] - first[f"eval_logps/{side}"]
        changes["kl"] = now.get("eval_kl")
    return {
        "pairs": entry["pairs"] + entry["replayed_pairs"],
        "steps": training["steps"],
        "eval_accuracy": training["eval_accuracy_last"],
        "eval_pairs": training["eval_pairs"],
        "chosen_fell": training["chosen_fell"],
        **changes,
        "kl_before": entry["kl"]["per_summary"] if entry["kl"] else (0.0 if entry["start"] == 0 else None),
        "best_step": final,
        "stopped_early": training["stopped_early"],
    }


def costs(ledger: Ledger, artifacts: Iterable[Artifact], donor: str | None) -> dict[str, Any]:
    """Seconds and tokens by step, from the records.

    Args:
        ledger: the run folder.
        artifacts: those to count.
        donor: the run folder that some of them were copied from; None: none was copied.

    Returns:
        `seconds` by step, of all artifacts; `own_seconds`, of those that this run made itself; `tokens`: `sampled` by
        policies, `judged` (read and written by judges) and `trained` (over all steps, each token of an article tree
        once).
    """
    artifacts = list(artifacts)
    copied = {a.build for a in Ledger(donor).artifacts()} if donor else set()
    tokens: Counter[str] = Counter(sampled=0, judged=0, trained=0)
    for artifact in artifacts:
        tokens.update(_tokens(artifact))
    own = [artifact for artifact in artifacts if artifact.build not in copied]
    return {"seconds": _seconds(artifacts), "own_seconds": _seconds(own), "tokens": dict(tokens)}


def _seconds(artifacts: Sequence[Artifact]) -> dict[str, float]:
    """Seconds by step. The tables of one pipeline have the same seconds, which count once."""
    seconds, counted = dict.fromkeys(STEPS, 0.0), set()
    for artifact in artifacts:
        if artifact.address not in counted:
            counted |= {artifact.address, *artifact.record.get("together_with", ())}
            seconds[_STEP_OF.get(_stage(artifact), "evaluation")] += artifact.record["seconds"]
    return seconds


def _tokens(artifact: Artifact) -> Counter[str]:
    record, stage = artifact.record, _stage(artifact)
    if "training" in record:
        return Counter(trained=record["training"].get("tokens", 0))
    tally = record.get("tally", {})
    if stage in ("summaries", "exam"):
        return Counter(sampled=tally.get(TOKENS_OUT, 0))
    if stage in ("questions", "second_questions", "scores", "evaluation", "second_scores"):
        return Counter(judged=tally.get(TOKENS_IN, 0) + tally.get(TOKENS_OUT, 0))
    return Counter()


def _stage(artifact: Artifact) -> str:
    return artifact.address.rpartition("/")[2]

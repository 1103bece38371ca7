"""One round, on one page: the policy writes, is judged, learns from the judgement, and comes back to write again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pipeline.config import Config
from pipeline.evaluation import stopping
from pipeline.evaluation.champion import assess_round
from pipeline.evaluation.round_result import Assessment, Round
from pipeline.evaluation.stopping import RoundFigures
from pipeline.execution.dry_run import UNMADE, DryRun
from pipeline.stages.articles import NoNewArticles, read_articles, read_first_articles, read_new_articles
from pipeline.stages.base import Stage
from pipeline.stages.drift import drift_from_base
from pipeline.stages.pairs import make_pairs, make_pairs_with_base, replay_pairs
from pipeline.stages.policy import external_policy, register_base, train_policy
from pipeline.stages.questions import ask_questions, ask_second_questions
from pipeline.stages.references import reference_logprobs
from pipeline.stages.scores import score_heldout, score_leads, score_samples, score_second
from pipeline.stages.summaries import (
    lead_baseline,
    sample_beside_base,
    sample_summaries,
    summarize_heldout,
    summarize_heldout_with_baselines,
)
from pipeline.storage.ledger import Artifact


@dataclass(frozen=True)
class Material:
    """What a round is about: articles with questions; for the exam, with a second judge's questions too.

    Attributes:
        taken: the tables of articles that this and earlier rounds have read.
    """

    questions: Artifact
    exam: Artifact
    taken: tuple[Artifact, ...]


def begin(run: DryRun) -> tuple[Material, Round]:
    """Articles with questions, for the exam and for one round or all, and the base policy with its evaluation."""
    make = partial(run.produce, into="round-00")
    articles = run.produce(read_articles if run.setting("articles.each_round") == "same" else read_first_articles)
    questions = run.produce(ask_questions, articles)
    exam = run.produce(ask_second_questions, questions) if run.setting("second_judge") else questions
    policy = make(register_base)
    _, results = run.chain((summarize_heldout_with_baselines, exam, policy), (score_heldout,), into="round-00")
    compared = {name: _examine(name, exam, run) for name in run.setting("compare")}
    second = second_opinion(results, run, "round-00")
    base = Round(0, policy, results, compared=compared, second=second, assessment=Assessment())
    return Material(questions, exam, (articles,)), base


def _examine(name: str, exam: Artifact, run: DryRun) -> Artifact:
    folder = f"compare/{name}"
    policy = run.produce(external_policy(name), into=folder)
    return run.chain((summarize_heldout, exam, policy), (score_heldout,), into=folder)[-1]


def audition(run: DryRun) -> tuple[Artifact, Artifact]:
    """The judge alone, without a policy: its questions, and its answers to them from each article's lead."""
    articles = run.produce(read_articles if run.setting("articles.each_round") == "same" else read_first_articles)
    questions = run.produce(ask_questions, articles)
    return questions, run.chain((lead_baseline, questions), (score_leads,), into="judge-card")[-1]


def second_opinion(results: Artifact, run: DryRun, folder: str) -> Artifact | None:
    """An evaluation scored by the second judge, if there is one."""
    return run.produce(score_second, results, into=folder) if run.setting("second_judge") else None


def supply(material: Material, folder: str, run: DryRun) -> Material:
    """The same articles again, or new ones with questions.

    Raises:
        NothingNew: new ones are wanted, and the corpus has none.
    """
    if run.setting("articles.each_round") == "same":
        return material
    articles = run.produce(read_new_articles, *material.taken, into=folder)
    questions = run.produce(replace(ask_questions, split="train"), articles, into=folder)
    return replace(material, questions=questions, taken=(*material.taken, articles))


def opening(played: Sequence[Round], run: DryRun) -> tuple[int, Artifact]:
    """The policy that the next round starts from, with its round's number: writer, reference and weights in one."""
    latest = [one for one in played if one.learned][-1]
    if run.setting("start_from") == "latest":
        return latest.number, latest.policy
    if (standing := played[-1].assessment) is not None:
        return standing.champion, played[standing.champion].policy
    # Whose turn it is, evaluations will tell that are to be made: what follows from it is to be made too.
    return latest.number, replace(latest.policy, record={"build": UNMADE})


def play(played: Sequence[Round], material: Material, run: DryRun) -> Round:
    """One round of on-policy DPO."""
    current, base = played[-1], played[0].policy
    number, start = opening(played, run)
    make, stream = partial(run.produce, into=current.next_folder), partial(run.chain, into=current.next_folder)
    writing, articles, pairing = _plan(played, number, material, run)
    reference = [base] if number and run.setting("references.policy") == "base" else []
    behind = (reference or [start])[0]
    earlier = [one.pairs for one in played if one.pairs and one.learned] if run.setting("pairs.replay") else []
    links = ((writing, articles, start), (score_samples,), (pairing,))
    summaries, scores, pairs, *rest = stream(*links) if earlier else stream(*links, (reference_logprobs, behind))
    if not pairs.record["kept"]:
        return _fruitless(current, pairs, run)
    replayed = make(replay_pairs, pairs, *earlier) if earlier else None
    references = make(reference_logprobs, replayed, behind) if replayed else rest[0]
    drift = make(drift_from_base, summaries, start, base) if number else None
    policy = make(train_policy, references, start, *reference)
    _, results = stream((summarize_heldout, material.exam, policy), (score_heldout,))
    second = second_opinion(results, run, current.next_folder)
    return Round(current.number + 1, policy, results, number, scores, pairs, replayed, drift, second=second)


def _plan(played: Sequence[Round], start: int, material: Material, run: DryRun) -> tuple[Stage, Artifact, Stage]:
    """How the round writes, about what, and how it pairs: by itself, or against what the base wrote."""
    if start == 0 or run.setting("pairs.rejected") == "policy":
        return sample_summaries, material.questions, make_pairs
    if run.setting("articles.each_round") == "same":
        beside = played[1].scores  # whose writer was the base
    else:
        folder = f"{played[-1].next_folder}/base"
        beside = run.chain((sample_summaries, material.questions, played[0].policy), (score_samples,), into=folder)[-1]
    assert beside is not None, "a round after the first has one before it"
    return sample_beside_base, beside, make_pairs_with_base


def _fruitless(current: Round, pairs: Artifact, run: DryRun) -> Round:
    """A round without pairs: the end where the next would be about the same articles, and else just a poor round."""
    number = current.number + 1
    if run.setting("articles.each_round") == "same":
        return _unplayed(current, f"gave no pairs ({_reasons(pairs)})")
    figures = RoundFigures(number, pair_yield=0.0)
    standing = current.assessment and replace(current.assessment, figures=figures, drift=None, challenge=None)
    return replace(current, number=number, pairs=pairs, assessment=standing, learned=False)


def _unplayed(current: Round, why: str) -> Round:
    number = current.number + 1
    ended = f"Round {number} {why}: there was nothing to learn from, and the run ended with the policy it had"
    return replace(current, number=number, pairs=None, learned=False, ended=ended)


def _reasons(pairs: Artifact) -> str:
    return ", ".join(f"{reason}: {n}" for reason, n in pairs.record["skipped"].items()) or "no summaries"


def rounds(run: DryRun) -> Iterator[Round]:
    """The base, then each round as it is finished. Ends early when a rule says stop, or there is nothing to learn."""
    material, base = begin(run)
    played = [base]
    yield base
    while (current := played[-1]).ended is None and current.number < run.setting("rounds"):
        try:
            material = material if current.number == 0 else supply(material, current.next_folder, run)
            played.append(judged([*played, play(played, material, run)], run))
        except NoNewArticles as nothing:
            played.append(_unplayed(current, f"was not played, because {nothing}"))
        yield played[-1]


def judged(played: Sequence[Round], run: DryRun) -> Round:
    """The last of these rounds with its standing, and why the run stops there if a rule says so."""
    current = played[-1]
    if current.ended:
        return current
    assert isinstance(run.config, Config), "only rounds are judged"
    standing = assess_round(played, run.config, run.ledger) if current.learned else current.assessment
    if standing is None:
        return current
    history = [one.assessment.figures for one in played[1:-1] if one.assessment] + [standing.figures]
    said = stopping.stop_reasons(run.setting("stop"), [figures for figures in history if figures])
    ended = f"Stopped after round {current.number}: {'; '.join(said)}" if said else None
    return replace(current, assessment=standing, ended=ended)

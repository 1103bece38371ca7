"""One round on one page: the policy writes summaries, a judge scores them, and DPO trains the next policy on the pairs.

This module names the artifacts and the inputs of each. An executor decides whether an artifact is reused or made: see
`execution/executor.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pipeline.config import Config, UserError
from pipeline.evaluation.champion import assess_round
from pipeline.evaluation.reliability import coin_message, measure_table
from pipeline.evaluation.round_result import Assessment, Round
from pipeline.evaluation.stopping.rules import RoundFigures, stop_reasons
from pipeline.execution.executor import NOT_MADE, Executor
from pipeline.judging.factory import compares_with_base
from pipeline.judging.remedies import why_no_pairs
from pipeline.judging.tallies import describe_unusable
from pipeline.stages.articles import NoNewArticles, read_articles, read_first_articles, read_new_articles
from pipeline.stages.base import Stage
from pipeline.stages.drift import drift_from_base
from pipeline.stages.pairs import make_pairs, make_pairs_with_base, replay_pairs
from pipeline.stages.policy import external_policy, register_base, train_policy
from pipeline.stages.questions import ask_questions, ask_second_questions
from pipeline.stages.references import reference_logprobs
from pipeline.stages.scores import score_heldout, score_leads, score_samples, score_second
from pipeline.stages.summaries import (
    add_extracts,
    lead_baseline,
    sample_beside_base,
    sample_summaries,
    summarize_beside_base,
    summarize_heldout,
    summarize_heldout_with_baselines,
)
from pipeline.storage.ledger import Artifact
from pipeline.storage.run_folder import TEST, round_folder


@dataclass(frozen=True)
class RoundArticles:
    """The articles of a round, with questions.

    Attributes:
        train: the table with the training articles.
        heldout: the table with the held-out articles; with a second judge it also has that judge's questions.
        read: the tables of articles that were read for this round and for the rounds before it. The first one also has
            the test articles.
    """

    train: Artifact
    heldout: Artifact
    read: tuple[Artifact, ...]


def rounds(run: Executor) -> Iterator[Round]:
    """Carry out a run: yield the base, then each round as it is finished.

    The run ends early if a rule of `stop` says so, or if there is nothing to train on. If there are test articles, the
    last round comes twice, the second time with `test`.
    """
    articles, base = prepare(run)
    rounds_so_far = [base]
    yield base
    while (last := rounds_so_far[-1]).ended is None and last.number < run.setting("rounds"):
        try:
            if last.number > 0:
                articles = next_articles(articles, last.next_folder, run)
            rounds_so_far.append(assess([*rounds_so_far, run_round(rounds_so_far, articles, run)], run))
        except NoNewArticles as reason:
            rounds_so_far.append(_end_without_round(last, f"was not run, because {reason}"))
        yield rounds_so_far[-1]
    if test := evaluate_on_test(rounds_so_far, articles.read[0], run):
        yield replace(rounds_so_far[-1], test=test)


def prepare(run: Executor) -> tuple[RoundArticles, Round]:
    """Make the articles with their questions, and round 0: the base policy with its evaluation."""
    articles, questions = _ask_about_articles(run)
    heldout = run.produce(ask_second_questions, questions) if run.setting("second_judge") else questions
    policy = run.produce(register_base, into=round_folder(0))
    results = evaluate((summarize_heldout_with_baselines, heldout), policy, round_folder(0), run)
    compared = {name: _evaluate_external(name, results, heldout, run) for name in run.setting("compare")}
    second = second_opinion(results, run, round_folder(0))
    base = Round(0, policy, results, compared=compared, second_results=second, assessment=Assessment())
    return RoundArticles(questions, heldout, (articles,)), base


def run_round(rounds_so_far: Sequence[Round], articles: RoundArticles, run: Executor) -> Round:
    """Run one round of on-policy DPO."""
    last, base = rounds_so_far[-1], rounds_so_far[0].policy
    folder = last.next_folder
    make, make_chain = partial(run.produce, into=folder), partial(run.produce_chain, into=folder)

    start_number, start = choose_start(rounds_so_far, run)
    keeps_base_reference = run.setting("references.policy") == "base" and start_number > 0
    reference = base if keeps_base_reference else start

    # Sample, judge, pair. Reference log-probabilities join the pipeline, unless earlier pairs must be replayed first.
    sample, sampled_articles, pair = _sampling_and_pairing(rounds_so_far, start_number, articles, run)
    earlier_pairs = (
        [each.pairs for each in rounds_so_far if each.pairs and each.trained] if run.setting("pairs.replay") else []
    )
    links = (sample, sampled_articles, start), (score_samples,), (pair,)
    if earlier_pairs:
        summaries, scores, pairs = make_chain(*links)
        references = None
    else:
        summaries, scores, pairs, references = make_chain(*links, (reference_logprobs, reference))
    if not pairs.record["kept"]:
        return _end_without_pairs(last, pairs, run)
    replayed = make(replay_pairs, pairs, *earlier_pairs) if earlier_pairs else None
    if replayed:
        references = make(reference_logprobs, replayed, reference)
    assert references is not None, "references are made in the pipeline or from the replayed pairs"
    if last.number == 0:
        _refuse_coin(scores, references, f"{folder}/{train_policy.name}", run)

    drift = make(drift_from_base, summaries, start, base) if start_number > 0 else None
    policy = make(train_policy, references, start, *([base] if keeps_base_reference else []))
    results = evaluate(choose_exam(rounds_so_far[0].results, articles.heldout, run), policy, folder, run)
    second = second_opinion(results, run, folder)
    return Round(last.number + 1, policy, results, start_number, scores, pairs, replayed, drift, second_results=second)


def _sampling_and_pairing(
    rounds_so_far: Sequence[Round], start_number: int, articles: RoundArticles, run: Executor
) -> tuple[Stage, Artifact, Stage]:
    """Choose the stage that samples, the articles for it, and the stage that makes pairs.

    A round pairs the policy's summaries with each other, or with summaries by the base. In the second case the articles
    come with the base's summaries and their scores.
    """
    if start_number == 0 or run.setting("pairs.rejected") == "policy":
        return sample_summaries, articles.train, make_pairs
    if run.setting("articles.each_round") == "same":
        by_base = rounds_so_far[1].scores  # the base wrote for round 1
    else:
        links = (sample_summaries, articles.train, rounds_so_far[0].policy), (score_samples,)
        by_base = run.produce_chain(*links, into=f"{rounds_so_far[-1].next_folder}/base")[-1]
    assert by_base is not None, "a round that starts from a trained policy has a round before it"
    return sample_beside_base, by_base, make_pairs_with_base


def choose_start(rounds_so_far: Sequence[Round], run: Executor) -> tuple[int, Artifact]:
    """Choose the policy that the next round starts from: writer, reference and starting weights in one.

    Returns:
        the number of the round that trained it, and the policy.
    """
    latest = [each for each in rounds_so_far if each.trained][-1]
    if run.setting("start_from") == "latest":
        return latest.number, latest.policy
    if (assessment := rounds_so_far[-1].assessment) is not None:
        return assessment.champion, rounds_so_far[assessment.champion].policy
    # A dry run cannot know the champion before the evaluations are made. So all later artifacts count as not made.
    return latest.number, replace(latest.policy, record={"build": NOT_MADE})


def next_articles(articles: RoundArticles, folder: str, run: Executor) -> RoundArticles:
    """The articles of a later round: the same articles again, or new articles with questions.

    Raises:
        NoNewArticles: the setting asks for new articles, and the corpus has none.
    """
    if run.setting("articles.each_round") == "same":
        return articles
    new = run.produce(read_new_articles, *articles.read, into=folder)
    questions = run.produce(replace(ask_questions, splits=("train",)), new, into=folder)
    return replace(articles, train=questions, read=(*articles.read, new))


def judge_only(run: Executor) -> tuple[Artifact, Artifact]:
    """Run the judge without a policy: it asks questions, and scores the lead and other extracts of each article."""
    _, questions = _ask_about_articles(run)
    links = (lead_baseline, questions), (add_extracts,), (score_leads,)
    return questions, run.produce_chain(*links, into="judge-card")[-1]


def evaluate(exam: tuple[Stage, Artifact], policy: Artifact, folder: str, run: Executor) -> Artifact:
    """The policy's summaries of held-out articles, scored. `exam`: the stage that writes them, and the articles."""
    return run.produce_chain((*exam, policy), (score_heldout,), into=folder)[-1]


def second_opinion(results: Artifact, run: Executor, folder: str) -> Artifact | None:
    """The evaluation as the second judge scores it; None without a second judge."""
    return run.produce(score_second, results, into=folder) if run.setting("second_judge") else None


def _ask_about_articles(run: Executor) -> tuple[Artifact, Artifact]:
    articles = run.produce(read_articles if run.setting("articles.each_round") == "same" else read_first_articles)
    return articles, run.produce(ask_questions, articles)


def choose_exam(by_base: Artifact, heldout: Artifact, run: Executor) -> tuple[Stage, Artifact]:
    """Choose the stage that writes held-out summaries, and the articles for it.

    A judge that compares summaries needs the base's beside each, so the articles come with the base's evaluation.
    """
    assert isinstance(run.config, Config), "only a run of rounds has an exam"
    return (summarize_beside_base, by_base) if compares_with_base(run.config) else (summarize_heldout, heldout)


def _evaluate_external(name: str, by_base: Artifact, heldout: Artifact, run: Executor) -> Artifact:
    """Evaluate `compare.NAME`, a model at a server."""
    folder = f"compare/{name}"
    policy = run.produce(external_policy(name), into=folder)
    return evaluate(choose_exam(by_base, heldout, run), policy, folder, run)


# The end of a run


def evaluate_on_test(rounds_so_far: Sequence[Round], corpus: Artifact, run: Executor) -> tuple[Round, Round] | None:
    """Evaluate the base and the run's policy on the test articles, which nothing has read or chosen by before.

    The run's policy is the one that another round would start from. See `Round.test`.

    Args:
        rounds_so_far: all rounds of the run.
        corpus: the table with the test articles.

    Returns:
        None if the settings ask for no test, or if the run ends with the base.
    """
    number, policy = choose_start(rounds_so_far, run)
    if not run.setting("articles.test_fraction") or number == 0:
        return None
    articles = run.produce(_for_test(ask_questions), corpus, into=TEST)
    if run.setting("second_judge"):
        articles = run.produce(_for_test(ask_second_questions), articles, into=TEST)

    def tested(current: Round, folder: str, exam: Stage, rows: Artifact) -> Round:
        results = evaluate((_for_test(exam), rows), current.policy, folder, run)
        return replace(current, results=results, second_results=second_opinion(results, run, folder))

    base = tested(rounds_so_far[0], f"{TEST}/base", summarize_heldout_with_baselines, articles)
    last = replace(rounds_so_far[number], policy=policy)
    return base, tested(last, f"{TEST}/{round_folder(number)}", *choose_exam(base.results, articles, run))


def _for_test(stage: Stage) -> Stage:
    return replace(stage, splits=("test",))


def assess(rounds_so_far: Sequence[Round], run: Executor) -> Round:
    """The last of these rounds with its assessment, and with the reason if a rule of `stop` ends the run after it."""
    last = rounds_so_far[-1]
    if last.ended:
        return last
    assert isinstance(run.config, Config), "only a run of rounds is assessed"
    assessment = assess_round(rounds_so_far, run.config, run.ledger) if last.trained else last.assessment
    if assessment is None:
        return last
    figures = [each.assessment.figures for each in rounds_so_far[1:-1] if each.assessment] + [assessment.figures]
    reasons = stop_reasons(run.setting("stop"), [each for each in figures if each])
    ended = f"Stopped after round {last.number}: {'; '.join(reasons)}" if reasons else None
    return replace(last, assessment=assessment, ended=ended)


def _refuse_coin(scores: Artifact, references: Artifact, policy: str, run: Executor) -> None:
    """Stop before the first training if the score is shown to be a coin.

    A policy that was already trained on these pairs, or begun, is left alone: older versions had no such limit.

    Raises:
        UserError: less than `scores.min_same_winner` of the pairs would be confirmed by another set of questions.
    """
    least, earlier = run.setting("scores.min_same_winner"), run.ledger.find(policy)
    recipe = (earlier.record if earlier else run.ledger.begun(policy) or {}).get("recipe", {})
    is_begun = recipe.get("inputs", {}).get(references.address) == references.build
    if least is None or is_begun:
        return
    assert isinstance(run.config, Config), "only a run of rounds scores summaries"
    reliability = measure_table(scores, run.config, run.ledger)
    if reliability and (message := coin_message(reliability, least)):
        raise UserError(f"{scores.address}: {message}")


def _end_without_pairs(last: Round, pairs: Artifact, run: Executor) -> Round:
    """The result of a round without pairs. The run ends if the next round would have the same articles."""
    number = last.number + 1
    if run.setting("articles.each_round") == "same":
        reasons = ", ".join(f"{reason}: {count}" for reason, count in pairs.record["skipped"].items())
        why = "; ".join(filter(None, (reasons, describe_unusable(pairs.record["tally"]))))
        assert isinstance(run.config, Config), "only a run of rounds makes pairs"
        return _end_without_round(
            last, f"gave no pairs ({why or 'no summaries'})", why_no_pairs(pairs.record, run.config)
        )
    figures = RoundFigures(number, pair_yield=0.0)
    assessment = last.assessment and replace(last.assessment, figures=figures, drift=None, challenge=None)
    return replace(last, number=number, pairs=pairs, assessment=assessment, trained=False)


def _end_without_round(last: Round, why: str, remedy: str = "") -> Round:
    """The end of a run whose next round cannot train: the last policy again, with the reason and its remedy."""
    number = last.number + 1
    ended = f"Round {number} {why}. There is nothing to train on, so the run ends with the policy it has"
    ended = ". ".join(filter(None, (ended, remedy)))
    return replace(last, number=number, pairs=None, trained=False, ended=ended)

"""One round, on one page: the policy writes, is judged, learns from the judgement, and comes back to write again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from pipeline import stopping
from pipeline.articles import NothingNew, read, read_first, read_more
from pipeline.config import Config
from pipeline.drift import compare_with_base
from pipeline.evaluation import evaluate, evaluate_leads
from pipeline.exam import recite, sit, sit_base
from pipeline.pairs import pair, pair_with_base
from pipeline.policy import adopt, hire, train
from pipeline.questions import ask
from pipeline.references import anchor
from pipeline.replay import replay
from pipeline.scores import judge
from pipeline.second import ask_second, judge_second
from pipeline.stage import Stage
from pipeline.standing import Standing, appraise
from pipeline.stopping import Figures
from pipeline.storage.ledger import Artifact
from pipeline.summaries import write, write_beside
from pipeline.survey import UNMADE, Survey


@dataclass(frozen=True)
class Round:
    """Where the music is.

    Attributes:
        number: 0 is the base policy, before any training.
        policy: what the round trained.
        results: the evaluation of that policy on held-out articles.
        start: number of the round whose policy was this one's writer and starting weights.
        scores: the writer's judged summaries; None for round 0.
        pairs: of those summaries; None for round 0.
        replayed: `pairs` with pairs of earlier rounds among them; None without such.
        drift: how far the writer is from the base; None where it is the base.
        compared: of round 0, by name, evaluations of models that are not ours to train.
        second: `results` as a second judge scored them; None without one.
        learned: False: there was nothing to learn from, and policy and results are those of the round before.
        standing: what the round came to, and the champion; None while a survey cannot know it.
        ended: why the run stops here, though it may not have played all its rounds; None: it does not.
    """

    number: int
    policy: Artifact
    results: Artifact
    start: int = 0
    scores: Artifact | None = None
    pairs: Artifact | None = None
    replayed: Artifact | None = None
    drift: Artifact | None = None
    compared: Mapping[str, Artifact] = field(default_factory=dict)
    second: Artifact | None = None
    learned: bool = True
    standing: Standing | None = None
    ended: str | None = None

    @property
    def next_folder(self) -> str:
        return f"round-{self.number + 1:02d}"


@dataclass(frozen=True)
class Material:
    """What a round is about: articles with questions; for the exam, with a second judge's questions too.

    Attributes:
        taken: the tables of articles that this and earlier rounds have read.
    """

    questions: Artifact
    exam: Artifact
    taken: tuple[Artifact, ...]


def begin(run: Survey) -> tuple[Material, Round]:
    """Articles with questions, for the exam and for one round or all, and the base policy with its evaluation."""
    make = partial(run.produce, into="round-00")
    articles = run.produce(read if run.setting("articles.each_round") == "same" else read_first)
    questions = run.produce(ask, articles)
    exam = run.produce(ask_second, questions) if run.setting("second_judge") else questions
    policy = make(adopt)
    _, results = run.chain((sit_base, exam, policy), (evaluate,), into="round-00")
    compared = {name: _examine(name, exam, run) for name in run.setting("compare")}
    second = second_opinion(results, run, "round-00")
    base = Round(0, policy, results, compared=compared, second=second, standing=Standing())
    return Material(questions, exam, (articles,)), base


def _examine(name: str, exam: Artifact, run: Survey) -> Artifact:
    folder = f"compare/{name}"
    policy = run.produce(hire(name), into=folder)
    return run.chain((sit, exam, policy), (evaluate,), into=folder)[-1]


def audition(run: Survey) -> tuple[Artifact, Artifact]:
    """The judge alone, without a policy: its questions, and its answers to them from each article's lead."""
    articles = run.produce(read if run.setting("articles.each_round") == "same" else read_first)
    questions = run.produce(ask, articles)
    return questions, run.chain((recite, questions), (evaluate_leads,), into="judge-card")[-1]


def second_opinion(results: Artifact, run: Survey, folder: str) -> Artifact | None:
    """An evaluation scored by the second judge, if there is one."""
    return run.produce(judge_second, results, into=folder) if run.setting("second_judge") else None


def supply(material: Material, folder: str, run: Survey) -> Material:
    """The same articles again, or new ones with questions.

    Raises:
        NothingNew: new ones are wanted, and the corpus has none.
    """
    if run.setting("articles.each_round") == "same":
        return material
    articles = run.produce(read_more, *material.taken, into=folder)
    questions = run.produce(replace(ask, split="train"), articles, into=folder)
    return replace(material, questions=questions, taken=(*material.taken, articles))


def opening(played: Sequence[Round], run: Survey) -> tuple[int, Artifact]:
    """The policy that the next round starts from, with its round's number: writer, reference and weights in one."""
    latest = [one for one in played if one.learned][-1]
    if run.setting("start_from") == "latest":
        return latest.number, latest.policy
    if (standing := played[-1].standing) is not None:
        return standing.champion, played[standing.champion].policy
    # Whose turn it is, evaluations will tell that are to be made: what follows from it is to be made too.
    return latest.number, replace(latest.policy, record={"build": UNMADE})


def play(played: Sequence[Round], material: Material, run: Survey) -> Round:
    """One round of on-policy DPO."""
    current, base = played[-1], played[0].policy
    number, start = opening(played, run)
    make, stream = partial(run.produce, into=current.next_folder), partial(run.chain, into=current.next_folder)
    writing, articles, pairing = _plan(played, number, material, run)
    reference = [base] if number and run.setting("references.policy") == "base" else []
    behind = (reference or [start])[0]
    earlier = [one.pairs for one in played if one.pairs and one.learned] if run.setting("pairs.replay") else []
    links = ((writing, articles, start), (judge,), (pairing,))
    summaries, scores, pairs, *rest = stream(*links) if earlier else stream(*links, (anchor, behind))
    if not pairs.record["kept"]:
        return _fruitless(current, pairs, run)
    replayed = make(replay, pairs, *earlier) if earlier else None
    references = make(anchor, replayed, behind) if replayed else rest[0]
    drift = make(compare_with_base, summaries, start, base) if number else None
    policy = make(train, references, start, *reference)
    _, results = stream((sit, material.exam, policy), (evaluate,))
    second = second_opinion(results, run, current.next_folder)
    return Round(current.number + 1, policy, results, number, scores, pairs, replayed, drift, second=second)


def _plan(played: Sequence[Round], start: int, material: Material, run: Survey) -> tuple[Stage, Artifact, Stage]:
    """How the round writes, about what, and how it pairs: by itself, or against what the base wrote."""
    if start == 0 or run.setting("pairs.rejected") == "policy":
        return write, material.questions, pair
    if run.setting("articles.each_round") == "same":
        beside = played[1].scores  # whose writer was the base
    else:
        folder = f"{played[-1].next_folder}/base"
        beside = run.chain((write, material.questions, played[0].policy), (judge,), into=folder)[-1]
    assert beside is not None, "a round after the first has one before it"
    return write_beside, beside, pair_with_base


def _fruitless(current: Round, pairs: Artifact, run: Survey) -> Round:
    """A round without pairs: the end where the next would be about the same articles, and else just a poor round."""
    number = current.number + 1
    if run.setting("articles.each_round") == "same":
        return _unplayed(current, f"gave no pairs ({_reasons(pairs)})")
    figures = Figures(number, pair_yield=0.0)
    standing = current.standing and replace(current.standing, figures=figures, drift=None, challenge=None)
    return replace(current, number=number, pairs=pairs, standing=standing, learned=False)


def _unplayed(current: Round, why: str) -> Round:
    number = current.number + 1
    ended = f"Round {number} {why}: there was nothing to learn from, and the run ended with the policy it had"
    return replace(current, number=number, pairs=None, learned=False, ended=ended)


def _reasons(pairs: Artifact) -> str:
    return ", ".join(f"{reason}: {n}" for reason, n in pairs.record["skipped"].items()) or "no summaries"


def rounds(run: Survey) -> Iterator[Round]:
    """The base, then each round as it is finished. Ends early when a rule says stop, or there is nothing to learn."""
    material, base = begin(run)
    played = [base]
    yield base
    while (current := played[-1]).ended is None and current.number < run.setting("rounds"):
        try:
            material = material if current.number == 0 else supply(material, current.next_folder, run)
            played.append(judged([*played, play(played, material, run)], run))
        except NothingNew as nothing:
            played.append(_unplayed(current, f"was not played, because {nothing}"))
        yield played[-1]


def judged(played: Sequence[Round], run: Survey) -> Round:
    """The last of these rounds with its standing, and why the run stops there if a rule says so."""
    current = played[-1]
    if current.ended:
        return current
    assert isinstance(run.config, Config), "only rounds are judged"
    standing = appraise(played, run.config, run.ledger) if current.learned else current.standing
    if standing is None:
        return current
    history = [one.standing.figures for one in played[1:-1] if one.standing] + [standing.figures]
    said = stopping.reasons(run.setting("stop"), [figures for figures in history if figures])
    ended = f"Stopped after round {current.number}: {'; '.join(said)}" if said else None
    return replace(current, standing=standing, ended=ended)

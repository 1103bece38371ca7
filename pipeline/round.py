"""One round, on one page: the policy writes, is judged, learns from the judgement, and comes back to write again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from pipeline.articles import read
from pipeline.evaluation import evaluate, evaluate_leads
from pipeline.exam import recite, sit, sit_base
from pipeline.ledger import Artifact
from pipeline.pairs import pair
from pipeline.policy import adopt, hire, train
from pipeline.questions import ask
from pipeline.references import anchor
from pipeline.run import Survey
from pipeline.scores import judge
from pipeline.second import ask_second, judge_second
from pipeline.summaries import write


@dataclass(frozen=True)
class Round:
    """Where the music is.

    Attributes:
        number: 0 is the base policy, before any training.
        policy: writer, reference and starting weights of the next round, all in one.
        results: the evaluation of that policy on held-out articles.
        pairs: what the round learned from; None for round 0.
        compared: of round 0, by name, evaluations of models that are not ours to train.
        second: `results` as a second judge scored them; None without one.
    """

    number: int
    policy: Artifact
    results: Artifact
    pairs: Artifact | None = None
    compared: Mapping[str, Artifact] = field(default_factory=dict)
    second: Artifact | None = None

    @property
    def next_folder(self) -> str:
        return f"round-{self.number + 1:02d}"


@dataclass(frozen=True)
class Material:
    """What all rounds share: articles with questions; for the exam, with a second judge's questions too."""

    questions: Artifact
    exam: Artifact


def begin(run: Survey) -> tuple[Material, Round]:
    """Articles with questions, made once for all rounds, and the base policy with its evaluation."""
    make = partial(run.produce, into="round-00")
    articles = run.produce(read)
    questions = run.produce(ask, articles)
    exam = run.produce(ask_second, questions) if run.setting("second_judge") else questions
    policy = make(adopt)
    _, results = run.chain((sit_base, exam, policy), (evaluate,), into="round-00")
    compared = {name: _examine(name, exam, run) for name in run.setting("compare")}
    second = second_opinion(results, run, "round-00")
    return Material(questions, exam), Round(0, policy, results, compared=compared, second=second)


def _examine(name: str, exam: Artifact, run: Survey) -> Artifact:
    folder = f"compare/{name}"
    policy = run.produce(hire(name), into=folder)
    return run.chain((sit, exam, policy), (evaluate,), into=folder)[-1]


def audition(run: Survey) -> tuple[Artifact, Artifact]:
    """The judge alone, without a policy: its questions, and its answers to them from each article's lead."""
    questions = run.produce(ask, run.produce(read))
    return questions, run.chain((recite, questions), (evaluate_leads,), into="judge-card")[-1]


def second_opinion(results: Artifact, run: Survey, folder: str) -> Artifact | None:
    """An evaluation scored by the second judge, if there is one."""
    return run.produce(judge_second, results, into=folder) if run.setting("second_judge") else None


def play(current: Round, material: Material, run: Survey) -> Round:
    """One round of on-policy DPO.

    A round that gives no pairs has nothing to learn: its policy and results are those it began with.
    """
    make, stream = partial(run.produce, into=current.next_folder), partial(run.chain, into=current.next_folder)
    writer = current.policy
    _, _, pairs, references = stream((write, material.questions, writer), (judge,), (pair,), (anchor, writer))
    if not pairs.record["kept"]:
        return replace(current, number=current.number + 1, pairs=pairs)
    policy = make(train, references, writer)
    _, results = stream((sit, material.exam, policy), (evaluate,))
    second = second_opinion(results, run, current.next_folder)
    return Round(current.number + 1, policy, results, pairs, second=second)


def rounds(run: Survey) -> Iterator[Round]:
    """The base, then each round as it is finished. Ends early when a round gave no pairs."""
    material, current = begin(run)
    yield current
    for _ in range(run.setting("rounds")):
        before, current = current, play(current, material, run)
        yield current
        if current.policy is before.policy:
            return

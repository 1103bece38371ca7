"""Holds what one round hands to the next: its artifacts, and the assessment of its policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.evaluation.stopping.kl import KlEstimate
from pipeline.evaluation.stopping.rules import RoundFigures
from pipeline.evaluation.win_rate import WinRate
from pipeline.storage.ledger import Artifact
from pipeline.storage.run_folder import round_folder


@dataclass(frozen=True)
class Assessment:
    """How good a round's policy is, and which policy is champion after the round.

    All win rates are by the strict rule, on held-out articles.

    Attributes:
        champion: number of the round whose policy is champion; 0 is the base policy.
        beaten_round: number of the round whose policy was champion before; None if the base is champion.
        win_rate: the champion's win rate over the policy of `beaten_round`; None if the base is champion.
        figures: the round's figures for the stopping rules; None for round 0.
        drift: KL divergence between the policy that wrote the round's summaries and the base; None if the base wrote
            them, or if there was nothing to measure.
        challenge: win rate of the round's policy over the policy that was champion before the round; None if no article
            can be compared.
    """

    champion: int = 0
    beaten_round: int | None = None
    win_rate: WinRate | None = None
    figures: RoundFigures | None = None
    drift: KlEstimate | None = None
    challenge: WinRate | None = None


@dataclass(frozen=True)
class Round:
    """The artifacts of a round, and the assessment of its policy.

    Attributes:
        number: the round's number; 0 is the base policy, before any training.
        policy: the policy that the round trained.
        results: the evaluation of this policy on held-out articles.
        start: number of the round whose policy wrote this round's summaries. Training also starts from its weights.
        scores: the judged summaries; None for round 0.
        pairs: the pairs made from these summaries; None for round 0.
        replayed: `pairs` together with pairs of earlier rounds; None without replay.
        drift: log-probabilities of the summaries under the policy that wrote them and under the base, from which the KL
            divergence is estimated; None if the base wrote them.
        compared: evaluations of models at servers (setting `compare`) by name; only in round 0.
        second_results: `results` with the scores of the second judge; None without a second judge.
        trained: False if there was nothing to train on; `policy` and `results` are then those of the round before.
        assessment: the assessment of the policy, and the champion; None while a dry run cannot know it.
        ended: why the run stops early, after this round; None if it does not.
        test: round 0 and the round whose policy the run ends with, both with evaluations on the test articles in place
            of those on held-out articles. None before the end of a run, and without test articles.
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
    second_results: Artifact | None = None
    trained: bool = True
    assessment: Assessment | None = None
    ended: str | None = None
    test: "tuple[Round, Round] | None" = None

    @property
    def next_folder(self) -> str:
        """The folder of the next round's artifacts."""
        return round_folder(self.number + 1)

"""What one round hands to the next: its artifacts, and the assessment of its policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.evaluation.kl import KlEstimate
from pipeline.evaluation.stopping import RoundFigures
from pipeline.evaluation.win_rate import WinRate
from pipeline.storage.ledger import Artifact
from pipeline.storage.run_folder import round_folder


@dataclass(frozen=True)
class Assessment:
    """How a round's policy did, and which policy is champion after the round.

    All win rates are by the strict rule, on held-out articles.

    Attributes:
        champion: number of the round whose policy is champion; 0 is the base policy.
        beat: number of the round whose policy was champion before it; None if the base is champion.
        won: the champion's win rate over that policy; None if the base is champion.
        figures: the round's figures for the stopping rules; None for round 0.
        drift: KL divergence from the base of the policy that wrote the round's summaries; None if that is the base, or
            if there was nothing to measure.
        challenge: win rate of the round's policy over the champion of that time; None if no article can be compared.
    """

    champion: int = 0
    beat: int | None = None
    won: WinRate | None = None
    figures: RoundFigures | None = None
    drift: KlEstimate | None = None
    challenge: WinRate | None = None


@dataclass(frozen=True)
class Round:
    """The artifacts of a round, and what is known after it.

    Attributes:
        number: the round's number; 0 is the base policy, before any training.
        policy: the policy that the round trained.
        results: the evaluation of this policy on held-out articles.
        start: number of the round whose policy wrote this round's summaries and gave its starting weights.
        scores: the judged summaries; None for round 0.
        pairs: the pairs made from these summaries; None for round 0.
        replayed: `pairs` together with pairs of earlier rounds; None without replay.
        drift: log-probabilities under the writer and under the base, for its KL; None if the writer is the base.
        compared: evaluations of models at servers (setting `compare`) by name; only in round 0.
        second_results: `results` with the scores of the second judge; None without a second judge.
        trained: False if there was nothing to train on; `policy` and `results` are then those of the round before.
        assessment: how the policy did, and the champion; None while a dry run cannot know it.
        ended: why the run stops after this round, before it has played all its rounds; None if it does not.
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

    @property
    def next_folder(self) -> str:
        """The folder of the next round's artifacts."""
        return round_folder(self.number + 1)

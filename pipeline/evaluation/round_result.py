"""What a round came to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.evaluation.kl import KlEstimate
from pipeline.evaluation.stopping import RoundFigures
from pipeline.evaluation.win_rate import WinRate
from pipeline.storage.ledger import Artifact


@dataclass(frozen=True)
class Assessment:
    """After a round. Win rates are by the strict rule, on held-out articles.

    Attributes:
        champion: number of the round whose policy it is; 0: the base.
        beat: number of the champion that it took the place of; None for the base.
        won: its win rate against that one; None for the base.
        figures: what the round came to; None for round 0.
        drift: of the policy that wrote for the round; None where that is the base, or nothing could be measured.
        challenge: the win rate of the round's policy against the champion of the time; None where nothing compares.
    """

    champion: int = 0
    beat: int | None = None
    won: WinRate | None = None
    figures: RoundFigures | None = None
    drift: KlEstimate | None = None
    challenge: WinRate | None = None


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
        assessment: what the round came to, and the champion; None while a dry run cannot know it.
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
    assessment: Assessment | None = None
    ended: str | None = None

    @property
    def next_folder(self) -> str:
        return f"round-{self.number + 1:02d}"

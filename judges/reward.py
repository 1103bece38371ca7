"""A judge with a reward model: a sequence-classification model that gives one number for a conversation.

The conversation is the policy's own: its instruction with the article, and the summary as the reply. Reward models are
trained on such conversations with a Bradley-Terry loss (for example Skywork-Reward, arXiv 2410.18451). The engine is
`pipeline/judging/engines/reward.py`.
"""

from collections.abc import Sequence

from judges.base import Judgement, Prompt, Sample, ScoringJudge, fill, user


class RewardJudge(ScoringJudge):
    """Gives each summary the logit of a reward model. There is no scale: only differences mean something.

    Args:
        seed: not used: nothing is drawn.
        instruction: what the user asks, with {article}. The pipeline passes the policy's instruction if it is not set.

    Raises:
        ValueError: the instruction has no {article}.
    """

    engine = "reward"
    reorders = False

    def __init__(self, seed: int = 0, instruction: str = "{article}"):
        if "{article}" not in instruction:
            raise ValueError("instruction must contain {article}, the place of the article")
        self.instruction = instruction

    def ask_scores(self, article: str, summaries: Sequence[str], order: int = 0) -> list[Prompt]:
        question = user(fill(self.instruction, {"article": article}))
        return [
            Prompt(
                (*question, {"role": "assistant", "content": summary}),
                1,
                quotes=tuple(filter(None, (article, summary))),
            )
            for summary in summaries
        ]

    def read_scores(
        self, article: str, summaries: Sequence[str], replies: Sequence[Sequence[Sample]], order: int = 0
    ) -> list[Judgement]:
        return [_read(samples) for samples in replies]


def _read(samples: Sequence[Sample]) -> Judgement:
    try:
        value = float(samples[0].text) if samples else None
    except ValueError:
        value = None
    if value is None or not abs(value) < float("inf"):
        return Judgement(None, reason="no reward")
    return Judgement(value)

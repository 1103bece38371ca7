"""A judge with a reward model: a sequence-classification model that gives one number for a conversation.

The conversation is the policy's own: its instruction with the article, and the summary as the reply. Reward models are
trained on such conversations with a Bradley-Terry loss (for example Skywork-Reward, arXiv 2410.18451). The engine is
`pipeline/judging/engines/reward.py`.
"""

from collections.abc import Sequence

from judges.base import Judgement, Prompt, Sample, ScoringJudge
from judges.text.conversations import Instruction, fill_instruction, read_instruction


class RewardJudge(ScoringJudge):
    """Gives each summary the logit of a reward model. There is no scale: only differences mean something.

    Args:
        seed: not used: nothing is drawn.
        instruction: what the user asks, with {article}, as a text or as messages: see `read_instruction`. The pipeline
            passes the policy's instruction if it is not set.
        merge_system: put the instruction's system message into the first user message, because the model's chat
            template has no system role.

    Raises:
        ValueError: the instruction has no {article}, or there is no system message to merge.
    """

    engine = "reward"
    reorders = False

    def __init__(self, seed: int = 0, instruction: Instruction = "{article}", merge_system: bool = False):
        self.messages = read_instruction(instruction, merge=merge_system)

    def ask_scores(self, article: str, summaries: Sequence[str], order: int = 0) -> list[Prompt]:
        question = fill_instruction(self.messages, article)
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

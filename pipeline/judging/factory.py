"""Makes the judge that the settings name."""

from dataclasses import replace

from judges.cloze import ClozeJudge
from judges.mcq import McqJudge
from judges.prompts import WORDINGS
from pipeline.config.run import JudgeSettings


def make_judge(settings: JudgeSettings, seed: int) -> McqJudge | ClozeJudge:
    """The judge that the settings name."""
    if settings.kind == "cloze":
        return ClozeJudge(questions=settings.questions, options=settings.options, seed=seed)
    wording = WORDINGS[settings.wording]
    return McqJudge(
        questions=settings.questions,
        options=settings.options,
        seed=seed,
        wording=replace(
            wording,
            questions_prompt=settings.questions_prompt or wording.questions_prompt,
            answers_prompt=settings.answers_prompt or wording.answers_prompt,
        ),
        question_temperature=settings.question_temperature,
        logprobs=settings.logprobs,
    )

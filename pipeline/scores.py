"""Scores: each summary's questions are answered from that summary alone.

Unread is not wrong: an answer that cannot be read is kept apart, and too many of them stop the run. Left out: what is
better (`preference.py`).
"""

from functools import partial

from ray.data import Dataset

from pipeline.config.run import JudgeSettings
from pipeline.inference.pool import EnginePool
from pipeline.judging.factory import make_judge
from pipeline.judging.scoring import score_summaries
from pipeline.stage import stage


@stage(
    "scores",
    version=3,
    settings=("judge", "seed"),
    contents=("judge.model",),
    uses=("judge_engine",),
    writes=("scores",),
    limits=("scores.max_unread",),
)
def judge(rows: Dataset, *, judge: JudgeSettings, seed: int, judge_engine: EnginePool) -> Dataset:
    """Add `scores`, aligned with `summaries`."""
    return judge_engine.map(rows, partial(score_summaries, make_judge(judge, seed)), ("scores",))

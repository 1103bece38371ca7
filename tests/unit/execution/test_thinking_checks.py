"""Before a run: whether each model can think as the settings say, and what `rondo plan` counts for thoughts."""

import json
from collections import Counter

import pytest

from judges.base import Judgement
from pipeline.config import UserError
from pipeline.config.base import Thinking
from pipeline.config.loader import load_config
from pipeline.execution.planning.prompt_lengths import measure_prompts
from pipeline.execution.planning.stage_counts import StageCounts, StageEstimate
from pipeline.execution.planning.throughput import StageThroughput, Throughput
from pipeline.execution.preflight import check_judges, check_thinking
from pipeline.stages.summaries import sample_summaries, summarize_heldout
from tests.helpers.paths import DEMO, JUDGE_MODEL, POLICY_MODEL
from tests.helpers.tiny_models import ALWAYS_OPEN, save_thinking_model

ROOM = "policy.max_model_len=4096"


class LikelihoodScores:
    engine = "likelihood"

    def __init__(self, seed):
        pass

    def ask_scores(self, article, summaries, order=0):
        return []

    def read_scores(self, article, summaries, replies, order=0):
        return [Judgement(0.0) for _ in summaries]


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory):
    """A model that always thinks."""
    return str(save_thinking_model(tmp_path_factory.mktemp("reasoner"), ALWAYS_OPEN))


def demo(*overrides):
    models = [f"policy.model={POLICY_MODEL}", f"judge.model={JUDGE_MODEL}"]
    return load_config(DEMO, [*models, *overrides])


def test_models_that_cannot_stop_thinking_are_refused_before_anything_starts(reasoner):
    check_thinking("policy", reasoner, Thinking())
    with pytest.raises(UserError, match="^policy.model is .* cannot be told to stop thinking"):
        check_thinking("policy", reasoner, None)
    with pytest.raises(UserError, match="^second_judge.model is .* set second_judge.thinking.budget"):
        check_judges(demo(f"second_judge={{model: {reasoner}}}"))
    check_judges(demo(f"second_judge={{model: {reasoner}, thinking: {{budget: 10}}}}"))
    check_judges(demo())


def test_an_adapter_is_checked_by_the_tokenizer_of_its_base(tmp_path, reasoner):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "base_model_name_or_path": reasoner}))
    with pytest.raises(UserError, match="cannot be told to stop thinking"):
        check_thinking("policy", str(tmp_path), None)


def test_a_model_at_a_uri_is_checked_where_its_engine_starts():
    check_thinking("policy", "s3://no-such-bucket/model", None)


def test_a_judge_that_writes_no_text_cannot_think(reasoner):
    kind = f"{__name__}:LikelihoodScores"
    with pytest.raises(UserError, match=r"judge.thinking is set, and judge.kind is .* writes no text .*: remove it"):
        check_judges(demo(f"judge={{kind: '{kind}', model: {JUDGE_MODEL}, thinking: {{}}}}"), ["judge"])
    with pytest.raises(UserError, match="cannot be told to stop thinking .* use another model$"):
        check_judges(demo(f"judge={{kind: '{kind}', model: {reasoner}}}"), ["judge"])


class NoRecords(Throughput):
    def __init__(self, measured=()):
        self.measured = dict(measured)

    def of(self, stage):
        return None


def test_a_plan_counts_the_budget_of_thoughts(reasoner):
    settings = demo(ROOM, f"policy.model={reasoner}", "policy.thinking.budget=1000")
    plain = demo(ROOM)
    lengths = measure_prompts(settings, ["Ana leads Northwind."], [])
    counts = StageCounts(settings, lengths, NoRecords())
    estimate = StageEstimate("summaries", "to make")
    for stage, expected in ((sample_summaries, 8 * (160 + 1000)), (summarize_heldout, 160 + 1000)):
        tally = counts.estimate(stage, [], 3, {}, estimate)[1]
        assert tally["tokens_out"] == 3 * expected
    assert counts._written_tokens(estimate, thoughts=False) == 160
    assert lengths.judge == measure_prompts(plain, ["Ana leads Northwind."], []).judge


def test_a_judge_that_thinks_has_longer_replies(reasoner):
    plain = measure_prompts(demo(), ["Ana leads Northwind."], []).judge
    judged = demo(f"judge.model={reasoner}", "judge.thinking.budget=500", "judge.max_model_len=4096")
    thinking = measure_prompts(judged, ["Ana leads Northwind."], []).judge
    assert thinking.answer_limit == plain.answer_limit + 500
    assert thinking.question_limit == plain.question_limit + 500


def test_a_measured_thought_is_no_part_of_what_a_judge_reads(reasoner):
    settings = demo(ROOM, f"policy.model={reasoner}", "policy.thinking.budget=1000")
    tally = Counter({"summaries": 10, "tokens_out": 900, "tokens_thought": 700})
    measured = StageThroughput(records=1, rows=5, kept=5, tally=tally)
    counts = StageCounts(settings, measure_prompts(settings, ["Ana."], []), NoRecords({("summaries", ""): measured}))
    estimate = StageEstimate("summaries", "to make")
    assert counts._written_tokens(estimate, thoughts=False) == 20
    assert counts._written_tokens(estimate) == 90
    assert not estimate.at_most

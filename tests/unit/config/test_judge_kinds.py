"""Evaluations by judges of several kinds: the rules fit the scores, and values of all tables can be compared."""

import json
from types import SimpleNamespace

import pytest

from pipeline.config import UserError
from pipeline.config.judging import Pairs
from pipeline.config.loader import apply_overrides, parse_config
from pipeline.evaluation.comparison import CountingSettings, compare_writers, describe_writer, single_summary_rows
from pipeline.evaluation.report import examples
from pipeline.evaluation.report.metrics import compare_by_second_judge
from pipeline.evaluation.report.plot import draw_plot
from pipeline.evaluation.report.tables import result_tables
from pipeline.execution.planning.gpu_memory import PackedRow
from pipeline.execution.preflight import check_preference, memory_needs
from pipeline.execution.recipe import compare_recipes, stage_recipe
from pipeline.judging.factory import make_judge
from pipeline.round import rounds
from pipeline.stages.scores import score_heldout
from pipeline.storage.ledger import Ledger
from pipeline.storage.model_files.shapes import ModelShapes
from tests.helpers.scripted_rounds import ScriptedRounds

RUBRIC = {"kind": "rubric", "model": "m"}
PAIRWISE = {"kind": "pairwise", "model": "m"}
JURY = {"kind": "jury", "members": {"a": {"kind": "cloze"}, "b": RUBRIC | {"weight": 2}}}


def config(judge=None, second=None, **more):
    raw = {"run": "r", "articles": {"path": "a.jsonl"}, "policy": {"model": "p"}, "judge": judge or {"kind": "cloze"}}
    return parse_config(raw | ({"second_judge": second} if second else {}) | more)


def row(article, writer, words=10, **score):
    score = {"answers": [], "correct": 0, "unread": 0, "invalid_chars": 0, "words": words} | score
    return {
        "article_id": article,
        "article": "some text",
        "writer": writer,
        "scores": [score],
        "summaries": [{"text": "A summary.", "finish_reason": "stop"}],
    }


def test_a_scoring_second_judge_is_not_counted_by_right_answers():
    """By accuracy_then_length all its scores would tie, because none has a right answer; or length would decide."""
    counting = CountingSettings.from_config(config(second=RUBRIC))
    assert (counting.judge, counting.second_judge) == ("answers", "value")
    ours = single_summary_rows([row(i, "new", 50, answers=["A"] * 5, correct=4) for i in "abcd"], 0)
    theirs = single_summary_rows([row(i, "old", 20, answers=["A"] * 5, correct=2) for i in "abcd"], 0)
    second = {(i, "new"): row(i, "new", 50, value=0.75)["scores"] for i in "abcd"}
    second |= {(i, "old"): row(i, "old", 20, value=0.5)["scores"] for i in "abcd"}
    result = compare_by_second_judge(ours, theirs, counting, second)
    assert result["strict"]["rate"]["wins"] == 4 and result["strict"]["agreement"]["same_winner"] == 1.0
    assert "reference" not in result, "by that rule the shorter would win every time"


def test_a_margin_is_not_applied_to_a_second_judge_of_another_scale():
    """No rubric's scores differ by more than 1, and no lead in votes is larger."""
    pairs = {"preference": "higher_score", "min_margin": 1}
    ours, theirs = (
        single_summary_rows([row(i, who, answers=["A"] * 5, correct=n, value=n) for i in "ab"], 0)
        for who, n in (("new", 4), ("old", 2))
    )
    second = {
        (i, who): row(i, who, value=value, items=[value], weights=[1.0])["scores"]
        for i in "ab"
        for who, value in (("new", 0.75), ("old", 0.5))
    }
    for kind in (RUBRIC, JURY):
        counting = CountingSettings.from_config(config(second=kind, pairs=pairs))
        assert compare_by_second_judge(ours, theirs, counting, second)["strict"]["rate"]["wins"] == 2
    alike = CountingSettings.from_config(config(second={"kind": "cloze"}, pairs=pairs))
    assert alike.second_pairs.min_margin == 1
    other = {"kind": "likelihood", "model": "m"}
    assert CountingSettings.from_config(config(judge=other, second=RUBRIC, pairs=pairs)).second_pairs.min_margin == 0


def test_an_exam_as_second_judge_of_a_scoring_judge():
    counting = CountingSettings.from_config(config(judge=RUBRIC, second={"kind": "cloze"}))
    assert set(counting.rules) == {"strict"}
    ours, theirs = (single_summary_rows([row(i, who, value=v) for i in "ab"], 0) for who, v in (("n", 1.0), ("o", 0.5)))
    second = {(i, "n"): row(i, "n", answers=["A"] * 4, correct=1, value=1.0)["scores"] for i in "ab"}
    second |= {(i, "o"): row(i, "o", answers=["A"] * 4, correct=3, value=3.0)["scores"] for i in "ab"}
    result = compare_by_second_judge(ours, theirs, counting, second)
    assert list(result) == ["strict"] and result["strict"]["rate"]["losses"] == 2
    assert result["strict"]["agreement"]["same_winner"] == 0.0


def test_a_jury_votes_in_the_evaluation():
    settings = config(judge=JURY)
    assert settings.pairs.preference == "majority_vote"
    counting = CountingSettings.from_config(settings)
    ours = [row(i, "n", items=[0.2, 0.8], weights=[1.0, 2.0], value=0.6) for i in "ab"]
    theirs = [row(i, "o", items=[0.9, 0.7], weights=[1.0, 2.0], value=0.77) for i in "ab"]
    rates = compare_writers(ours, theirs, counting)
    assert list(rates) == ["strict"] and rates["strict"].wins == 2, "by votes, not by the mean value"


def test_figures_and_tables_of_a_scoring_judge_have_no_accuracy():
    counting = CountingSettings.from_config(config(judge=RUBRIC))
    figures = describe_writer([row("a", "n", value=0.5), row("b", "n", value=1.0)], counting)
    assert figures["value_mean"] == 0.75 and "accuracy" not in figures
    rates = {"strict": compare_writers([row("a", "n", value=1.0)], [row("a", "o", value=0.5)], counting)["strict"]}
    entry = figures | {"round": 1, "previous": 0, "vs_base": {"strict": rates["strict"].as_dict()}}
    metrics = {"threshold": 3, "confidence": 0.95, "base": figures, "rounds": [entry], "compared": {}}
    metrics |= {"baselines": {"lead": figures}, "test": None}
    summary, _ = result_tables(metrics)
    labels = [line[0] for line in summary]
    assert "judge's score, mean" in labels and not any("accuracy" in label for label in labels)
    assert draw_plot(metrics, [("base", figures), ("round 1", entry)]).startswith(b"\x89PNG")


# Rounds


def scripted(tmp_path, judge, second=None):
    raw = {"run": str(tmp_path), "rounds": 2, "articles": {"path": "a.jsonl"}, "policy": {"model": "m"}}
    raw |= {"judge": judge} | ({"second_judge": second} if second else {})
    return ScriptedRounds(parse_config(raw), Ledger(str(tmp_path)), [50, 60, 70], drift=[0.1])


@pytest.mark.parametrize(
    ("judge", "second"),
    [
        (PAIRWISE, None),
        ({"kind": "cloze"}, PAIRWISE),
        ({"kind": "jury", "members": {"a": PAIRWISE, "b": RUBRIC}}, None),
    ],
)
def test_the_exam_has_the_bases_summaries_beside_it_if_a_judge_compares(tmp_path, monkeypatch, judge, second):
    monkeypatch.setattr("pipeline.round.assess", lambda rounds_so_far, run: rounds_so_far[-1])
    run = scripted(tmp_path, judge, second)
    list(rounds(run))
    assert run.made["round-00/exam"][0] in ("questions", "second_questions")
    for number in (1, 2):
        assert run.made[f"round-{number:02d}/exam"][0] == "round-00/evaluation"


def test_other_judges_have_the_exam_that_they_always_had(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.round.assess", lambda rounds_so_far, run: rounds_so_far[-1])
    run = scripted(tmp_path, RUBRIC)
    list(rounds(run))
    assert run.made["round-01/exam"][0] == "questions"


# Recipes and checks before a run


def test_a_members_code_and_model_are_in_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_score.py").write_text("def good(article, summary): return 1.0\n")
    rule = {"kind": "verifiable", "settings": {"function": "my_score:good"}}
    alone = stage_recipe(score_heldout, [], config(judge=rule))
    assert len(alone["contents"]["judge.function"]) == 16 and alone["contents"]["judge.members"] is None
    jury = {"kind": "jury", "members": {"rule": rule, "names": {"kind": "cloze"}}}
    recipe = stage_recipe(score_heldout, [], config(judge=jury))
    assert recipe["contents"]["judge.members"] == {
        "rule": {"model": None, "kind": None, "function": alone["contents"]["judge.function"]}
    }
    heavier = config(judge=jury | {"members": jury["members"] | {"names": {"kind": "cloze", "weight": 2}}})
    changes = compare_recipes(recipe, stage_recipe(score_heldout, [], heavier), heavier)
    assert [str(change) for change in changes] == ["settings.judge.members.names.weight: was 1.0, now 2.0"]


def test_an_old_recipe_without_the_new_settings_is_unchanged():
    settings = config()
    now = stage_recipe(score_heldout, [], settings)
    old = json.loads(json.dumps(now))
    del old["settings"]["judge"]["members"], old["contents"]["judge.members"], old["contents"]["judge.function"]
    assert compare_recipes(old, now, settings) == []


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"kind": "jury"}, "judge.members has none: name two judges or more"),
        ({"kind": "jury", "members": {"a": JURY, "b": RUBRIC}}, "judge.members.a.kind is jury"),
        ({"kind": "jury", "members": JURY["members"], "model": "m"}, "whose members have the models"),
        ({"kind": "cloze", "members": JURY["members"]}, "judge.members is set, and judge.kind is cloze"),
        ({"kind": "verifiable"}, "judge.settings.function is None: it should be module:function"),
        ({"kind": "verifiable", "settings": {"function": "a:b", "x": 1}}, "judge.settings has no 'x'"),
        ({"kind": "verifiable", "settings": {"function": "a:b"}, "model": "m"}, "which needs no model"),
        ({"kind": "rubric"}, "judge.kind is rubric and judge.model is missing"),
        (RUBRIC | {"questions": 3}, "judge.questions is set, and judge.kind is rubric, which asks no questions"),
        ({"kind": "reward", "model": "m", "served": {"server": "s"}}, "whose model runs here and not at a server"),
    ],
)
def test_wrong_settings_of_kinds_are_one_line(judge, message):
    with pytest.raises(UserError) as refused:
        config(judge=judge)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("judge", "preference", "message"),
    [
        (RUBRIC, "accuracy_only", "which asks no questions: remove it, or set it to higher_score"),
        (JURY, "higher_score", "which has no value of its own: remove it, or set it to majority_vote"),
        ({"kind": "cloze"}, "majority_vote", "which counts the votes of a jury, and judge.kind is cloze: remove it"),
    ],
)
def test_a_preference_must_fit_the_judge(judge, preference, message):
    with pytest.raises(UserError) as refused:
        config(judge=judge, pairs={"preference": preference})
    assert message in str(refused.value)


SERVER = {"kind": "mcq", "model": "m"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge": RUBRIC, "pairs": {"weighting": "margin"}}, "judge.kind is rubric, which has none: set pairs.weight"),
        ({"judge": JURY, "pairs": {"weighting": "margin"}}, "judge.kind is jury, which has none: set pairs.weighting"),
        ({"judge": RUBRIC, "pairs": {"threshold": 1}}, "remove it (on the command line pairs.threshold=3)"),
        ({"judge": JURY, "pairs": {"min_margin": 1}}, "no lead is larger than 1, so no summary could win"),
        ({"pairs": {"min_margin": 1}}, "pairs.preference is accuracy_then_length, which has no margin: set it to 0"),
        ({"judge": RUBRIC, "questions": {"draft": 8}}, "no judge asks questions: remove it (on the command line"),
        ({"judge": RUBRIC, "questions": {"more_checks": ["no_overlap"]}}, "no_overlap, and no judge asks questions"),
        ({"judge": JURY, "questions": {"more_checks": ["single_key"]}}, "has single_key, and no judge can do it"),
    ],
)
def test_a_setting_that_would_do_nothing_for_the_kind_is_refused(settings, message):
    with pytest.raises(UserError) as refused:
        config(**settings)
    assert message in str(refused.value)


def test_a_model_that_runs_on_one_gpu_reserves_no_more():
    likelihood, two = {"kind": "likelihood", "model": "m"}, {"judge": {"gpus_per_replica": 2}}
    with pytest.raises(UserError, match="gpus_per_replica is 2, and judge.kind is likelihood, whose model runs on one"):
        config(judge=likelihood, hardware=two)
    assert config(judge=likelihood, second=RUBRIC, hardware=two).hardware.judge.gpus_per_replica == 2
    assert config(judge=likelihood, hardware={"judge": {"gpus_per_replica": 1}}).judge.kind == "likelihood"


def test_a_setting_that_one_of_the_judges_uses_is_not_refused():
    assert config(judge=JURY, questions={"more_checks": ["no_overlap"], "draft": 8}).questions.draft == 8
    assert config(judge=RUBRIC, second=SERVER, questions={"more_checks": ["single_key"]}).questions.more_checks
    assert config(judge=RUBRIC, pairs={"threshold": 1, "preference": "my:rule"}).pairs.threshold == 1
    assert config(pairs={"threshold": 1, "min_margin": 1, "preference": "higher_score"}).pairs.min_margin == 1


@pytest.mark.parametrize("section", ["judge", "second_judge"])
@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"kind": "rubric"}, "S.kind is rubric and S.model is missing: name a model, or use S.kind=cloze"),
        (RUBRIC | {"questions": 7}, "S.questions is set, and S.kind is rubric, which asks no questions: remove it"),
        (RUBRIC | {"questions": 7}, "(on the command line S.questions=5)"),
        (RUBRIC | {"thinking": {"tags": ["x", "x"]}}, "S.thinking.tags is ['x', 'x']: it should be two texts"),
        (SERVER | {"questions": 3}, "S.questions is only 3: it would never vote"),
    ],
)
def test_a_message_names_the_member_of_a_jury(section, member, message):
    jury = {"kind": "jury", "members": {"a": member, "b": RUBRIC}}
    with pytest.raises(UserError) as refused:
        config(judge=jury) if section == "judge" else config(second=jury)
    assert message.replace("S.", f"{section}.members.a.") in str(refused.value)


def test_a_jury_says_where_a_setting_of_its_members_belongs():
    with pytest.raises(
        UserError, match=r"judge.dtype is set, .* set it in judge.members \(on the command line judge.d"
    ):
        config(judge=JURY | {"dtype": "float32"})


def test_a_margin_in_standard_errors_needs_parts_of_one_scale():
    with pytest.raises(UserError, match="judge.kind is jury, whose members have scales of their own: use pairs.min_m"):
        config(judge=JURY, pairs={"min_standard_errors": 1})
    with pytest.raises(UserError, match="judge.kind is reward, whose score has no parts: use pairs.min_margin"):
        config(judge={"kind": "reward", "model": "m"}, pairs={"min_standard_errors": 1})
    assert config(judge=RUBRIC, pairs={"min_standard_errors": 1}).pairs.preference == "higher_score"


def test_a_scoring_class_of_the_users_needs_a_preference_that_fits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_scorer.py").write_text(
        "class Scorer:\n    engine = 'none'\n    def __init__(self, seed): pass\n"
        "    def ask_scores(self, article, summaries, order=0): return []\n"
        "    def read_scores(self, article, summaries, replies, order=0): return []\n"
    )
    settings = config(judge={"kind": "my_scorer:Scorer"})
    with pytest.raises(UserError, match="my_scorer:Scorer, which gives scores: set it to higher_score"):
        check_preference(settings)
    check_preference(settings.model_copy(update={"pairs": Pairs(preference="higher_score")}))


def test_scores_that_compare_samples_of_one_policy_cannot_pair_them_with_the_bases():
    for judge in (PAIRWISE, {"kind": "jury", "members": {"a": PAIRWISE, "b": RUBRIC}}):
        with pytest.raises(UserError, match="pairs.rejected is base, and .*: set pairs.rejected to policy"):
            check_preference(config(judge=judge, pairs={"rejected": "base"}))
    check_preference(config(judge=RUBRIC, pairs={"rejected": "base"}))


def test_a_reward_model_reads_the_policys_instruction():
    policy = {"model": "p", "instruction": "Sum up: {article}"}
    reward = {"kind": "reward", "model": "m"}
    assert config(judge=reward, policy=policy).judge.settings == {"instruction": "Sum up: {article}"}
    own = reward | {"settings": {"instruction": "{article}"}}
    assert config(judge=own, policy=policy).judge.settings == {"instruction": "{article}"}
    jury = config(judge={"kind": "jury", "members": {"a": reward, "b": RUBRIC}}, policy=policy).judge
    assert jury.members["a"].settings == {"instruction": "Sum up: {article}"}
    assert "{article}" in config(judge=reward).judge.settings["instruction"]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{article}"}]
    judge = config(judge=reward, policy={"model": "p", "instruction": messages}).judge
    (prompt,) = make_judge(judge, 0).ask_scores("Text.", ["Sum."])
    assert [message["content"] for message in prompt.messages] == ["Be brief.", "Text.", "Sum."]
    merging = judge.model_copy(update={"settings": {"instruction": messages, "merge_system": True}})
    (prompt,) = make_judge(merging, 0).ask_scores("Text.", ["Sum."])
    assert [message["content"] for message in prompt.messages] == ["Be brief.\n\nText.", "Sum."]


def test_a_judge_that_scores_texts_needs_no_key_value_cache(monkeypatch):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 1, "max_position_embeddings": 10}
    shape = ModelShapes("m", {"weight": (10, 100)}, sizes)
    monkeypatch.setattr("pipeline.execution.preflight.shapes.read_shapes", lambda name: shape)
    jury = {"kind": "jury", "members": {"a": {"kind": "reward", "model": "m"}, "b": RUBRIC}}
    needs, _ = memory_needs(config(judge=jury), None, PackedRow(0, 0), {"judge_engine"})
    assert [(need.use, need.token) for need in needs] == [("judge.members.a", 0), ("judge.members.b", 4)]


def test_members_of_a_jury_share_what_one_judge_would_take():
    """Otherwise Ray Data would wait for ever for the CPUs or GPUs of the last member."""
    jury = {"kind": "jury", "members": {"a": {"kind": "reward", "model": "m"}, "b": RUBRIC, "c": {"kind": "cloze"}}}
    place = {"gpus_per_replica": 1, "cpus_per_replica": 2, "gpu_memory_utilization": 0.8}
    settings = config(judge=jury, hardware={"judge": place})
    shares = [settings.judge_hardware(f"judge.members.{name}") for name in "abc"]
    assert [share.gpus_per_replica for share in shares] == [0.5, 0.5, 0]
    assert [share.cpus_per_replica for share in shares] == [0.66] * 3
    assert shares[0].gpu_memory_utilization == 0.4
    assert config(judge=RUBRIC, hardware={"judge": place}).judge_hardware("judge").gpus_per_replica == 1
    with pytest.raises(UserError, match="judge.members has 2 models that run here, which share these GPUs: set it to"):
        config(judge=jury, hardware={"judge": {"gpus_per_replica": 3}})


def test_servers_of_members_are_known(monkeypatch):
    served = {"kind": "rubric", "model": "m", "served": {"server": "s"}}
    jury = {"kind": "jury", "members": {"a": served, "b": {"kind": "cloze"}}}
    with pytest.raises(UserError, match="judge.members.a.served.server is 's', and hardware.servers has none"):
        config(judge=jury)
    settings = config(judge=jury, hardware={"servers": {"s": {"base_url": "http://127.0.0.1:1/v1"}}})
    checked = []
    monkeypatch.setattr(
        "pipeline.inference.server.server_check.check_server", lambda section, *rest: checked.append(section)
    )
    from pipeline.execution.preflight import check_servers

    check_servers(settings, {"round-01/scores": score_heldout})
    assert checked == ["judge.members.a"]


def test_settings_of_a_member_can_be_set_on_the_command_line():
    raw = {"run": "r", "articles": {"path": "a.jsonl"}, "policy": {"model": "p"}, "judge": JURY}
    settings = parse_config(apply_overrides(raw, ["judge.members.b.weight=3"]))
    assert settings.judge.members["b"].weight == 3 and settings.judge.name == "jury of a (cloze), b (rubric with m)"


def test_an_article_whose_score_could_not_be_read_is_no_example(monkeypatch):
    """Counted as 0, it would be the largest loss of a judge whose values are all above 0."""
    before = [row(i, "old", value=value) for i, value in zip("abcd", (5.0, 5.0, None, 5.0), strict=True)]
    after = [row(i, "new", value=value) for i, value in zip("abcd", (None, 6.0, 6.0, 7.0), strict=True)]
    for one in (*before, *after):
        one["questions"] = []
        one["scores"][0]["unread"] = int(one["scores"][0]["value"] is None)
    both = [SimpleNamespace(policy=object(), results=rows) for rows in (before, after)]
    monkeypatch.setattr(examples.tables, "read_table", lambda ledger, results: results)
    assert {found["id"] for found in examples.choose_examples(both, None, count=4)} == {"b", "d"}

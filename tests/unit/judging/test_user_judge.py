"""Judges of the user's are made by name and tried before a run. The example is the documentation's."""

import json
import sys
import textwrap

import pytest

from judges.base import Question
from judges.cloze import ClozeJudge
from pipeline.config import UserError
from pipeline.config.judging import JUDGES, PREFERENCES, JudgeSettings
from pipeline.config.loader import apply_overrides, parse_config
from pipeline.execution.recipe import compare_recipes, fingerprint, fingerprint_user_code, stage_recipe
from pipeline.judging.factory import make_judge, reply_method
from pipeline.judging.user_code.judge_trial import check_judge
from pipeline.stages.questions import ask_questions, ask_second_questions
from pipeline.stages.scores import score_heldout, score_leads, score_samples, score_second
from tests.helpers.paths import documented_judge

USES_JUDGE = (ask_questions, score_samples, score_heldout, score_leads)
USES_SECOND_JUDGE = (ask_second_questions, score_second)


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Write a module into the folder that the test works in."""
    monkeypatch.chdir(tmp_path)
    search_path, names = list(sys.path), set()

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        sys.modules.pop(name, None)
        fingerprint.cache_clear()
        names.add(name)

    yield write
    sys.path[:] = search_path
    for name in names:
        sys.modules.pop(name, None)
    fingerprint.cache_clear()


@pytest.fixture
def keywords(write_module):
    """Write the documentation's judge as the module `keyword_judge`, and make settings that name it."""
    write_module("keyword_judge", documented_judge())
    return lambda **settings: JudgeSettings(kind="keyword_judge:KeywordJudge", **settings)


def config(*overrides, judge="{kind: cloze}"):
    whole = {"run": "r", "articles": {"path": "a.jsonl"}, "policy": {"model": "m"}}
    return parse_config(apply_overrides(whole, [f"judge={judge}", *overrides]))


def test_the_documented_judge_asks_and_answers(keywords):
    settings = keywords(questions=2, settings={"min_letters": 5})
    check_judge(settings, seed=0)
    judge = make_judge(settings, 0)
    reply = reply_method(judge)
    questions = judge.read_questions(reply(judge.ask_questions("Ana met Carla and Hector in Lisbon."), 0))
    assert [question.question_id for question in questions] == ["Carla", "Hector"]
    answers = judge.read_answers(reply(judge.ask_answers("Hector was there.", questions), 0), questions)
    assert answers == ["unsure", questions[1].letter]


def test_a_judge_with_a_model_needs_no_reply(write_module):
    write_module("asks", documented_judge().replace("def reply", "def unused"))
    check_judge(JudgeSettings(kind="asks:KeywordJudge", model="m"), seed=0)
    judge = make_judge(JudgeSettings(kind="asks:KeywordJudge", model="m"), 0)
    assert reply_method(judge) is None
    with pytest.raises(
        UserError, match="judge.kind is asks:KeywordJudge, which has no method reply, and judge.model is"
    ):
        check_judge(JudgeSettings(kind="asks:KeywordJudge"), seed=0)


@pytest.mark.parametrize("judge", [{"kind": "judges.cloze:ClozeJudge"}, {"kind": "judges.mcq:McqJudge", "model": "m"}])
def test_built_in_judges_pass_the_trial(judge):
    check_judge(JudgeSettings(**judge), seed=0)
    check_judge(JudgeSettings(**judge, options=10, questions=1), seed=0)
    check_judge(None, seed=0)
    if "model" in judge:
        check_judge(JudgeSettings(**judge, logprobs=True, settings={"question_temperature": 1}), seed=0)


# Settings


@pytest.mark.parametrize(
    ("judge", "line"),
    [
        ("{kind: mine}", "judge.kind is 'mine'; there are mcq, cloze, likelihood"),
        ("{kind: 'a b:C'}", "judge.kind is 'a b:C'; there are mcq, cloze, likelihood"),
        ("{model: m, settings: {blanks: 2}}", "judge.kind is mcq, which has no such settings (blanks): remove it"),
        (
            "{kind: a:B, wording: newsroom}",
            "judge.wording is set, and judge.kind is a:B, a class of yours that makes its",
        ),
        ("{kind: a:B, model: m, answers_prompt: x}", "judge.answers_prompt is set, and judge.kind is a:B, a class"),
        ("{kind: a:B, dtype: float32}", "judge.dtype is set, and judge.model is not: name a model, or remove it"),
        ("{kind: a:B, served: {server: s}}", "judge.served is set and judge.model is missing: set the name that the"),
        ("{kind: a:B, logprobs: true}", "judge.logprobs is true, and without judge.model no answer has a log-prob"),
        ("{kind: a:B, settings: 3}", "judge.settings is 3: it should be a section of settings by name"),
        ("{kind: a:B, settings: {x: .nan}}", "judge.settings.x is nan: it should be text, a finite number"),
        ("{kind: a:B, settings: {x: 2024-01-01}}", "judge.settings.x is 2024-01-01: it should be text, a finite"),
        ("{kind: a:B, settings: {api_key: x}}", "judge.settings has 'api_key': settings are written into the run fol"),
    ],
)
def test_settings_that_no_judge_takes_are_refused_in_one_line(judge, line):
    with pytest.raises(UserError) as caught:
        config(judge=judge)
    assert line in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        config(f"second_judge={judge}")
    assert line.replace("judge.", "second_judge.") in str(caught.value)


@pytest.mark.parametrize("kind", ["tools.judge.mod:A.b", "judge.mod:A.b", "second_judge.mod:A.b"])
def test_a_refused_second_judge_keeps_the_name_of_its_kind(kind):
    with pytest.raises(UserError) as caught:
        config(f"second_judge={{kind: '{kind}'}}")
    assert str(caught.value).startswith(f"second_judge.kind is '{kind}'; ")


def test_settings_of_a_judge_may_come_from_the_command_line():
    settings = config("judge.kind=my_judge:KeywordJudge", "judge.settings.min_letters=5").judge
    assert (settings.kind, settings.settings) == ("my_judge:KeywordJudge", {"min_letters": 5})


def test_what_reports_call_a_judge():
    assert JudgeSettings(kind="cloze").name == "cloze" and JudgeSettings(model="m").name == "m"
    assert JudgeSettings(kind="a:B").name == "a:B" and JudgeSettings(kind="a:B", model="m").name == "a:B with m"


TYPED = """
    from typing import Literal, Optional
    from judges.cloze import ClozeJudge

    class Mine(ClozeJudge):
        def __init__(self, questions, options, seed, blanks: int, share: float = 0.5, mark: str = "_",
                     fast: bool = True, form: Literal["a", "b"] = "a", most: Optional[int] = None,
                     names: list[str] | None = None, other: object = None):
            super().__init__(questions, options, seed)
            if blanks < 1:
                raise ValueError(f"blanks is {blanks}: it should be 1 or more")
            self.everything = (blanks, share, mark, fast, form, most, names, other)
"""


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"blnks": 2}, "judge.settings has no 'blnks' (did you mean blanks?); it has blanks, share, mark, fast, form"),
        ({}, "judge.settings.blanks is missing: typed:Mine has no default for it"),
        ({"blanks": "many"}, "judge.settings.blanks is 'many': it should be a whole number"),
        ({"blanks": 2.5}, "judge.settings.blanks is 2.5: it should be a whole number"),
        ({"blanks": True}, "judge.settings.blanks is True: it should be a whole number"),
        ({"blanks": 1, "share": "1e-3"}, "judge.settings.share is '1e-3': it should be a number"),
        ({"blanks": 1, "mark": 3}, "judge.settings.mark is 3: it should be text"),
        ({"blanks": 1, "fast": "yes"}, "judge.settings.fast is 'yes': it should be true or false"),
        ({"blanks": 1, "form": "c"}, "judge.settings.form is 'c': it should be 'a' or 'b'"),
        ({"blanks": 1, "most": "x"}, "judge.settings.most is 'x': it should be a whole number or null"),
        ({"blanks": 1, "names": "x"}, "judge.settings.names is 'x': it should be a list or null"),
        ({"blanks": 1, "options": 3}, "judge.settings has 'options': set judge.options instead"),
        ({"blanks": 1, "seed": 3}, "judge.settings has 'seed': set seed instead"),
        ({"blanks": 0}, "judge.settings is refused by typed:Mine: blanks is 0: it should be 1 or more"),
    ],
)
def test_settings_that_the_class_does_not_take_are_refused(write_module, settings, line):
    write_module("typed", TYPED)
    with pytest.raises(UserError) as caught:
        check_judge(JudgeSettings(kind="typed:Mine", settings=settings), seed=0)
    assert line in str(caught.value)
    with pytest.raises(UserError) as caught:
        check_judge(JudgeSettings(kind="typed:Mine", settings=settings), seed=0, section="second_judge")
    assert line.replace("judge.", "second_judge.") in str(caught.value)


def test_settings_that_the_class_takes_arrive(write_module):
    write_module("typed", TYPED)
    settings = {"blanks": 1, "share": 1, "form": "b", "most": 3, "names": ["x"], "other": {"any": [1]}}
    judge = make_judge(JudgeSettings(kind="typed:Mine", settings=settings, questions=2, options=3), 7)
    assert judge.everything == (1, 1, "_", True, "b", 3, ["x"], {"any": [1]})
    assert (judge.questions, judge.options, judge.seed) == (2, 3, 7)


# Classes that are no judges


def judge_module(body, base="ClozeJudge"):
    return f"""
from judges.base import Judge, ModelFreeJudge, Prompt, Question, user
from judges.cloze import ClozeJudge

class Mine({base}):
    {body}
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import no_such_module", "cannot be imported from .*ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('no')", "judge.kind is 'faulty:Mine', and faulty cannot be imported .*RuntimeError: no"),
        ("other = 1", "judge.kind is 'faulty:Mine', and .*faulty.py has no class Mine"),
        ("def Mine(questions, options, seed): ...", "faulty.py has no class Mine"),
        ("class Mine: ...", "no method ask_questions, read_questions, ask_answers, read_answers: see judges.base.Ju"),
        (judge_module("...", base="ModelFreeJudge"), "has no method ask_questions, read_questions, ask_answers"),
    ],
)
def test_a_class_that_is_no_judge_is_refused_before_a_run(write_module, text, line):
    write_module("faulty", text)
    with pytest.raises(UserError, match=line):
        check_judge(JudgeSettings(kind="faulty:Mine"), seed=0)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("reply = ModelFreeJudge.reply", "which has no method reply, and judge.model is missing"),
        ("def __init__(self, questions, seed): ...", "does not take options: a judge takes the keyword"),
        ("def __init__(self, **settings): 1 / 0", "whose constructor fails: ZeroDivisionError: division by zero"),
        ("def __reduce__(self): raise TypeError('no')", "cannot be sent to Ray workers: TypeError: no"),
        ("def ask_questions(self, article): return article", "ask_questions returned 'Ana.*, and should return a"),
        ("def ask_questions(self): ...", "ask_questions fails on a trial: TypeError: .* takes 1 positional argument"),
        ("def ask_questions(self, article): return Prompt(article, 9)", "a prompt with messages 'Ana Santos .* chat"),
        ("def ask_questions(self, article): return Prompt(user(''), 9, n=2)", "a prompt with n=2: a judge reads one"),
        ("def ask_questions(self, article): return Prompt(user(article), 9)", "reply returned .* max_tokens is 9"),
        ("def ask_answers(self, passage, questions): return questions[0]", "ask_answers returned Question"),
        ("def ask_answers(self, passage, questions): return questions[9]", "ask_answers fails on a trial: IndexError"),
        ("def read_questions(self, reply): return None", "read_questions returned None, and should return a"),
        ("def read_questions(self, reply): return ['a']", "read_questions returned .'a'., and should return a"),
        (
            "def read_questions(self, reply): return [Question('1', 'Who?', ['a', 'b'], 0)]",
            "returned Question.*should be text, options a tuple of texts, and answer a whole number",
        ),
        (
            "def read_questions(self, reply): return reply.lines",
            "read_questions fails on the trial reply '': AttributeError",
        ),
        ("def read_answers(self, reply, questions): return []", "read_answers returned .. for 5 questions, and should"),
        (
            "def read_answers(self, reply, questions): return ['F'] * len(questions)",
            "read_answers returned 'F' for a question with 5 options: it should be a letter from A to E, 'unsure', or",
        ),
        (
            "def read_answers(self, reply, questions): return reply[999]",
            "read_answers fails on the trial reply '.*': IndexError",
        ),
        ("def reply(self, prompt): return ''", "reply fails on a trial: TypeError: .* takes 2 positional arguments"),
        ("def reply(self, prompt, sample): return 3", "reply returned 3, and should return text"),
    ],
)
def test_a_judge_that_does_not_do_its_part_is_refused_before_a_run(write_module, body, line):
    write_module("faulty", judge_module(body))
    with pytest.raises(UserError, match=line) as caught:
        check_judge(JudgeSettings(kind="faulty:Mine"), seed=0)
    assert str(caught.value).startswith("judge.kind is faulty:Mine") and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="^second_judge.kind is faulty:Mine"):
        check_judge(JudgeSettings(kind="faulty:Mine"), seed=0, section="second_judge")


def test_log_probabilities_need_a_class_that_asks_for_them(write_module):
    settings = JudgeSettings(kind="sure:KeywordJudge", model="m", logprobs=True)
    write_module("sure", documented_judge())
    with pytest.raises(
        UserError, match="does not take logprobs, and judge.logprobs is true: a judge takes the keyword"
    ):
        check_judge(settings, seed=0)
    write_module("sure", documented_judge().replace("seed: int,", "seed: int, logprobs: bool,"))
    with pytest.raises(
        UserError, match="ask_answers returned a prompt without logprobs=True, and judge.logprobs is true"
    ):
        check_judge(settings, seed=0)


# Recipes


def test_a_changed_file_makes_its_stages_stale(keywords, write_module):
    kind = keywords().kind
    before = fingerprint_user_code(kind)
    assert before is not None
    write_module("keyword_judge", documented_judge() + "# changed\n")
    assert fingerprint_user_code(kind) not in (before, None)
    overrides = [f"judge.kind={kind}", f"second_judge={{kind: {kind}}}"]
    for stages, name in ((USES_JUDGE, "judge.kind"), (USES_SECOND_JUDGE, "second_judge.kind")):
        for stage in stages:
            assert stage_recipe(stage, [], config(*overrides))["contents"][name] == fingerprint_user_code(kind)


def test_built_in_names_have_no_fingerprint_even_beside_a_folder_of_that_name(write_module, tmp_path):
    for name in (*JUDGES, *PREFERENCES):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
        assert fingerprint_user_code(name) is None


def test_runs_of_before_there_were_judges_by_name_stay_current():
    settings = config("second_judge={kind: cloze}")
    for stage in (*USES_JUDGE, *USES_SECOND_JUDGE):
        now = json.loads(json.dumps(stage_recipe(stage, [], settings)))
        was = json.loads(json.dumps(now))
        (section,) = {"judge", "second_judge"} & was["settings"].keys()
        assert was["settings"][section].pop("settings") == {} and was["contents"].pop(f"{section}.kind") is None
        assert compare_recipes(was, now, settings) == []
        other = config("second_judge={kind: a:B, settings: {x: 1}}", judge="{kind: a:B, settings: {x: 1}}")
        assert compare_recipes(was, stage_recipe(stage, [], other), other)


# Rows


def test_the_pipeline_drops_malformed_questions_of_any_judge():
    from pipeline.config.judging import Questions
    from pipeline.inference.scripted import ScriptedEngine
    from pipeline.judging.question_generation import generate_questions

    class Careless(ClozeJudge):
        def read_questions(self, reply):
            return [
                Question("1", "Who led?", ("Ana",), 0),
                Question("2", "Who sang?", ("Ana", "ana"), 0),
                Question("3", "Who ran?", ("Ana", "Ben"), 0),
            ]

    rows, settings = [{"article": "Ana ran."}], Questions(check=False, min_questions=1)
    (outcome,) = generate_questions(Careless(), 3, settings, ScriptedEngine(lambda prompt, sample: ""), rows)
    assert [question["question_id"] for question in outcome["questions"]] == ["3"]
    assert outcome["dropped"] == ["question has not 2 to 10 options", "options not distinct"]


def test_unknown_settings_of_a_built_in_judge_are_refused():
    with pytest.raises(UserError, match="judge.settings has no 'blanks'"):
        make_judge(config("judge={kind: cloze, settings: {blanks: 2}}").judge, seed=0)


def test_log_probabilities_of_a_class_that_gives_scores_are_refused(write_module):
    write_module(
        "scoring",
        """
        from judges.base import Judgement
        class Sure:
            def ask_scores(self, article, summaries, order=0):
                return []
            def read_scores(self, article, summaries, replies, order=0):
                return [Judgement(1.0) for _ in summaries]
        """,
    )
    check_judge(JudgeSettings(kind="scoring:Sure", model="m"), seed=0)
    with pytest.raises(UserError, match="judge.logprobs is true, and judge.kind is scoring:Sure, which gives scores"):
        check_judge(JudgeSettings(kind="scoring:Sure", model="m", logprobs=True), seed=0)

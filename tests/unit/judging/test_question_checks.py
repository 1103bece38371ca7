"""Checks of questions: what each drops, what it asks, and what the card shows of it. The model is scripted."""

import re
from dataclasses import replace

import pytest

from judges.base import LETTERS, Prompt, Question, user
from judges.mcq import McqJudge
from judges.prompts import PLAIN
from pipeline.config import UserError
from pipeline.config.judging import JudgeSettings, Questions
from pipeline.config.loader import parse_config
from pipeline.evaluation.judge_card import card_lines, measure_card
from pipeline.inference.base import TOKENS_IN, TOKENS_OUT, Reply
from pipeline.inference.sampling import fill_article
from pipeline.inference.scripted import ScriptedEngine
from pipeline.judging.factory import make_judge
from pipeline.judging.question_generation import generate_questions, questions_overlap
from pipeline.judging.scoring.exam import answer_questions, score_summaries

ARTICLE = "Ana Santos leads Northwind. It hired 93 people in Lima. Its logo is blue, and its chairs are oak."
# text, options with the right one first; the article supports all options after `also`.
DRAFTS = {
    "Who leads Northwind?": ("Ana Santos", "Ben Costa", "Dan Okafor"),
    "Where did it hire people?": ("Lima", "Oslo", "Rome"),
    "Which colour is the logo?": ("blue", "red", "green"),
    "What does it have?": ("a logo", "chairs", "a boat"),
    "What is the firm called that Ana Santos leads?": ("Northwind", "Bluepeak", "Ironwood"),
    "Of what are the chairs?": ("oak", "pine", "steel"),
}
FITS_TOO = {"What does it have?": "chairs"}
RATINGS = {"Who leads Northwind?": 3, "Which colour is the logo?": 1, "Where did it hire people?": 2}


def judge_llm(prompt, sample=0):
    """A judge LLM that knows the article: it answers "unsure" unless an option is right or fits too."""
    text = prompt.messages[0]["content"]
    if "multiple-choice questions about its" in text:
        return "\n".join(f"Q{i} {q} Answer {' | '.join(o)}" for i, (q, o) in enumerate(DRAFTS.items(), 1))
    blocks = re.findall(r"^Q(\d+) ([^\n]*\?)\n((?:[A-J]\. .*\n?)+)", text, re.MULTILINE)
    if "Rate how important" in text:
        return "\n".join(f"Q{n} {RATINGS.get(question, 2)}" for n, question, _ in blocks)
    passage = text.split("<passage>\n")[1].split("\n</passage>")[0]
    lines = []
    for n, question, listed in blocks:
        options = [line[3:] for line in listed.strip().split("\n")]
        fitting = [DRAFTS[question][0], FITS_TOO.get(question)] if passage else []
        letter = next((LETTERS[options.index(option)] for option in fitting if option in options), "Unsure")
        lines.append(f"Q{n} {letter}")
    return "\n".join(lines)


def generate(judge=None, count=6, script=judge_llm, **settings):
    judge = judge or McqJudge(questions=6, options=3)
    questions = Questions(min_questions=1, **settings)
    (outcome,) = generate_questions(judge, count, questions, ScriptedEngine(script), [{"article": ARTICLE}])
    return outcome


def kept(outcome):
    return [question["question"] for question in outcome["questions"]]


def test_without_further_checks_every_answerable_question_is_kept():
    outcome = generate()
    assert kept(outcome) == list(DRAFTS) and outcome["dropped"] == []


def test_single_key_drops_a_question_with_two_right_options():
    outcome = generate(more_checks=["single_key"])
    assert kept(outcome) == [question for question in DRAFTS if question != "What does it have?"]
    assert outcome["dropped"] == ["another option fits"]


def test_single_key_asks_without_the_right_option_and_costs_one_prompt():
    prompts = []

    def script(prompt, sample):
        prompts.append(prompt)
        return judge_llm(prompt, sample)

    generate(script=script, more_checks=["single_key"], check=False)
    _, without = prompts
    text = without.messages[0]["content"]
    assert "Ben Costa" in text and "Ana Santos\n" not in text.split("<passage>")[0]
    assert without.regex.startswith("Q1 ([A-B]|Unsure)")


def test_a_judge_that_never_says_unsure_keeps_nothing_under_single_key():
    def never_unsure(prompt, sample):
        return judge_llm(prompt).replace("Unsure", "A")

    outcome = generate(script=never_unsure, more_checks=["single_key"], check=False)
    assert outcome["questions"] == [] and outcome["skipped"] == "under 1 good questions"
    unread = generate(
        script=lambda prompt, sample: judge_llm(prompt) if "about its" in prompt.messages[0]["content"] else "?",
        more_checks=["single_key"],
        check=False,
    )
    assert unread["dropped"] == ["unread without its key"] * 6


def test_important_drops_details():
    outcome = generate(more_checks=["important"])
    assert "Which colour is the logo?" not in kept(outcome) and outcome["dropped"] == ["asks for a detail"]


def test_important_that_cannot_be_read_drops_the_questions():
    def silent(prompt, sample):
        return "I like them all." if "Rate how" in prompt.messages[0]["content"] else judge_llm(prompt)

    assert generate(script=silent, more_checks=["important"])["dropped"] == ["importance unread"] * 6

    class Failing(ScriptedEngine):
        def generate(self, prompts):
            if "Rate how" in prompts[0].messages[0]["content"]:
                return [Reply([1], error="no server") for _ in prompts]
            return super().generate(prompts)

    settings = Questions(min_questions=1, more_checks=["important"])
    judge = McqJudge(questions=6, options=3)
    (outcome,) = generate_questions(judge, 6, settings, Failing(judge_llm), [{"article": ARTICLE}])
    assert outcome["dropped"] == ["importance unread"] * 6 and outcome["tally"]["no reply: no server"] == 1


def test_no_overlap_drops_the_later_of_two():
    outcome = generate(more_checks=["no_overlap"])
    assert kept(outcome) == [question for question in DRAFTS if "called" not in question]
    assert outcome["dropped"] == ["overlaps another question"]


def test_no_overlap_keeps_the_more_important_of_two(monkeypatch):
    monkeypatch.setitem(RATINGS, "What is the firm called that Ana Santos leads?", 3)
    monkeypatch.setitem(RATINGS, "Who leads Northwind?", 2)
    outcome = generate(more_checks=["no_overlap", "important"])
    assert "What is the firm called that Ana Santos leads?" in kept(outcome)
    assert "Who leads Northwind?" not in kept(outcome)


def test_of_more_drafts_the_most_important_are_kept_in_their_order():
    outcome = generate(count=2, draft=6, more_checks=["important"])
    assert kept(outcome) == ["Who leads Northwind?", "Where did it hire people?"]
    assert sorted(outcome["dropped"]) == ["asks for a detail", *["more than needed"] * 3]
    assert kept(generate(count=2, draft=6)) == list(DRAFTS)[:2]


def test_the_judge_is_asked_for_the_drafts():
    settings = JudgeSettings(model="m", questions=2, options=3)
    judge = make_judge(Questions(draft=6, min_questions=1).drafting(settings), 0)
    assert "write 6 multiple-choice" in judge.ask_questions(ARTICLE).messages[0]["content"]
    assert Questions().drafting(settings) is settings


def test_the_cloze_judge_may_draft_and_drop_overlaps():
    article = (
        "Ana Santos leads the Northwind company in Oslo with a brother. In spring the factory hired 93 people for a "
        "plant at Lima's old harbor. Ben Costa counted 45 blue cars near the broken bridge while rain fell over Rome."
    )
    settings = JudgeSettings(kind="cloze", questions=2, options=2)
    questions = Questions(draft=9, min_questions=1, more_checks=["no_overlap"])
    judge = make_judge(questions.drafting(settings), 0)
    engine = ScriptedEngine(judge.reply)
    (outcome,) = generate_questions(judge, 2, questions, engine, [{"article": article}])
    assert len(outcome["questions"]) == 2 and outcome["tally"]["check asked: no_overlap"] >= 2
    assert outcome["tally"]["questions asked"] == 9


ONE = Question("1", "Who leads Northwind?", ("Ana Santos", "Ben"), 0)


@pytest.mark.parametrize(
    ("text", "options", "overlap"),
    [
        ("Who leads the firm Northwind?", ("Ana Santos", "Cy"), True),
        ("Who leads the firm Northwind?", ("ana santos.", "Cy"), True),
        ("Who won the race in Lima last year?", ("Ana Santos", "Cy"), False),
        ("Which firm is Northwind, which Ana Santos leads?", ("a bank", "a shop"), True),
        ("Where was Ana Santos born?", ("Lima", "Oslo"), False),
        ("Where is Lima?", ("Northwind", "Peru"), False),
        ("Who is it?", ("Ben", "Cy"), False),
    ],
)
def test_what_overlaps(text, options, overlap):
    other = Question("2", text, options, 0)
    assert questions_overlap(ONE, other) is questions_overlap(other, ONE) is overlap


def test_the_card_shows_what_each_check_dropped_and_cost():
    outcome = generate(count=2, draft=6, more_checks=["single_key", "important", "no_overlap"])
    card = measure_card({"tally": outcome["tally"]}, [], [], 3)
    checks = card["checks"]
    assert {name: (c["asked"], c["dropped"], c["prompts"]) for name, c in checks.items()} == {
        "answerable": (6, 0, 1),
        "unguessable": (6, 0, 1),
        "single_key": (6, 1, 1),
        "important": (5, 1, 1),
        "no_overlap": (4, 1, 0),
        "draft": (3, 1, 0),
    }
    assert all((checks[name]["tokens"] > 100) == bool(checks[name]["prompts"]) for name in checks)
    tokens = outcome["tally"][TOKENS_IN] + outcome["tally"][TOKENS_OUT]
    assert sum(check["tokens"] for check in checks.values()) < tokens
    labels = [line[0] for line in card_lines(card)]
    assert "dropped by single_key" in labels and "dropped as more than needed" in labels
    assert sum(check["dropped"] for check in checks.values()) == len(outcome["dropped"])


def test_the_card_shows_how_many_questions_tell_summaries_apart():
    rows = [{"article": ARTICLE, "article_id": "1", "questions": generate()["questions"]}]
    rows[0]["summaries"] = [
        {"text": "Ana Santos leads Northwind."},
        {"text": ""},
        {"text": "Ana Santos leads Northwind."},
    ]

    def by_passage(prompt, sample):
        return judge_llm(prompt).replace("Q2 ", "Q2 Unsure #")

    judge = McqJudge(questions=6, options=3)
    (outcome,) = score_summaries(judge, ScriptedEngine(by_passage), rows)
    card = measure_card({"tally": {}}, [], [outcome], 3)
    assert card["compared"] == 5 and card["telling"] == 1.0  # the answers to question 2 are unread
    rows[0]["summaries"] = rows[0]["summaries"][:1]
    (alone,) = score_summaries(judge, ScriptedEngine(by_passage), rows)
    assert measure_card({"tally": {}}, [], [alone], 3)["compared"] == 0


def test_only_answers_in_the_strict_form_have_a_log_probability():
    questions = [Question(str(i), f"Who {i}?", ("Ana", "Ben"), 0) for i in range(2)]
    judge = McqJudge(options=2, logprobs=True)
    for reply, known in (("Q1 A\nQ2 B", [True, True]), ("Q1 A\n\nQ2 B", [True, False]), ("Q2 B\nQ1 A", [False] * 2)):
        (answered,) = answer_questions(judge, ScriptedEngine(lambda p, i, r=reply: r), ["x"], [questions])
        assert answered.answers == ["A", "B"] and [logp is not None for logp in answered.logps] == known


# Settings


def config(**sections):
    base = {"run": "r", "articles": {"path": "a.jsonl"}, "policy": {"model": "p"}, "judge": {"model": "m"}}
    return parse_config(base | sections)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"judge": {"kind": "cloze"}, "questions": {"more_checks": ["single_key"]}},
            "questions.more_checks has single_key, and judge.kind is cloze, which looks for words",
        ),
        (
            {"judge": {"kind": "cloze"}, "questions": {"more_checks": ["important"]}},
            "questions.more_checks has important, and judge.kind is cloze, which cannot rate questions: remove it",
        ),
        (
            {"judge": {"model": "m", "wording": "newsroom"}, "questions": {"more_checks": ["important"]}},
            "questions.more_checks has important, and judge.wording is newsroom, which cannot rate",
        ),
        (
            {"judge": {"model": "m", "options": 2}, "questions": {"more_checks": ["single_key"]}},
            "judge.options is 2: no two options are left without the right one",
        ),
        ({"questions": {"more_checks": ["unique"]}}, "questions.more_checks"),
        ({"questions": {"more_checks": "single_key"}}, "questions.more_checks"),
        ({"questions": {"draft": 4}}, "questions.draft is 4 and judge.questions is 5, which are kept of those"),
        ({"judge": {"model": "m", "language": "german"}}, "judge.language is 'german' (did you mean de?): it should"),
        ({"judge": {"kind": "cloze", "language": "de"}}, "judge.language is set, and judge.kind is cloze"),
        (
            {"judge": {"model": "m", "language": "de", "wording": "newsroom"}},
            "judge.language is de, and judge.wording is newsroom, which its model learned in one language",
        ),
    ],
)
def test_settings_without_sense_are_refused_in_one_line(sections, line):
    with pytest.raises(UserError) as caught:
        config(**sections)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_second_judge_leaves_out_what_it_cannot_do():
    checks = ["single_key", "important", "no_overlap"]
    settings = config(questions={"more_checks": [*checks, "no_overlap"]}, second_judge={"kind": "cloze"})
    assert settings.questions.more_checks == tuple(sorted(checks))
    assert settings.questions.for_judge(settings.second_judge).more_checks == ("no_overlap",)
    assert settings.questions.for_judge(settings.judge).more_checks == tuple(sorted(checks))


# Language

GERMAN = "Die Bürgermeisterin hat gestern im Rathaus gesagt, dass die neue Brücke über die Elbe im Herbst fertig wird."
ENGLISH = "The mayor said in the town hall yesterday that the new bridge over the river will be finished in autumn."
NOTE = " Write the questions and the answers in German"


@pytest.mark.parametrize("article", [ENGLISH, "", "Lima.", "12 345"])
def test_the_prompt_for_an_english_article_is_as_ever(article):
    judge = McqJudge()
    text = judge.ask_questions(article).messages[0]["content"]
    assert "the article does not support.\n\nWrite one line" in text
    assert judge.ask_questions(article).regex.startswith(r"Q1 [^ \n\r\t|]+( [^ \n\r\t|]+)*\? Answer ")
    if article == ENGLISH:
        assert text == McqJudge(language="auto", wording=PLAIN).ask_questions(article).messages[0]["content"]


def test_the_prompt_names_another_language():
    auto = McqJudge().ask_questions(GERMAN).messages[0]["content"]
    assert f"does not support.{NOTE}, the article's language.\n" in auto
    fixed = McqJudge(language="de").ask_questions(ENGLISH).messages[0]["content"]
    assert f"does not support.{NOTE}.\n" in fixed


def test_a_wording_that_a_model_learned_has_no_language():
    judge = make_judge(JudgeSettings(model="m", wording="newsroom"), 0)
    assert judge.ask_questions(GERMAN).messages[0]["content"] == f"Write questions.\n{GERMAN}"


@pytest.mark.parametrize(
    ("article", "mark"),
    [
        ("قال رئيس البلدية أمس إن الجسر الجديد فوق النهر سيكتمل في الخريف القادم بعد ثلاث سنوات من العمل.", "؟"),
        ("市长昨天在市政厅表示，横跨河流的新桥将于今年秋天完工，届时将有三千名工人参加庆祝活动。", "？"),
        ("Ο δήμαρχος είπε χθες στο δημαρχείο ότι η νέα γέφυρα πάνω από το ποτάμι θα είναι έτοιμη το φθινόπωρο.", ";"),
        (GERMAN, "?"),
    ],
)
def test_the_grammar_allows_the_marks_of_the_language(article, mark):
    regex = McqJudge(questions=1, options=2).ask_questions(article).regex
    assert re.fullmatch(regex, f"Q1 x{mark} Answer a | b") and re.fullmatch(regex, "Q1 x? Answer a | b")


def test_prompts_of_your_own_may_name_the_language():
    asks, answers = "In {language}: {article}", "{language}: {questions} {passage}"
    wording = replace(PLAIN, questions_prompt=asks, answers_prompt=answers)
    judge = McqJudge(wording=wording)
    assert judge.ask_questions(GERMAN).messages[0]["content"].startswith("In German: Die")
    asked = [Question("1", GERMAN, ("eins", "zwei"), 0)]
    assert judge.ask_answers(ENGLISH, asked).messages[0]["content"].startswith("German: ")
    assert (
        McqJudge().ask_answers(ENGLISH, asked).messages == McqJudge(language="ru").ask_answers(ENGLISH, asked).messages
    )


def test_the_policys_instruction_may_name_the_language():
    prompt = Prompt(user("Summarize in {language}:\n{article}"), 1)
    assert fill_article(prompt, GERMAN).messages[0]["content"] == f"Summarize in German:\n{GERMAN}"
    assert fill_article(prompt, "Oh.").messages[0]["content"] == "Summarize in English:\nOh."
    assert fill_article(prompt, "{language} {article}").messages[0]["content"].endswith("\n{language} {article}")

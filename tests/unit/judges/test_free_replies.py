"""Free replies are read as a person reads them, replies in the strict form as ever. Cases are in tests/bad_input/."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judges.base import LETTERS, UNSURE, Question, Skip, option_key, vet
from judges.mcq import McqJudge
from judges.mcq.free_replies import after_thought, read_free_answers, read_free_questions, read_free_ratings
from judges.mcq.languages import LANGUAGES, question_end
from judges.prompts import WORDINGS

ASKED = [
    Question("1", "Who won?", ("Ann", "Bob", "a dog", "Cy"), 0),
    Question("2", "Which capital is it?", ("Lima", "the city of Oslo", "New York", "3 million"), 1),
    Question("3", "谁赢了？", ("安娜", "鲍勃", "赛", "李"), 2),
]
letters = st.sampled_from([UNSURE, *LETTERS[:4]])
answers_of_three = st.lists(letters, min_size=3, max_size=3)

# Ways to write line n with an answer. `own` is its option's words.
DECORATIONS = {
    "bold": "**Q{n}** {answer}",
    "colon": "Q{n}: {answer}",
    "list": "{n}. {answer}",
    "bullet": "- Q{n} {answer}",
    "brackets": "Q{n}) ({answer})",
    "table": "| Q{n} | {answer} |",
    "full width": "Ｑ{n}：{answer}",
    "label": "Q{n} Answer: {answer}",
    "own words": "Q{n} {answer}. {own}",
    "words first": "Q{n} {own} ({answer})",
    "question": "Q{n} {question} {answer}) {own}",
    "reason": "Q{n}: {answer} - this is what the passage tells",
}


def decorated(form, answers):
    lines = []
    for n, (answer, question) in enumerate(zip(answers, ASKED, strict=True), 1):
        own = "" if answer == UNSURE else question.options[LETTERS.index(answer)]
        if answer == UNSURE and "own" in form:
            lines.append(f"Q{n} Unsure")
        else:
            word = "Unsure" if answer == UNSURE else answer
            lines.append(form.format(n=n, answer=word, own=own, question=question.question))
    return lines


@pytest.mark.parametrize("form", DECORATIONS.values(), ids=DECORATIONS)
@pytest.mark.parametrize("between", ["\n", "\n\n", "\r\n"], ids=["lines", "blank lines", "CRLF"])
@given(answers=answers_of_three, order=st.permutations(range(3)))
def test_each_usual_form_is_read_in_any_order(form, between, answers, order):
    lines = decorated(form, answers)
    reply = between.join(lines[i] for i in order)
    assert McqJudge(options=4).read_answers(reply, ASKED) == answers
    wrapped = f"<think>Q1 B, hmm</think>\nHere are the answers:\n```\n{reply}\n```\n"
    assert McqJudge(options=4).read_answers(wrapped, ASKED) == answers


@given(answers=answers_of_three)
def test_one_line_and_no_numbers(answers):
    words = ["Unsure" if answer == UNSURE else answer for answer in answers]
    read = McqJudge(options=4).read_answers
    for reply in ("\n".join(words), ", ".join(words), "Answers:\n" + "\n".join(words), " ".join(words)):
        assert read(reply, ASKED) == answers
    assert read("\n".join(words[:2]), ASKED) == [None] * 3
    assert read("\n".join([*words, "A"]), ASKED) == [None] * 3


@given(answers=answers_of_three, other=letters, place=st.integers(0, 2))
def test_two_different_answers_are_none(answers, other, place):
    word = "Unsure" if other == UNSURE else other
    lines = [*decorated("Q{n}: {answer}", answers), f"Q{place + 1}: {word}"]
    expected = [None if i == place and other != answers[place] else answer for i, answer in enumerate(answers)]
    assert McqJudge(options=4).read_answers("\n".join(lines), ASKED) == expected


@given(answers=answers_of_three, place=st.integers(0, 2), wrong=st.integers(0, 3))
def test_a_letter_beside_the_words_of_another_option_is_unread(answers, place, wrong):
    lines = decorated("Q{n}: {answer}. {own}", answers)
    letter = LETTERS[(wrong + 1) % 4]
    lines[place] = f"Q{place + 1}: {letter}. {ASKED[place].options[wrong]}"
    read = McqJudge(options=4).read_answers("\n".join(lines), ASKED)
    assert read == [None if i == place else answer for i, answer in enumerate(answers)]


@pytest.mark.parametrize("wording", WORDINGS)
@given(answers=answers_of_three, cut=st.integers(0, 200))
def test_a_reply_that_was_cut_off_gives_no_other_answers(wording, answers, cut):
    judge = McqJudge(options=4, wording=WORDINGS[wording])
    whole = "\n".join(judge.answer_line(i, q, a) for i, (q, a) in enumerate(zip(ASKED, answers, strict=True), 1))
    read = judge.read_answers(whole[:cut], ASKED)
    lines = whole[:cut].count("\n")  # whole lines
    assert read[:lines] == answers[:lines]
    assert all(got in (None, answer) for got, answer in zip(read, answers, strict=True))
    assert judge.strict_answers(whole, ASKED) == judge.read_answers(whole, ASKED) == answers


PIECES = "Q1 Q2 Question 1. 2) : A b (C) Unsure Answer: Ann Oslo ** | ``` <think> </think> 安娜 is - ？ ? A) 答案："
pieces = st.sampled_from([*PIECES.split(), "\n", " ", "\u00a0", "Who won?"])
texts = st.lists(pieces | st.text(max_size=3), max_size=20).map("".join)


@given(texts, st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_not_and_nothing_raises(text, count):
    read = read_free_answers(text, ASKED)
    assert len(read) == 3 and all(answer in (None, UNSURE, *LETTERS[:4]) for answer in read)
    ratings = read_free_ratings(text, count, 3)
    assert len(ratings) == count and all(rating in (None, 1, 2, 3) for rating in ratings)
    for _, question in read_free_questions(text, 3):
        assert question is None or (question.text and isinstance(question.options, tuple))
    for item in McqJudge(options=3).read_questions(text):
        assert isinstance(item, Skip) or len(item.options) == 3


@pytest.mark.parametrize(
    ("reply", "rest"),
    [
        ("<think>a</think>b", "b"),
        ("\n<THINK>\na</think>\nb", "\nb"),
        ("a</think>b", "b"),
        ("<think>a", ""),
        ("<think>a</think><think>b", ""),
        ("b", "b"),
        ("b <think>", "b <think>"),
    ],
)
def test_what_comes_after_a_thought(reply, rest):
    assert after_thought(reply) == rest


GOOD = [("Who won?", "Ann", {"Bob", "Cy"}), ("Where was it?", "Lima", {"Oslo", "New York"})]
FORMS = {
    "strict": "Q1 Who won? Answer Ann | Bob | Cy\nQ2 Where was it? Answer Lima | Oslo | New York",
    "blank lines": "Q1 Who won? Answer Ann | Bob | Cy\n\n\nQ2 Where was it? Answer Lima | Oslo | New York",
    "bold": "**Q1** Who won? **Answer** Ann | Bob | Cy\n**Q2** **Where was it?** Answer **Lima** | Oslo | New York",
    "numbered": "1. Who won? Answer: Ann | Bob | Cy\n2. Where was it? Answer: Lima | Oslo | New York",
    "no numbers": "Who won? Answer Ann | Bob | Cy\nWhere was it? Answer Lima | Oslo | New York",
    "bullets": "- Q1: Who won? Answer: Ann | Bob | Cy\n- Q2: Where was it? Answer: Lima | Oslo | New York",
    "fenced": "Here they are:\n```\nQ1 Who won? Answer Ann | Bob | Cy\nQ2 Where was it? Answer Lima|Oslo|New York\n```",
    "separate lines": "Q1 Who won?\nAnswer Ann\n| Bob\n| Cy\n\nQ2 Where was it?\nAnswer:\n- Lima\n- Oslo\n- New York",
    "wrong ones apart": "Q1 Who won?\nAnswer: Ann\nWrong answers: Bob | Cy\n"
    "Q2 Where was it?\nAnswer: Lima\nWrong: Oslo | New York",
    "letters": "Q1 Who won?\nA) Bob\nB) Ann\nC) Cy\nAnswer: B\n\nQ2 Where was it?\nA. Oslo\nB. New York\nC. Lima\n"
    "Correct answer: C. Lima",
    "listed": "Q1 Who won?\n- Bob\n- Ann\n- Cy\nAnswer: Ann\n"
    "Q2 Where was it?\n- Lima\n- Oslo\n- New York\nAnswer: Lima",
    "table": "| Q1 | Who won? | Answer | Ann | Bob | Cy |\n| Q2 | Where was it? | Answer | Lima | Oslo | New York |",
    "no-break spaces": "Q1:\u00a0Who\u00a0won? Answer Ann | Bob | Cy\n"
    "Q2: Where was it? Answer Lima | Oslo | New\u00a0York",
    "thought": "<think>Q1 What? Answer x | y | z</think>Q1 Who won? Answer Ann | Bob | Cy\n"
    "Q2 Where was it? Answer Lima | Oslo | New York",
    "prose after": "Q1 Who won? Answer Ann | Bob | Cy\nQ2 Where was it? Answer Lima | Oslo | New York\n\nDone. Bye.",
}


@pytest.mark.parametrize("reply", FORMS.values(), ids=FORMS)
def test_each_usual_form_of_questions_gives_the_same_questions(reply):
    read = McqJudge(options=3).read_questions(reply)
    assert [(q.question, q.options[q.answer], {*q.options} - {q.options[q.answer]}) for q in read] == GOOD


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("Q1 谁赢了？ Answer 安娜 | 鲍勃 | 赛", "谁赢了？"),
        ("Q1 谁赢了？Answer 安娜 | 鲍勃 | 赛", "谁赢了？"),
        ("Q1：谁赢了？\n答案：安娜｜鲍勃｜赛", "谁赢了？"),
        ("Q1 誰が勝ちましたか。 Answer 安 | 坊 | 賽", "誰が勝ちましたか。"),
        ("Q1 من فاز؟ Answer علي | عمر | زيد", "من فاز؟"),
        ("Q1 من فاز؟\nالإجابة: علي | عمر | زيد", "من فاز؟"),
        ("Q1 Ποιος κέρδισε; Answer Άννα | Βασίλης | Γιώργος", "Ποιος κέρδισε;"),
        ("Q1: Ποιος κέρδισε; Answer: Άννα | Βασίλης | Γιώργος", "Ποιος κέρδισε;"),
        ("Q1 Ո՞վ հաղթեց։ Answer Անի | Բաբկեն | Գոռ", "Ո՞վ հաղթեց։"),
        ("Q1: Ո՞վ հաղթեց Answer: Անի | Բաբկեն | Գոռ", "Ո՞վ հաղթեց"),
        ("Q1 कौन जीता? Answer अन्ना | बॉब | साई", "कौन जीता?"),
        ("Q1 Wer hat gewonnen?\nAntwort: Anna | Bob | Cy", "Wer hat gewonnen?"),
        ("Q1 Кто выиграл?\nОтвет: Анна | Боб | Сай", "Кто выиграл?"),
    ],
)
def test_questions_of_other_languages(line, text):
    (question,) = McqJudge(options=3).read_questions(line)
    assert question.question == text


@given(cut=st.integers(0, 300))
def test_questions_before_a_cut_are_those_of_the_whole_reply(cut):
    lines = [f"Q{n} Who __{n}__ is **it**? Answer *Ann* | Q{n + 1} | `Cy`" for n in range(1, 5)]
    read = McqJudge(options=3).read_questions
    whole, before = read("\n".join(lines)), "\n".join(lines)[:cut].count("\n")
    assert whole[0].question == "Who __1__ is **it**?"
    assert read("\n".join(lines)[:cut])[:before] == whole[:before]


@pytest.mark.parametrize("language", ["ar", "zh", "ja", "el", "hy", "am", "de", "fa"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_no_question_that_the_grammar_of_a_language_allows_is_unread(language, data):
    judge = McqJudge(questions=2, options=2, language=language)
    word = st.text("abcé赢?;։。.", min_size=1, max_size=4)
    mark = data.draw(st.sampled_from(question_end(language).strip("[]\\")))
    lines = [
        f"Q{n} {data.draw(word)} {data.draw(word)}{mark} Answer {data.draw(word)} | {data.draw(word)}" for n in (1, 2)
    ]
    reply = "\n".join(lines)
    assert re.fullmatch(judge.ask_questions("").regex, reply)
    assert Skip("question unread") not in judge.read_questions(reply)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Oslo", "Oslo.", True),
        ("Oslo", "“OSLO”", True),
        ("the Thames", "Thames", True),
        ("Der Rhein", "Rhein", True),
        ("1,000", "1000", True),
        ("New\u00a0York", "new york", True),
        ("Ａｎｎ", "Ann", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("Obama’s", "Obama's", True),
        ("5", "-5", False),
        ("5%", "5", False),
        ("€5", "$5", False),
        ("C", "C++", False),
        ("C", "C#", False),
        ("+", "-", False),
        ("1.5", "15", False),
        ("安娜", "安妮", False),
        ("किताब", "कितब", False),  # they differ in a vowel sign
    ],
)
def test_which_options_are_the_same(one, other, same):
    assert (option_key(one) == option_key(other)) is same
    question = Question("q", "Which?", (one, other), 0)
    if not re.fullmatch("[A-J]", one):
        assert vet([question]) == [Skip("options not distinct") if same else question]


def test_every_language_has_a_name():
    assert LANGUAGES["de"] == "German" and LANGUAGES["ht"] == "Haitian Creole"
    assert all(re.fullmatch(r"[a-z]{2,3}", code) and name[0].isupper() for code, name in LANGUAGES.items())


@pytest.mark.parametrize(
    "piece", ["\n", "\n \n", " ", "-", "*", "the answer ", "Q1 A ", "1. A, ", "| ", "a? ", "Q1 who? Answer: "]
)
@pytest.mark.parametrize("start", ["", "Q1 ", "Q1 a? Answer "])
def test_a_reply_that_repeats_itself_is_read_soon(start, piece):
    judge, reply = McqJudge(options=4), start + piece * (20_000 // len(piece)) + "x"
    before = time.process_time()
    judge.read_answers(reply, ASKED)
    judge.read_questions(reply)
    assert time.process_time() - before < 3

"""Judges ask and read; what they ask, a model that obeys can answer, and what it answers is read back exactly."""

import math
import re
from string import ascii_letters, digits

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.base import LETTERS, UNSURE, Question, Skip, fill, line_logps, shuffled, vet
from judges.mcq import McqJudge
from judges.prompts import WORDINGS

words = st.text(f"{ascii_letters}{digits}é", min_size=1, max_size=8)
phrases = st.lists(words, min_size=1, max_size=3).map(" ".join)  # from_regex is five times as slow
questions = st.builds(
    lambda text, options, answer: Question("id", f"{text}?", tuple(options), answer),
    phrases,
    st.lists(phrases, min_size=5, max_size=5, unique_by=str.casefold),
    st.integers(0, 4),
)
wordings = pytest.mark.parametrize("wording", WORDINGS)


@wordings
@given(asked=st.lists(questions, min_size=1, max_size=5), data=st.data())
def test_every_answer_the_grammar_allows_is_read_back(wording, asked, data):
    judge = McqJudge(wording=WORDINGS[wording])
    answers = [data.draw(st.sampled_from([UNSURE, *LETTERS[:5]])) for _ in asked]
    reply = "\n".join(judge.answer_line(i, q, a) for i, (q, a) in enumerate(zip(asked, answers, strict=True), 1))
    assert re.fullmatch(judge.ask_answers("a passage", asked).regex, reply)
    assert judge.read_answers(reply, asked) == answers


@wordings
@given(asked=st.lists(questions, min_size=1, max_size=5), data=st.data())
def test_no_reply_that_the_grammar_allows_is_unread(wording, asked, data):
    judge = McqJudge(wording=WORDINGS[wording])
    reply = data.draw(st.from_regex(judge.ask_answers("a passage", asked).regex, fullmatch=True))
    assert None not in judge.read_answers(reply, asked)


def test_words_that_mean_something_to_a_regex_mean_nothing_to_the_grammar():
    options = ("$5 (or more)", "[a-z]*", r"C:\d+", "50% / {x}", "what? ^|. …")
    asked = [Question("1", "How much (about) is a.b+?", options, 2)]
    judge = McqJudge(wording=WORDINGS["newsroom"])
    regex = judge.ask_answers("a passage", asked).regex
    for answer in (UNSURE, *LETTERS[:5]):
        assert re.fullmatch(regex, judge.answer_line(1, asked[0], answer))
    assert not re.fullmatch(regex, r"Q1 How much (about) is aXb+? [a-z]* B")
    assert not re.fullmatch(regex, judge.answer_line(1, asked[0], "B")[:-1] + "A")


tokens = st.lists(st.tuples(st.sampled_from(["Q1", " Unsure", "\n", "\nQ2", "", "A\n", " é"]), st.floats(-9, 0)))


@given(tokens, st.integers(1, 5))
def test_every_token_counts_for_one_line(tokens, lines):
    logps = line_logps(tokens, lines)
    text = "".join(token for token, _ in tokens)
    if text.lstrip().count("\n") < lines:
        assert math.fsum(logp or 0.0 for logp in logps) == pytest.approx(
            math.fsum(logp for _, logp in tokens), abs=1e-9
        )
    assert all(logp is None or logp <= 0 for logp in logps) and len(logps) == lines


@pytest.mark.parametrize(
    ("tokens", "logps"),
    [
        ([("Q1", -1), (" A", -2), ("\n", -4), ("Q2", -8), (" B", -16), ("", -32)], [-7, -56, None]),
        ([("Q1 A\n", -1), ("Q2 B", -2)], [-1, -2, None]),  # the end of a line is its own
        ([("Q1 A", -1), ("\nQ2", -2), (" B", -4)], [-1, -6, None]),  # … but where the token has more words
        ([("\n\n", -1), ("Q1 A", -2), ("\nQ2 B", -4)], [-3, -4, None]),  # read without what is blank before it
        ([("Q1 A\n\n", -1), ("Q3 C", -2)], [-1, None, -2]),
        ([("Q1", -1), ("\n", -1), ("Q2", -1), ("\n", -1), ("Q3", -1), ("\nQ4", -1)], [-2, -2, -1]),
        ([], [None, None, None]),
    ],
)
def test_log_probabilities_of_lines_by_hand(tokens, logps):
    assert line_logps(tokens, 3) == logps


@wordings
def test_a_reply_that_says_something_else_is_unread_not_wrong(wording):
    judge = McqJudge(wording=WORDINGS[wording])
    asked = [Question(str(i), f"Who {i}?", ("Ana", "Ben", "Carla", "Dan", "Eva"), i) for i in range(3)]
    assert judge.read_answers("", asked) == [None, None, None]
    assert judge.read_answers("Q1 Z\nnonsense\nQ9 Unsure", asked) == [None, None, None]


@pytest.mark.parametrize("bad", ["\0", "\x1b", "\x85", "\ud800"])
def test_a_question_with_what_is_no_text_is_unread(bad):
    judge = McqJudge(questions=1, options=2)
    assert isinstance(judge.read_questions("Q1 Who led? Answer Ana | Ben")[0], Question)
    for line in (f"Q1 Who l{bad}ed? Answer Ana | Ben", f"Q1 Who led? Answer Ana | B{bad}en"):
        assert all(isinstance(read, Skip) for read in judge.read_questions(line))


@pytest.mark.parametrize(("questions", "options"), [(1, 2), (5, 5), (20, 5), (10, 10)])
def test_replies_have_room_for_all_that_is_asked(questions, options):
    judge = McqJudge(questions=questions, options=options)
    asked = [Question(str(i), f"Who {i}?", ("Ana", "Ben"), 0) for i in range(questions)]
    assert judge.ask_questions("Lima.").max_tokens >= max(768, 30 * questions * options)
    assert judge.ask_answers("Lima.", asked).max_tokens >= max(256, 51 * questions)
    assert McqJudge().ask_questions("Lima.").max_tokens == 768


def test_a_letter_beside_another_options_words_is_unread():
    judge = McqJudge(wording=WORDINGS["newsroom"])
    asked = [Question("1", "Who led?", ("Ana", "Ben", "Carla", "Dan", "Eva"), 0)]
    assert judge.read_answers("Q1 Who led? Ana A", asked) == ["A"]
    assert judge.read_answers("Q1 Who led? Ana B", asked) == [None]


@wordings
@given(st.lists(st.tuples(phrases, st.lists(phrases, min_size=5, max_size=5)), min_size=5, max_size=5))
def test_questions_are_read_and_the_key_stays_the_key(wording, lines):
    judge = McqJudge(wording=WORDINGS[wording])
    reply = "\n".join(f"Q{i} {text}? Answer {' | '.join(options)}" for i, (text, options) in enumerate(lines, 1))
    assert re.fullmatch(judge.ask_questions("an article").regex, reply)
    seen = set()
    for (text, options), read in zip(lines, judge.read_questions(reply), strict=True):
        if len({option.casefold() for option in options}) < 5:
            assert read == Skip("options not distinct")
        elif any(len(option) == 1 and option in "abcdefghijABCDEFGHIJ" for option in options):
            assert read == Skip("option names a letter")
        elif text.casefold() in seen:
            assert read == Skip("question asked twice")
        else:
            seen.add(text.casefold())
            assert read.options[read.answer] == options[0]
            assert sorted(read.options) == sorted(options)


@pytest.mark.parametrize(
    ("text", "options", "fault"),
    [
        ("Who led?", ("Ana", "Ben"), None),
        ("Who led?", ("Ana",), "question has not 2 to 10 options"),
        (
            "Who led?",
            tuple("Ana Ben Carla Dan Eva Farid Grace Hugo Ines Jon Kim".split()),
            "question has not 2 to 10 options",
        ),
        ("Who led?", ("Ana", "ana.", "Carla"), "options not distinct"),
        ("Who led?", ("Ana", "“Ana”", "Carla"), "options not distinct"),
        ("Who led?", ("Ana", "?!", "Carla"), "options not distinct"),
        ("Which vitamin?", ("A", "K2", "D3"), "option names a letter"),
        ("Where?", ("A) Oslo", "B) Lima", "C) Rome"), "option names a letter"),
        ("Where?", ("(c) Oslo", "Lima", "Rome"), "option names a letter"),
        ("Where?", ("B. Oslo", "C. Lima", "A. Rome"), "option names a letter"),
        ("Where?", ("Oslo", "Lima", "all of the above"), "option speaks of others"),
        ("Where?", ("Oslo", "Lima", "Both A and B"), "option speaks of others"),
        ("Which minister declined to answer a question?", ("Ana", "Ben", "Eva"), None),
        ("What did the choice I made cost?", ("a lot", "Answer a letter", "nothing"), None),
        ("Is it neither a and b?", ("yes", "no", "perhaps"), None),
        ("Is it choice I?", ("yes", "no", "perhaps"), "option speaks of others"),
        ("Is option B right?", ("yes", "no", "perhaps"), "option speaks of others"),
        ("Who wrote it?", ("J. Smith", "E. Rossi", "Carla"), None),
        ("How much?", ("5%", "5", "0.5"), None),
        ("What?", ("a dog", "I am", "Bach"), None),
    ],
)
def test_what_is_a_well_formed_question(text, options, fault):
    question = Question("q", text, options, 1)
    assert vet([question]) == [Skip(fault) if fault else question]


def test_one_key_and_no_question_twice():
    first, again = (
        Question("1", "Who led the firm?", ("x1", "x2"), 0),
        Question("2", "who led the  firm ?", ("y1", "y2"), 1),
    )
    assert vet([Question("0", "Who?", ("x1", "x2"), 2)]) == [Skip("no key among the options")]
    assert vet([first, Skip("question unread"), again]) == [
        first,
        Skip("question unread"),
        Skip("question asked twice"),
    ]


def test_questions_come_before_the_passage_so_that_the_prefix_is_shared():
    asked = [Question("1", "Who led?", ("Ana", "Ben", "Carla", "Dan", "Eva"), 0)]
    for wording in WORDINGS.values():
        one, two = (McqJudge(wording=wording).ask_answers(p, asked).messages[0]["content"] for p in ("XX", "YY"))
        assert one.index("Who led?") < one.index("XX")
        assert one[: one.index("XX")] == two[: two.index("YY")]


@given(questions, st.integers(0, 9))
def test_shuffling_keeps_the_key_and_depends_on_the_question_alone(question, seed):
    once, twice = shuffled(question, seed), shuffled(question, seed)
    assert once == twice
    assert once.options[once.answer] == question.options[question.answer]


def test_shuffling_favours_no_position():
    places = [shuffled(Question("q", f"Q{i}?", tuple("abcde"), 0), 0).answer for i in range(2000)]
    assert all(340 < places.count(place) < 460 for place in range(5))  # 400 expected, five deviations either way


@given(st.text())
def test_an_article_is_never_a_template(text):
    filled = fill("<{article}|{other}>", {"article": text, "other": "o"})
    assert filled == f"<{text}|o>"

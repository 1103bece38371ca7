"""The cloze judge asks about what an article says, and answers by what stands around an option in a passage."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.base import LETTERS, UNSURE, Question
from judges.cloze import ClozeJudge
from judges.cloze.calendar_words import CALENDAR_WORDS
from judges.cloze.matching import BLANK
from judges.cloze.spots import find_spots
from judges.text.sentences import split_sentences, strip_dateline
from judges.text.tokens import contains, normalized_tokens
from judges.text.word_forms import FUNCTION_WORDS
from tests.languages import ARTICLES, SUMMARIES

ARTICLE = """\
(CNN)Following last year's fire in Harlow, Governor Ana Santos told reporters on Tuesday that the state will pay \
$2.5 million to the town. It was the worst fire in 40 years, Dr. Ben Costa of Northwind University said. The \
blaze destroyed 1,200 homes and killed 14 people, No. 3 on the list of U.S. fires. That's why 14,000 workers \
left Harlow in March. Santos visited the Bluepeak shelter, where 61 percent of the families still live. "They \
need homes," Santos said. Costa's team at Northwind studied 93 other towns in 2014. Carla Weber, the mayor of \
Oslo, sent 45 trucks. Dan Okafor of Ironwood, who lost his house, hopes to return in May."""

ENGLISH = """\
The city of Lakewood opened its first tram line on Monday after six years of work. Mayor Teresa Novak rode the \
first tram from Lakewood Station to the harbor with about 200 guests. "This tram will change our city," Novak \
said.

The line is 14 kilometers long and has 22 stops. It cost $380 million, of which the state paid 55 percent. Novak \
expects 31,000 passengers a day by 2028. A ticket costs $2.40, and children under 12 ride free.

Work began in 2019 and stopped for nine months when builders found the wreck of a ship below Harbor Street. The \
wreck, which dates from 1840, is now in the museum of Stanton University. Professor Miles Abara, who led the \
dig, called it the best-kept ship on the coast. Abara's team found 1,300 coins and a brass bell.

Not everyone is pleased. Shop owners on Harbor Street say that they lost a third of their customers. Their \
speaker, Lena Fischer, asked for $4 million in damages. The city has offered 1.5 million. A court in Fairview \
will hear the case in March. Fischer told reporters that eight shops closed in the last year.

The trams were built by Corvane, a company from Osterby. Corvane delivered 18 trams and will service them for 20 \
years. Two of them broke down during tests in August because of the heat. Corvane's director, Ivo Lund, said \
that new fans solved the problem. A second line to the airport is planned. It would be 9 kilometers long and \
cost about $290 million. The council votes on it on Friday. Traffic expert Dana Whitlock of Stanton University \
thinks that the second line would take 7,000 cars off the roads each day."""


def ask(article, questions=20, options=5, seed=0):
    judge = ClozeJudge(questions, options, seed)
    asked = judge.read_questions(judge.reply(judge.ask_questions(article)))
    assert all(isinstance(question, Question) for question in asked)
    return asked


def answer(passage, asked):
    judge = ClozeJudge()
    return judge.read_answers(judge.reply(judge.ask_answers(passage, asked)), asked)


def right(passage, asked):
    return sum(a == question.letter for a, question in zip(answer(passage, asked), asked, strict=True))


def key(question):
    return question.options[question.answer]


# Answers


@pytest.mark.parametrize(
    ("blanked", "options", "passage", "expected"),
    [
        # The same name or number in another writing.
        ("Governor ____ visited the shelter", "Ana Santos|Ben Costa", "governor ana santos visited the shelter", 0),
        ("____ visited the shelter", "Ana Santos|Ben Costa", "Ana\u00a0Santos visited the shelter", 0),
        ("____ visited the shelter", "Ana Santos|Ben Costa", "Ana\nSantos visited the shelter", 0),
        ("____ visited the shelter", "Ana Santos|Ben Costa", "Ben Costa's team visited the shelter", 1),
        ("____ visited the shelter", "Ana Santos|Ben Costa", "COSTA’S team visited the shelter", 1),
        ("____ visited the shelter", "Jose\u0301 Nun\u0303ez|Ana Santos", "José Nuñez visited the shelter", 0),
        ("____ visited the shelter", "Brian O'Neill|Ana Santos", "Brian O’Neill visited the shelter", 0),
        ("fire destroyed ____ homes", "1,200|300", "The fire destroyed 1200 homes", 0),
        ("fire destroyed ____ homes", "1,200|300", "The fire destroyed 1\u202f200 homes", 0),
        ("fire destroyed ____ homes", "1,000|300", "The fire destroyed one thousand homes", 0),
        ("state paid ____ for homes", "$2.5 million|$3 million", "The state paid 2,500,000 dollars for homes", 0),
        ("live with ____ of families", "61 percent|16 percent", "They live with 61% of families", 0),
        ("fires in the ____ destroyed homes", "U.S.|U.K.", "fires in the US destroyed homes", 0),
        ("На церемонии в ____ открыли музей", "Зареченск|Казань", "В Зареченске открыли музей", 0),
        # A number is not part of another one.
        ("fire killed ____ people", "14|25", "The fire drove 14,000 people and killed them", None),
        ("fire killed ____ people", "2|7", "The fire killed 2.5 million people", None),
        ("fire killed ____ people", "14|25", "The fire killed 140 people", None),
        # A part of the name will do, unless it is part of another option.
        ("____ visited the shelter", "Ana Santos|Ben Costa", "Santos visited the shelter", 0),
        ("____ visited the shelter", "Ana Santos|Rui Santos", "Santos visited the shelter", None),
        # Nothing around the name says what the sentence said.
        ("____ visited the shelter", "Ana Santos|Ben Costa", "Ana Santos", None),
        ("____ visited the shelter", "Ana Santos|Ben Costa", "Ana Santos, Ben Costa, Oslo, 14, 2014, Bluepeak", None),
        ("____ visited the shelter", "Ana Santos|Ben Costa", "", None),
        # Another option in the key's place is a wrong answer, and two that fit equally are none.
        ("____ visited the shelter", "Ana Santos|Ben Costa", "Ben Costa visited the shelter", 1),
        ("visited ____ shelter", "Bluepeak|Harlow", "They visited Harlow and Bluepeak", None),
        ("市长____在新闻发布会上表示", "陈立文|王思远", "陈立文在新闻发布会上说", 0),
    ],
)
def test_what_a_passage_answers(blanked, options, passage, expected):
    question = Question("q", blanked, tuple(options.split("|")), 0)
    (given_answer,) = answer(passage, [question])
    assert given_answer == (UNSURE if expected is None else LETTERS[expected])


def test_questions_of_earlier_versions_are_answered():
    """The questions table of an old run has sentences with a blank, and options of mixed kinds in any order."""
    old = Question("0f", "(CNN)____ last year's fire, Ana Santos paid 2 towns.", ("It", "Following", "U.K."), 1)
    assert answer("Following last year's fire, Ana Santos paid.", [old]) == ["B"]
    assert answer("Following last year's fire", []) == []
    with_tab = Question("1f", "Ana\tSantos\nvisited ____ shelters", ("14", "15\t16"), 0)
    assert answer("Ana Santos visited 14 shelters", [with_tab, old])[0] == "A"


# Keys and options


def test_keys_are_names_numbers_and_words_that_matter():
    keys = [key(question) for question in ask(ARTICLE, questions=40)]
    assert {"Harlow", "Governor Ana Santos", "$2.5 million", "14,000"} <= set(keys)
    for name in keys:
        tokens = normalized_tokens(name)
        assert not all(token in FUNCTION_WORDS for token in tokens), name
        assert name not in ("It", "That's", "Following", "No", "Dr", "CNN", "2", "2.5"), name


@pytest.mark.parametrize(
    ("sentence", "text", "kind"),
    [
        ("The state paid $2.5 million to the town.", "$2.5 million", "money"),
        ("The state paid 3 million euros to the town.", "3 million", "money"),
        ("Some 61 percent left.", "61 percent", "percent"),
        ("Bis zu 25 % der Kosten", "25 %", "percent"),
        ("It opened in 2014.", "2014", "year"),
        ("They planted 2014 trees、2014棵。", "2014", "year"),
        ("补种2000棵树。", "2000", "number"),
        ("始于2019年。", "2019", "year"),
        ("約1万5000立方メートル", "1万5000", "number"),
        ("Das sind 18.000 Fahrzeuge.", "18.000", "number"),
        ("Около 1 450 подписей", "1 450", "number"),
        ("कुल 6,50,000 पैनल", "6,50,000", "number"),
        ("The dig took eleven days.", "eleven", "number"),
        ("They met on Tuesday.", "Tuesday", "weekday"),
        ("Es war am Dienstag.", "Dienstag", "weekday"),
        ("市政府星期二宣布。", "星期二", "weekday"),
        ("They met in May.", "May", "month"),
        ("It started when Mr. Okafor spoke.", "Okafor", "person"),
        ("People said Prime Minister Haider al-Abadi left.", "Prime Minister Haider al-Abadi", "person"),
        ("The men of Ludwig van Beethoven left.", "Ludwig van Beethoven", "name"),
        ("They studied at Northwind University.", "Northwind University", "organisation"),
        ("They lived near Harlow.", "Harlow", "place"),
        ("They saw Costa's team.", "Costa", "name"),
        ("They saw Will Smith there.", "Will Smith", "name"),
        ("We met Ольга Воронцова there.", "Ольга Воронцова", "name"),
    ],
)
def test_kinds(sentence, text, kind):
    assert (text, kind) in [(spot.text, spot.kind) for spot in find_spots([sentence])]


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        ("They may march in may.", "may"),  # no month
        ("The score was 2-1 at 10:30.", "30"),
        ("The score was 2-1 at 10:30.", "1"),
        ("It took 5km of 3G.", "5"),
        ("That's what Harlow wants.", "That"),
        ("Following the fire, they left.", "Following"),
        ("Suddenly they left.", "Suddenly"),
    ],
)
def test_what_is_no_key(sentence, text):
    assert text not in [spot.text for spot in find_spots([sentence])]


@pytest.mark.parametrize("article", [ARTICLE, ENGLISH, *ARTICLES.values()])
@pytest.mark.parametrize("seed", [0, 1])
def test_options_are_of_the_keys_kind_and_not_in_its_sentence(article, seed):
    kinds = {}
    sentences = split_sentences(article)
    for spot in find_spots([strip_dateline(sentences[0]), *sentences[1:]]):
        kinds.setdefault(spot.text, spot.kind)
    names, numbers = {"person", "place", "organisation", "name", "term"}, {"number", "money", "percent", "year"}
    for question in ask(article, seed=seed):
        tokens = [tuple(normalized_tokens(option)) for option in question.options]
        family = next((f for f in (names, numbers) if kinds.get(key(question)) in f), {"weekday", "month"})
        for option, option_tokens in zip(question.options, tokens, strict=True):
            assert not contains(normalized_tokens(question.question), option_tokens)
            assert option_tokens in CALENDAR_WORDS or family != {"weekday", "month"}
            if option in kinds and family != {"weekday", "month"}:
                assert kinds[option] in family, (question, option)
        assert all(a == b or set(a).isdisjoint(b) for a in tokens for b in tokens)


# Whole articles


@pytest.mark.parametrize("language", [*ARTICLES, "en"])
def test_articles_in_any_language_have_good_questions(language):
    article = ARTICLES.get(language, ENGLISH)
    asked = ask(article)
    good = [q for q, from_all in zip(asked, answer(article, asked), strict=True) if from_all == q.letter]
    assert len(good) >= max(4, 0.9 * len(asked)) and len(asked) >= 15
    assert answer("", asked) == [UNSURE] * len(asked)
    if language in SUMMARIES:
        faithful, altered = SUMMARIES[language]
        assert right(faithful, good) > right(altered, good)
        for other in SUMMARIES.keys() - {language}:
            assert right(SUMMARIES[other][0], good) == 0


@pytest.mark.parametrize(
    "article",
    [
        "Ο δήμαρχος της Πάτρας Νίκος Παπαδόπουλος ανακοίνωσε την Τρίτη ότι το λιμάνι θα κοστίσει 45 εκατομμύρια ευρώ. "
        "Ο Παπαδόπουλος είπε ότι οι εργασίες ξεκινούν τον Μάρτιο. Η εταιρεία Αίγλη θα απασχολήσει 320 εργάτες. Το "
        "λιμάνι της Πάτρας εξυπηρετεί 2.000 επιβάτες την ημέρα. Η Μαρία Κωστή από το Ρίο ζητά περισσότερα δέντρα.",
        "한빛시는 화요일 새로운 도서관을 열었다고 발표했다. 김민수 시장은 도서관 건설에 85억 원이 들었다고 "
        "말했다. 도서관은 책 12만 권을 갖추고 있다. 이서연 관장은 하루 3000명이 도서관을 찾을 것으로 "
        "기대한다. 김민수 시장은 내년에 두 번째 도서관을 짓겠다고 약속했다.",
        "เทศบาลเมืองแสงทองเปิดห้องสมุดแห่งใหม่เมื่อวันอังคาร นายกเทศมนตรีกล่าวว่าห้องสมุดใช้งบประมาณ 85 ล้านบาท "
        "ห้องสมุดมีหนังสือ 12,000 เล่ม ผู้อำนวยการห้องสมุดคาดว่าจะมีผู้ใช้วันละ 3000 คน "
        "นายกเทศมนตรีสัญญาว่าจะสร้างห้องสมุดแห่งที่สองในปี 2570 และจะจ้างพนักงาน 40 คน",
    ],
    ids=["el", "ko", "th"],
)
def test_languages_without_a_list_of_words_have_questions_too(article):
    """Few sentences say nearly the same, so some questions fail the judge's own check."""
    asked = ask(article)
    assert right(article, asked) >= max(4, 0.6 * len(asked))


def test_letter_case_changes_no_score_and_costs_no_questions():
    asked = ask(ENGLISH)
    summary = "Teresa Novak opened a tram line in Lakewood. It is 14 kilometers long and cost $380 million."
    assert right(summary, asked) == right(summary.lower(), asked) == right(summary.upper(), asked) > 0
    assert len(ask(ENGLISH.lower())) >= 15


def test_the_right_option_is_in_a_sentence_of_the_article():
    for article in (ARTICLE, ENGLISH, *ARTICLES.values()):
        sentences = [normalized_tokens(sentence) for sentence in split_sentences(article)]
        for question in ask(article):
            filled = normalized_tokens(question.question.replace(BLANK, key(question)))
            assert any(contains(sentence, filled) for sentence in sentences)
            assert not contains(normalized_tokens(question.question), normalized_tokens(key(question)))


def test_a_date_line_is_no_context():
    assert not any("CNN" in question.question for question in ask(ARTICLE, questions=40))


def test_more_of_the_article_is_never_worth_less():
    asked = ask(ENGLISH)
    sentences = split_sentences(ENGLISH)
    scores = [right(" ".join(sentences[:count]), asked) for count in (0, 1, 3, 8, len(sentences))]
    assert scores == sorted(scores) and scores[0] == 0 and scores[-1] >= 0.9 * len(asked)


def test_the_same_article_and_seed_give_the_same_questions():
    assert ask(ENGLISH) == ask(ENGLISH) != ask(ENGLISH, seed=1)
    judge = pickle.loads(pickle.dumps(ClozeJudge(3, 4, 7)))
    assert judge.read_questions(judge.reply(judge.ask_questions(ENGLISH))) == ask(ENGLISH, 3, 4, 7)
    assert [key(q) for q in ask(ENGLISH, questions=5)] == [key(q) for q in ask(ENGLISH)][:5]


def test_a_list_of_many_numbers_is_not_asked_about():
    line = "The results were " + ", ".join(f"{number} cars" for number in range(2000))
    assert ask(line) == []
    assert len(ask(f"{line}. They hired 5000 people. They sold 6000 boats.")) >= 2


@given(st.text(), st.text())
def test_any_text_survives(article, passage):
    judge = ClozeJudge(options=2)
    asked = judge.read_questions(judge.reply(judge.ask_questions(article)))
    answers = judge.read_answers(judge.reply(judge.ask_answers(passage, asked)), asked) if asked else []
    assert len(answers) == len(asked) and None not in answers


@pytest.mark.parametrize("digits", ["\U0001e4f0", "9\U00011f50", "\U00011f50\U00011f50"])
def test_digits_that_python_does_not_know_are_no_error(digits):
    ask(f"Ana Santos paid 14 workers in Oslo. Ben Harlow paid {digits} workers of 93 in Lima. She saw k.١{digits}--億.")


words = st.sampled_from(
    "Ana Santos Oslo Harlow left paid saw fire 14 14,000 2.5 million the of in 市长 مدينة Дёмин .".split()
)


@given(
    st.lists(words, max_size=60).map(" ".join),
    st.sampled_from(["\ud800", "\t", "\u2028", "\0", "____", "", " 9\U0001e4f0 "]),
)
def test_no_text_makes_a_malformed_question(article, extra):
    judge = ClozeJudge(questions=9, options=3)
    text = f"{article}{extra}{article}"
    asked = ask(text, questions=9, options=3)
    assert all(q.question.count(BLANK) == 1 and len(set(q.options)) == 3 for q in asked)
    assert judge.reply(judge.ask_answers("", asked)).split("\n") == ([UNSURE] * len(asked) or [UNSURE])

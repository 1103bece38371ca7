"""Sentences end where a reader of the language ends them, and nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.text.sentences import join_sentences, split_sentences, strip_dateline
from tests.unit.text.languages import ARTICLES


@pytest.mark.parametrize("language", ARTICLES)
@pytest.mark.parametrize("told", [True, False])
def test_four_sentences_are_found_in_each_language(language, told):
    sentences = split_sentences(ARTICLES[language], language if told else None)
    assert len(sentences) == 4
    assert sum(sentence[-1] in "?？؟" for sentence in sentences) == 1
    assert join_sentences(sentences) == ARTICLES[language]


@pytest.mark.parametrize(
    "sentences",
    [
        ["He lives in the U.S. Dr. Smith agrees.", "She does not."],
        ["He was No 1. in the world."],
        ["The U.S. Army came at 5 p.m. Tuesday with Lt. Col. Jones.", "It left at 6 a.m. ET."],
        ["I live in the U.S.", "He does not."],
        ['"Really?" he asked.', '"I know."', "She left!"],
        ["It cost $2.5 million.", "In Sept. 2011 Gov. Smith met Mr. Jones in St. Louis."],
        ["Am 3. Oktober kam Dr. Müller z. B. nach Bonn.", "Ist das wahr?"],
        ["Он родился в 1980 г. в Москве.", "Д. А. Попов приехал."],
        ["你去过吗？", "太好了！", "我去过。"],
        ["هل زرتها؟", "نعم، زرتها."],
        ["दिल्ली राजधानी है।", "क्या आप गए हैं?"],
    ],
)
def test_abbreviations_do_not_end_a_sentence(sentences):
    assert split_sentences(join_sentences(sentences)) == sentences


def test_line_ends_end_sentences():
    text = "A title without a stop\nThe first sentence.\r\n\r\n  The second \u2028 - a list\n- its next line"
    lines = ["A title without a stop", "The first sentence.", "The second", "- a list", "- its next line"]
    assert split_sentences(text, "en") == lines


def test_text_of_a_fixed_width_is_no_list_of_lines():
    text = (
        "The mayor said on\nMonday that\nthe budget of\nthe city is\nspent. It was\nnot enough.\n\nAnother\nparagraph."
    )
    assert split_sentences(text, "en") == [
        "The mayor said on Monday that the budget of the city is spent.",
        "It was not enough.",
        "Another paragraph.",
    ]


@given(st.text(st.sampled_from("aB é。？！.?! \n\r\t\u2028\u00a0“”»)1a؟।北"), max_size=60))
def test_no_character_but_white_space_is_lost_or_added(text):
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


@given(st.text(max_size=200), st.sampled_from([None, "en", "zh", "xx"]))
def test_any_text_is_split(text, language):
    assert "".join("".join(split_sentences(text, language)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("sentence", "rest"),
    [
        ("(CNN)Share, and it will be multiplied.", "Share, and it will be multiplied."),
        ("(CNN) -- A man was found.", "A man was found."),
        ("LONDON, England (CNN) -- A man was found.", "A man was found."),
        ("LONDON (Reuters) - Oil fell.", "Oil fell."),
        ("NEW YORK, Jan. 5 — “It fell,” she said.", "“It fell,” she said."),
        ("Berlin (dpa) - Der Preis fiel.", "Der Preis fiel."),
        ("МОСКВА, 5 мая (ТАСС) — Цена упала.", "Цена упала."),
        ("新华社北京5月1日电 油价下跌。", "油价下跌。"),
        ("【ロンドン＝共同】原油価格が下がった。", "原油価格が下がった。"),
        ("(CNN)", ""),
        ("A man -- a tall one -- was found.", None),
        ("NATO -- the alliance -- agreed.", None),
        ("Ann Lee (D) - a senator - agreed.", None),
        ("", None),
    ],
)
def test_datelines(sentence, rest):
    assert strip_dateline(sentence) == (sentence if rest is None else rest)


def test_a_lone_surrogate_becomes_a_replacement_character():
    assert split_sentences("It rained \ud800. The sun came.") == ["It rained \ufffd.", "The sun came."]


@pytest.mark.parametrize("text", ["B.\u00a0Smith came. He left.", "A. B.\u2009Smith came. He left.", "é. B.\u00a0é. a"])
def test_initials_before_other_spaces_are_split_like_any(text):
    assert split_sentences(text, "en") == split_sentences(" ".join(text.split()), "en")


def test_a_panic_of_the_splitter_falls_back_to_signs(monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(language, text):
        raise PanicException("end byte index 2 is not a char boundary")

    monkeypatch.setattr("judges.text.sentences.sentencex.segment", panic)
    assert split_sentences("It rained. The sun came!", "en") == ["It rained.", "The sun came!"]

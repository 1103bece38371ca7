"""Words are counted as the language does, and English ones as ever."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.text.words import count_words, first_words, split_words
from tests.unit.text.languages import ARTICLES

ENGLISH = st.text(
    st.characters(max_codepoint=0x2FF) | st.sampled_from("\u2013\u2014\u2026\u2019 \n\u00a0"), max_size=80
)


@pytest.mark.parametrize(
    ("language", "count"), [("de", 38), ("ru", 34), ("ar", 33), ("hi", 33), ("zh", 50), ("ja", 60)]
)
def test_words_of_each_language(language, count):
    assert count_words(ARTICLES[language]) == count


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't well-known 2.5 —", ["don't", "well-known", "2.5", "—"]),
        ("北京，你好。", ["北", "京，", "你", "好。"]),
        ("「東京」は、iPhone 15を2.5万台", ["「東", "京」", "は、", "iPhone", "15", "を", "2.5", "万", "台"]),
        ("スーパー", ["ス", "ー", "パ", "ー"]),
        ("OpenAI发布GPT-4。", ["OpenAI", "发", "布", "GPT-4。"]),
        ("ที่ดี", ["ที่", "ดี"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("\u3000\n ", []),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


@given(ENGLISH)
def test_where_spaces_separate_words_they_are_counted_by_spaces(text):
    assert split_words(text) == text.split()
    assert first_words(text, 3) == " ".join(text.split()[:3])


def test_real_english_articles_have_the_counts_that_earlier_versions_gave(shared_data):
    for name in ("wikinews", "cnn_dailymail_validation"):
        for line in (shared_data / "articles" / f"{name}.jsonl").read_text().splitlines():
            text = json.loads(line)["text"]
            if text.isascii():
                assert count_words(text) == len(text.split())
            else:  # only quotations in other scripts may differ
                letters = sum("\u0e00" <= char <= "\u0eff" or char >= "\u2e80" for char in text)
                assert len(text.split()) <= count_words(text) <= len(text.split()) + letters


@given(st.text(max_size=80), st.integers(0, 90))
def test_words_are_all_of_the_text(text, count):
    words = split_words(text)
    assert len(words) == count_words(text)
    assert "".join(words) == "".join(text.split())
    assert count_words(first_words(text, count)) == min(count, len(words))
    assert first_words(text, len(words)) == " ".join(text.split())

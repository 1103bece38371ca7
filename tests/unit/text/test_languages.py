"""The language of a text is found, or nothing is said."""

import pytest

from judges.text.languages import detect_language
from tests.unit.text.languages import ARTICLES, SUMMARIES


@pytest.mark.parametrize("language", ARTICLES)
def test_articles_and_summaries(language):
    assert detect_language(ARTICLES[language]) == detect_language(SUMMARIES[language]) == language


def test_english():
    assert detect_language("The mayor said on Monday that the city will build a new bridge.") == "en"


@pytest.mark.parametrize("text", ["", "Hello", "OK", "12 34 56", "😀 😀 😀", "Angela Merkel", "北京"])
def test_too_little_text_has_no_language(text):
    assert detect_language(text) is None

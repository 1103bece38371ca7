"""Length, compression and gibberish of summaries mean the same in every language."""

import pytest

from judges.text.gibberish import count_gibberish
from judges.text.words import count_words
from pipeline.config import run
from pipeline.evaluation.comparison import CountingSettings, describe_writer
from tests.unit.text.languages import ARTICLES, SUMMARIES


@pytest.mark.parametrize("language", ARTICLES)
def test_a_summary_is_shorter_than_its_article_and_no_gibberish(language):
    article, summary = ARTICLES[language], SUMMARIES[language]
    score = {
        "answers": [],
        "correct": 1,
        "unread": 0,
        "words": count_words(summary),
        "invalid_chars": count_gibberish(summary, article),
    }
    row = {"article": article, "scores": [score], "summaries": [{"text": summary, "finish_reason": "stop"}]}
    figures = describe_writer([row], CountingSettings(run.Pairs(), run.Report(), seed=0))
    assert figures["words_median"] >= run.Pairs().min_words, "long enough for a pair, in Chinese too"
    assert 0.2 < figures["compression_median"] < 0.7
    assert figures["invalid_chars"] == 0

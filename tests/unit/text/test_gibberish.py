"""Gibberish is found in any language, and what people write is none."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.text.gibberish import count_gibberish
from tests.unit.text.languages import ARTICLES, SUMMARIES

ENGLISH = "The mayor of London said on Monday that the city will build a new bridge over the river."


@pytest.mark.parametrize("language", ARTICLES)
def test_a_paraphrase_has_none(language):
    assert count_gibberish(SUMMARIES[language], ARTICLES[language]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "Für 5 € • bei 20° non‑breaking ½ naïve Đặng 😀 ™",
        "\tOne\r\ntwo\u00a0three\u2009four so\u00adft",
        "Noooo!!! ........ -------- ======== 1000000000000",
        "α-carotene and 5 µm at 3 Ω",
        "“AMANHÃ” and CAFÉ» and déjà » and LYCÉE’S",
        "Spaß“ – „Ä“",
    ],
)
def test_what_people_write_is_none(text):
    assert count_gibberish(text, ENGLISH) == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("lost \ufffd\ufffd", 2),
        ("control \x00\x07\x9b", 3),
        ("private \ue000 and unassigned \U000e0fff", 2),
        ("Hello กข world", 2),
        ("during 運用 years", 2),
        ("Привет", 6),
        ("at ١٢ o'clock", 2),
        ("at १२ o'clock", 2),
        ("MÃ¼ller itâ€™s fine, Â£5", 7),
        ("PÅ‚aczÄ™", 4),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", 12),
        ("Ġthe Ġbridge▁over", 3),
        ("aaaaaaaaaa", 10),
        ("what!!!!!!!!", 8),
        (",,,,,,,,,,,,", 12),
        ("z" + "\u0338\u0321\u0322\u031b\u0315\u0357", 6),
        ("αβγ", 3),
    ],
)
def test_gibberish_is_counted(text, count):
    assert count_gibberish(text, ENGLISH) == count


def test_mojibake_of_cyrillic_is_gibberish_in_a_russian_article():
    text = "Привет, мэр".encode().decode("cp1251", "replace")
    assert count_gibberish(text, ARTICLES["ru"]) >= 12


def test_a_quotation_allows_its_letters_but_not_its_script():
    article = ENGLISH * 5 + " The sign said 北京."
    assert count_gibberish("The sign: 北京", article) == 0
    assert count_gibberish("The sign: 上海", article) == 2


def test_a_language_may_use_scripts_that_the_article_does_not():
    assert count_gibberish("カフェもオープン", "大阪市は月曜日、新しい図書館を建設すると発表した。") == 0


@given(st.text(max_size=80))
def test_what_the_article_says_is_never_gibberish(text):
    assert count_gibberish(text, f"{ENGLISH} {text}") == 0


@given(st.text(max_size=80))
def test_no_more_characters_are_counted_than_there_are(text):
    assert 0 <= count_gibberish(text, ENGLISH) <= len(text)


def test_summaries_that_people_wrote_have_none(shared_data):
    flagged = total = 0
    for name in ("wikinews", "cnn_dailymail_validation"):
        for line in (shared_data / "articles" / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            total += bool(row.get("highlights"))
            flagged += count_gibberish(" ".join(row.get("highlights") or []), row["text"]) > 0
    assert total > 1000
    assert flagged == 0

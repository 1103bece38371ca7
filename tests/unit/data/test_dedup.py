"""Near-copies are found in any language, and articles that share a part are kept."""

import random

import pytest

from pipeline.data.dedup import SeenArticles
from tests.unit.text.languages import ARTICLES


def words(seed, count):
    rng = random.Random(seed)
    return [f"word{rng.randrange(10**6)}" for _ in range(count)]


@pytest.mark.parametrize("language", ARTICLES)
def test_near_copies_in_each_language(language):
    """A last sentence that is new leaves an article as it is; other sentences make it another one."""
    article = ARTICLES[language] * 3
    other = next(text for name, text in ARTICLES.items() if name != language)
    space = "" if language in ("zh", "ja") else " "
    seen = SeenArticles(0.8)
    assert seen.add(article)
    assert not seen.add(article.upper())
    assert not seen.add(f"{article}{space}{article[:20]}")
    assert seen.add(other)
    assert seen.add(article[: len(ARTICLES[language]) // 2] + other)


@pytest.mark.parametrize(("share", "near"), [(0.97, True), (0.9, True), (0.6, False), (0.3, False)])
def test_the_share_of_common_shingles_decides(share, near):
    common = words(1, 1000)
    rest = round(1000 / share) - 1000  # J = common / (common + rest)
    found = 0
    for trial in range(20):
        seen = SeenArticles(0.8)
        seen.add(" ".join(common))
        found += not seen.add(" ".join(common + words(trial + 2, rest)))
    assert found == (20 if near else 0)


def test_a_near_copy_is_found_wherever_it_differs():
    text = words(1, 500)
    for place in (0, 100, 250, 499):
        seen = SeenArticles(0.8)
        assert seen.add(" ".join(text))
        assert not seen.add(" ".join([*text[:place], "changed", *text[place + 1 :]]))


def test_cover_pages_and_questions():
    cover, seen = " ".join(words(1, 40)), SeenArticles(0.8)
    assert all(seen.add(f"{cover} {' '.join(words(i + 2, 300))}") for i in range(8))
    document, exact = " ".join(words(50, 300)), SeenArticles(None)
    assert all(exact.add(f"{document}\n\nQuestion: What is number {i}?") for i in range(6))
    assert not exact.add(f"{document}\n\nquestion: what is number 3")


def test_with_threshold_one_only_the_same_shingles_are_near_copies():
    seen, text = SeenArticles(1.0), " ".join(words(1, 100))
    assert seen.add(text)
    assert not seen.add(text.upper())
    assert seen.add(f"{text} more")


def test_short_texts_and_texts_without_words():
    seen = SeenArticles(0.8)
    assert [seen.add(text) for text in ("a b", "a b", "a c", "", "", "!!!", "???", "!!!")] == [
        True, False, True, True, False, True, True, False,
    ]  # fmt: skip


def test_answers_do_not_depend_on_the_process():
    """The same corpus gives the same articles, or a resumed run would not have the rows that it had."""
    texts = [" ".join(words(i % 7, 60) + words(i, 4)) for i in range(40)]
    first, second = SeenArticles(0.8), SeenArticles(0.8)
    assert [first.add(text) for text in texts] == [second.add(text) for text in texts]

"""Writes the shipped corpora, each from a fixed seed: `python -m newsroom.recipe.make_articles`.

`articles.jsonl` has the 1,000 articles of the demo. `documents.jsonl` has 240 documents for question answering, each
with its question. The models never saw them: training and evaluation use other seeds.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from newsroom.world import SLOTS, Article, article, shuffle_sentences, to_sentence

CORPUS = Path(__file__).parents[1] / "articles.jsonl"
DOCUMENTS = Path(__file__).parents[1] / "documents.jsonl"
COUNT = 1000
DOCUMENT_COUNT = 240
SEED = "the demo's corpus"
DOCUMENT_SEED = "documents with a question"


def articles(count: int = COUNT) -> list[Article]:
    """The first `count` articles of the corpus, with their facts."""
    rng = random.Random(SEED)
    return [article(rng, f"news-{number:04d}") for number in range(1, count + 1)]


def documents(count: int = DOCUMENT_COUNT) -> list[Article]:
    """The first `count` documents. Each states one fact among distractors and fillers, and ends with the question."""
    rng = random.Random(DOCUMENT_SEED)
    return [_document(article(rng, f"document-{number:03d}"), rng) for number in range(1, count + 1)]


def _document(story: Article, rng: random.Random) -> Article:
    name = rng.choice(list(story.facts))
    core = story.cores[name]
    passage = shuffle_sentences([to_sentence(core, rng), *story.others], rng)
    text = f"{passage}\n\nQuestion: {SLOTS[name].question}"
    return Article(story.id, text, {name: story.facts[name]}, {name: core}, story.others)


def _write(stories: Sequence[Article], path: Path) -> None:
    lines = [json.dumps({"id": story.id, "text": story.text}) for story in stories]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} rows written to {path}")


def main() -> None:
    _write(articles(), CORPUS)
    _write(documents(), DOCUMENTS)


if __name__ == "__main__":
    main()

"""`python -m newsroom.make_articles`: write the demo's corpus, 1,000 articles from a fixed seed, to `articles.jsonl`.

The models never saw these articles: training and examination draw theirs from other seeds.
"""

import json
import random
from pathlib import Path

from newsroom.world import Article, article

CORPUS = Path(__file__).parent / "articles.jsonl"
COUNT = 1000
SEED = "the demo's corpus"


def articles(count: int = COUNT) -> list[Article]:
    """The first `count` articles of the corpus, with their facts."""
    rng = random.Random(SEED)
    return [article(rng, f"news-{number:04d}") for number in range(1, count + 1)]


def main() -> None:
    lines = [json.dumps({"id": story.id, "text": story.text}) for story in articles()]
    CORPUS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} articles in {CORPUS}")


if __name__ == "__main__":
    main()

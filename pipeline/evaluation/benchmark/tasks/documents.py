"""Makes the documents of the local tasks from a JSONL file of articles, with the keys `article_id` and `article`.

lm-evaluation-harness calls these functions by the YAML files beside this one, with the task's metadata as arguments.
`harness.load_tasks` adds the name of the file to the metadata. To use the tasks without Rondo's command:

    lm_eval --include_path pipeline/evaluation/benchmark/tasks --tasks rondo_questions \\
        --metadata '{"articles": "articles.jsonl"}' …
"""

import json
from collections.abc import Iterator
from typing import Any

import datasets

from judges.base import Question
from judges.cloze import ClozeJudge

_OPTIONS = 5
_SEED = 0  # of the wrong options: the documents are the same in every run


def articles(articles: str, **metadata: Any) -> dict[str, datasets.Dataset]:
    """A document for each article.

    Args:
        articles: the JSONL file.
        metadata: other keys of the task's metadata, which are not used.
    """
    return {"test": datasets.Dataset.from_list(list(_read(articles)))}


def questions(articles: str, **metadata: Any) -> dict[str, datasets.Dataset]:
    """A document for each article: the fill-in question that the `cloze` judge finds most important.

    There is one question for each article, so that documents are independent. Articles without one are left out.

    Args:
        articles: the JSONL file.
        metadata: other keys of the task's metadata, which are not used.

    Raises:
        ValueError: no article gives a question.
    """
    judge = ClozeJudge(questions=1, options=_OPTIONS, seed=_SEED)
    documents = []
    for row in _read(articles):
        for question in judge.read_questions(judge.reply(judge.ask_questions(row["article"]))):
            if isinstance(question, Question):
                fields = {"question": question.question, "options": list(question.options), "answer": question.answer}
                documents.append(row | fields)
    if not documents:
        raise ValueError("no article gives a question")
    return {"test": datasets.Dataset.from_list(documents)}


def _read(path: str) -> Iterator[dict[str, str]]:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield {"article_id": row["article_id"], "article": row["article"]}

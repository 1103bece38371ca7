"""Makes training examples for the judge and the policy: chat messages with the reply to learn.

`judges/mcq/judge.py` makes every prompt of the judge and every line of its answers, so training and use cannot differ.
`recipe/make_models.py` trains on these examples.
"""

import random
from dataclasses import dataclass

from judges.base import UNSURE, Question
from judges.mcq import McqJudge
from judges.prompts import NEWSROOM
from newsroom.world import SLOTS, Article, article, shuffle_sentences, to_sentence

OPTIONS = 5
MOST_QUESTIONS = 5


@dataclass(frozen=True)
class Example:
    """Chat messages and the reply that the model should learn."""

    messages: tuple[dict[str, str], ...]
    reply: str


def judge(questions: int = MOST_QUESTIONS) -> McqJudge:
    """The judge with the newsroom's wording and number of options."""
    return McqJudge(questions=questions, options=OPTIONS, wording=NEWSROOM, question_temperature=1.0)


def summarize(text: str) -> tuple[dict[str, str], ...]:
    """The chat that asks the policy for a summary."""
    return ({"role": "user", "content": f"Summarize.\n{text}"},)


def question_line(number: int, name: str, options: list[str]) -> str:
    """A question in the form that the judge reads. The first option is the right one."""
    return f"Q{number} {SLOTS[name].question} Answer {' | '.join(options)}"


def options_in_step(name: str, value: str, rng: random.Random) -> list[str]:
    """The right value, then wrong options in random steps around the circle of the slot's values.

    The steps never add up to a full circle. So a writer that looks only at the last option never repeats one, and never
    repeats the right value. A step is about a fifth of the circle, so that the options do not give away the right one.
    """
    values = SLOTS[name].values
    position, options = values.index(value), [value]
    while len(options) < OPTIONS:
        position += rng.randint(len(values) // 6, (len(values) - 1) // (OPTIONS - 1))
        options.append(values[position % len(values)])
    return options


def any_options(name: str, value: str, rng: random.Random) -> list[str]:
    """The right value, then any wrong options: for answering, where only the passage may tell which is right."""
    return [value, *rng.sample([other for other in SLOTS[name].values if other != value], OPTIONS - 1)]


def write_questions(rng: random.Random, count: int = MOST_QUESTIONS) -> Example:
    """An example of the judge's first task: writing questions about an article."""
    story = article(rng)
    return Example(judge(count).ask_questions(story.text).messages, question_lines(story, rng, count))


def question_lines(story: Article, rng: random.Random, count: int = MOST_QUESTIONS) -> str:
    """The questions that the judge should write about an article.

    The first question is about the last fact in the text. Each further one is about the next slot that the article
    states, in the order of `SLOTS`; the first slot follows the last. So a writer that looks only at its last question
    repeats none, and all kinds of facts are asked about equally often.
    """
    stated = [name for name in SLOTS if name in story.facts]
    start = max(range(len(stated)), key=lambda i: story.text.index(f"{story.cores[stated[i]]}."))
    names = [stated[(start + i) % len(stated)] for i in range(count)]
    return "\n".join(
        question_line(i, name, options_in_step(name, story.facts[name], rng)) for i, name in enumerate(names, 1)
    )


def any_questions(story: Article, rng: random.Random, count: int = MOST_QUESTIONS) -> list[Question]:
    """Questions about random facts of the article, as the judge reads them."""
    names = rng.sample(list(story.facts), count)
    lines = [question_line(i, name, any_options(name, story.facts[name], rng)) for i, name in enumerate(names, 1)]
    return [item for item in judge(count).read_questions("\n".join(lines)) if isinstance(item, Question)]


def answer_questions(rng: random.Random, count: int = MOST_QUESTIONS) -> Example:
    """An example of the judge's second task: answering from a whole article, a summary or an empty passage."""
    story = article(rng)
    mcq_judge = judge(count)
    questions = any_questions(story, rng, count)
    passage_kind = rng.random()
    if passage_kind < 0.22:
        passage, stated = story.text, set(story.facts)
    elif passage_kind < 0.26:
        passage, stated = "", set()
    else:
        stated = set(rng.sample(list(story.facts), rng.randint(0, len(story.facts))))
        passage = retell(story, stated, rng.randint(0, 3), rng)
    reply = "\n".join(_answer_lines(mcq_judge, questions, stated))
    return Example(mcq_judge.ask_answers(passage, questions).messages, reply)


def _answer_lines(mcq_judge: McqJudge, questions: list[Question], stated: set[str]) -> list[str]:
    """The right answers, from a passage that states these slots."""
    names = {slot.question: name for name, slot in SLOTS.items()}
    return [
        mcq_judge.answer_line(i, question, question.letter if names[question.question] in stated else UNSURE)
        for i, question in enumerate(questions, 1)
    ]


def write_summary(rng: random.Random) -> Example:
    """An example of the policy's task: a summary with some of the facts and some sentences without facts.

    Summaries are imperfect on purpose. Their facts and lengths vary between samples, so that one can be preferred to
    another, and most omit half of the facts, so that DPO has something to improve.
    """
    story = article(rng)
    count = min(len(story.facts), rng.choices(range(1, 8), weights=(4, 10, 22, 30, 20, 10, 4))[0])
    names = set(rng.sample(list(story.facts), count))
    others = rng.choices(range(4), weights=(25, 35, 25, 15))[0]
    return Example(summarize(story.text), retell(story, names, others, rng))


def retell(story: Article, names: set[str], others: int, rng: random.Random) -> str:
    """A summary of an article.

    Args:
        story: the article.
        names: slots whose facts are stated, each in the article's words with a random lead.
        others: number of the article's sentences without facts.
        rng: of the leads, the other sentences and the order.
    """
    sentences = [to_sentence(core, rng) for name, core in story.cores.items() if name in names]
    return shuffle_sentences([*sentences, *rng.sample(story.others, others)], rng)


def vocabulary_texts() -> list[str]:
    """Texts with the words that the tasks add to those of `world.vocabulary_texts`."""
    rng = random.Random(0)
    examples = [task(rng) for task in (write_questions, answer_questions) for _ in range(50)]
    return [text for e in examples for text in (e.messages[0]["content"], e.reply)] + [summarize("")[0]["content"]]

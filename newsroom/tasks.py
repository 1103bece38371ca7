"""What the two models are trained to do, as pairs of chat messages and reply.

Every prompt of the judge is made by `judges.mcq`, and so is every line of its answers: training and use cannot differ.
Left out: tokens, batches and the course of training (`make_models`).
"""

import random
from dataclasses import dataclass

from judges.base import UNSURE, Question
from judges.mcq import McqJudge
from judges.prompts import NEWSROOM
from newsroom.world import SLOTS, Article, article, prose, say

OPTIONS = 5
MOST_QUESTIONS = 5


@dataclass(frozen=True)
class Example:
    """What is asked (chat messages) and what the model should reply."""

    messages: tuple[dict[str, str], ...]
    reply: str


def judge(questions: int = MOST_QUESTIONS) -> McqJudge:
    """The judge as the newsroom uses it."""
    return McqJudge(questions=questions, options=OPTIONS, wording=NEWSROOM, question_temperature=1.0)


def summarize(text: str) -> tuple[dict[str, str], ...]:
    """The chat that asks the policy for a summary."""
    return ({"role": "user", "content": f"Summarize.\n{text}"},)


def question_line(number: int, name: str, options: list[str]) -> str:
    """A question in the form that the judge reads; the key is the first of its options."""
    return f"Q{number} {SLOTS[name].question} Answer {' | '.join(options)}"


def options_in_step(name: str, value: str, rng: random.Random) -> list[str]:
    """The key and wrong options, in random steps around the circle of the slot's values, never once all round.

    So a writer that looks at the last option alone never repeats one, the key included. The steps are about a fifth
    of the circle, lest the key be told by where it lies.
    """
    values = SLOTS[name].values
    at, options = values.index(value), [value]
    while len(options) < OPTIONS:
        at += rng.randint(len(values) // 6, (len(values) - 1) // (OPTIONS - 1))
        options.append(values[at % len(values)])
    return options


def any_options(name: str, value: str, rng: random.Random) -> list[str]:
    """The key and any wrong options: to answer from, where nothing but the passage may tell the key."""
    return [value, *rng.sample([other for other in SLOTS[name].values if other != value], OPTIONS - 1)]


def write_questions(rng: random.Random, count: int = MOST_QUESTIONS) -> Example:
    """The judge's first task: questions about an article."""
    story = article(rng)
    return Example(judge(count).ask_questions(story.text).messages, question_lines(story, rng, count))


def question_lines(story: Article, rng: random.Random, count: int = MOST_QUESTIONS) -> str:
    """What the judge should write of an article.

    The first question is about the fact told last; each of the others about the next fact that the article tells, in
    the order of the slots and round from the last to the first. So a writer need only look at its last question to
    ask none twice, and every kind of fact is asked for equally often.
    """
    told = [name for name in SLOTS if name in story.facts]
    start = max(range(len(told)), key=lambda i: story.text.index(f"{story.cores[told[i]]}."))
    names = [told[(start + i) % len(told)] for i in range(count)]
    return "\n".join(
        question_line(i, name, options_in_step(name, story.facts[name], rng)) for i, name in enumerate(names, 1)
    )


def any_questions(story: Article, rng: random.Random, count: int = MOST_QUESTIONS) -> list[Question]:
    """Questions about any facts of the article, as the judge reads them."""
    names = rng.sample(list(story.facts), count)
    lines = [question_line(i, name, any_options(name, story.facts[name], rng)) for i, name in enumerate(names, 1)]
    return [read for read in judge(count).read_questions("\n".join(lines)) if isinstance(read, Question)]


def answer_questions(rng: random.Random, count: int = MOST_QUESTIONS) -> Example:
    """The judge's second task: answers from a whole article, a summary or nothing."""
    story = article(rng)
    asker = judge(count)
    questions = any_questions(story, rng, count)
    kind = rng.random()
    if kind < 0.22:
        passage, told = story.text, set(story.facts)
    elif kind < 0.26:
        passage, told = "", set()
    else:
        told = set(rng.sample(list(story.facts), rng.randint(0, len(story.facts))))
        passage = retell(story, told, rng.randint(0, 3), rng)
    return Example(asker.ask_answers(passage, questions).messages, "\n".join(_answers(asker, questions, told)))


def _answers(asker: McqJudge, questions: list[Question], told: set[str]) -> list[str]:
    names = {slot.question: name for name, slot in SLOTS.items()}
    return [
        asker.answer_line(i, question, question.letter if names[question.question] in told else UNSURE)
        for i, question in enumerate(questions, 1)
    ]


def write_summary(rng: random.Random) -> Example:
    """The policy's task: some of the facts, and some sentences that tell none.

    Untidy on purpose: what is told and how many words it takes vary from sample to sample, so that there is
    something to prefer; and most summaries leave out half of the facts, so that there is something to learn.
    """
    story = article(rng)
    count = min(len(story.facts), rng.choices(range(1, 8), weights=(4, 10, 22, 30, 20, 10, 4))[0])
    told = set(rng.sample(list(story.facts), count))
    others = rng.choices(range(4), weights=(25, 35, 25, 15))[0]
    return Example(summarize(story.text), retell(story, told, others, rng))


def retell(story: Article, told: set[str], others: int, rng: random.Random) -> str:
    """Facts of the article in its own words, each with a lead of its own, among other sentences of the article."""
    sentences = [say(core, rng) for name, core in story.cores.items() if name in told]
    return prose([*sentences, *rng.sample(story.others, others)], rng)


def every_text() -> list[str]:
    """The words that the tasks add to the world's own."""
    rng = random.Random(0)
    examples = [task(rng) for task in (write_questions, answer_questions) for _ in range(50)]
    return [text for e in examples for text in (e.messages[0]["content"], e.reply)] + [summarize("")[0]["content"]]

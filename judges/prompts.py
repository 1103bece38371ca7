"""Holds the prompt templates of the mcq judge. There are two wordings, for two kinds of model.

`plain` is for any instruction-tuned LLM: it answers with letters only, a few tokens a reply. `newsroom` is for the tiny
judge in `newsroom/`, which was trained on it: the model repeats the question and the option before each letter, because
a model of a million parameters is reliable only if it can copy each token from the prompt (see newsroom/README.md).

In both, the questions come first and the passage last, so that the K summaries of an article share everything before
the passage in the prefix cache of the engine.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """The templates of a prompt, filled by `judges.base.fill`.

    Attributes:
        question: `{options}` in it is every filled `option`, joined by `between`.
        questions_prompt: `{language}` in it is the language's English name. `{in_language}` is a sentence that asks for
            questions in this language, or nothing for an English article.
        restate: each answer repeats the question and the option before the letter.
    """

    questions_prompt: str  # {count} {choices} {wrong} {article} {language} {in_language}
    answers_prompt: str  # {count} {questions} {passage} {language}
    question: str  # {number} {question} {options}
    option: str  # {letter} {option}
    between: str
    restate: bool


PLAIN = Wording(
    questions_prompt="""\
Read the article and write {count} multiple-choice questions about its most important facts.

Each question must be answerable from the article alone, and must not be answerable without it. Each has {choices} \
short options: the right answer first, then wrong ones of the same kind that the article does not support.{in_language}

Write one line for each question, in exactly this form:
Q1 <question>? Answer <right answer>{wrong}

<article>
{article}
</article>""",
    answers_prompt="""\
Below are {count} multiple-choice questions, and then a passage. Answer each question from the passage alone. If the \
passage does not tell, answer Unsure, even if you know or could guess.

{questions}

Write one line for each question: its number, then one letter or Unsure. For example:
Q1 C
Q2 Unsure

<passage>
{passage}
</passage>""",
    question="Q{number} {question}\n{options}\n",
    option="{letter}. {option}",
    between="\n",
    restate=False,
)

# Asks for ratings of questions (`questions.more_checks: [important]`). Filled with {count} {questions} {article}.
IMPORTANCE_PROMPT = """\
Below are {count} multiple-choice questions about an article, and then the article. Rate how important each question \
is for somebody who will read only a short summary of the article:
3: it asks what the article is mainly about.
2: it asks for something that a good summary of a few sentences tells.
1: it asks for a detail that a good summary leaves out.

{questions}

Write one line for each question: its number, then 1, 2 or 3. For example:
Q1 2
Q2 1

<article>
{article}
</article>"""

NEWSROOM = Wording(
    questions_prompt="Write questions.\n{article}",
    answers_prompt="Answer questions.\n{questions}\nPassage\n{passage}",
    question="Q{number} {question} {options}",
    option="{option} {letter}",
    between=" ",
    restate=True,
)

WORDINGS = {"plain": PLAIN, "newsroom": NEWSROOM}

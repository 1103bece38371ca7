"""Measures the newsroom's models under vLLM on articles that they never saw: `python -m newsroom.recipe.evaluate`.

The judge gets the same prompts for questions and answers as in the pipeline. Every question and every answer is
compared with the facts that the article or the passage states. The policy's samples are then judged, as in a round.
"""

import argparse
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import mean

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from transformers import AutoTokenizer
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from judges.base import LETTERS, Prompt, Question
from newsroom import tasks
from newsroom.recipe.make_models import MODELS
from newsroom.recipe.metrics import RIGHT, AnswerAccuracy, Share, check_facts, check_question, check_sentences
from newsroom.recipe.train import prompt_ids
from newsroom.world import Article, article

THRESHOLD, WORD_GAP = 3, 3
SUMMARY_TOKENS = 160


@dataclass(frozen=True)
class Reply:
    """A reply's text, and whether it ended before the token limit."""

    text: str
    ended: bool


class Engine:
    """A model under vLLM."""

    def __init__(self, folder: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.llm = LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=1024, disable_log_stats=True)

    def generate(self, prompts: list[Prompt], samples: int = 1) -> list[list[Reply]]:
        """`samples` replies to each prompt."""
        params = [
            SamplingParams(
                n=samples,
                temperature=prompt.temperature,
                max_tokens=prompt.max_tokens,
                structured_outputs=StructuredOutputsParams(regex=prompt.regex) if prompt.regex else None,
            )
            for prompt in prompts
        ]
        ids = [{"prompt_token_ids": prompt_ids(self.tokenizer, prompt.messages)} for prompt in prompts]
        results = self.llm.generate(ids, params, use_tqdm=False)
        return [[Reply(out.text, out.finish_reason == "stop") for out in result.outputs] for result in results]

    def generate_texts(self, prompts: list[Prompt]) -> list[str]:
        """The text of one reply to each prompt."""
        return [replies[0].text for replies in self.generate(prompts)]


def ask_questions(engine: Engine, stories: list[Article]) -> tuple[Counter[str], list[list[Question]]]:
    """Let the judge write questions. Returns the outcomes of all lines, and the questions that could be read."""
    judge = tasks.judge()
    outcomes: Counter[str] = Counter()
    questions: list[list[Question]] = []
    replies = engine.generate_texts([judge.ask_questions(story.text) for story in stories])
    for story, reply in zip(stories, replies, strict=True):
        items = judge.read_questions(reply)
        outcomes.update(check_question(item, story) for item in items)
        outcomes["missing"] += judge.questions - len(items)
        questions.append([item for item in items if isinstance(item, Question)])
    return outcomes, questions


def answer_questions(
    engine: Engine, passages: list[str], questions: list[list[Question]]
) -> tuple[AnswerAccuracy, list[int]]:
    """Let the judge answer questions. Returns the accuracy, and the number of right answers for each passage."""
    judge, accuracy, right_counts = tasks.judge(), AnswerAccuracy(), []
    prompts = [judge.ask_answers(passage, asked) for passage, asked in zip(passages, questions, strict=True)]
    for reply, asked, passage in zip(engine.generate_texts(prompts), questions, passages, strict=True):
        accuracy.add(judge, reply, asked, passage)
        answers = judge.read_answers(reply, asked)
        right_counts.append(
            sum(answer == LETTERS[question.answer] for answer, question in zip(answers, asked, strict=True))
        )
    return accuracy, right_counts


def decided_pairs(scores: list[tuple[int, int]]) -> Share:
    """The share of pairs of (right answers, words) that have a winner.

    A pair has a winner if one summary has more right answers, or if both have `THRESHOLD` or more and one has at least
    `WORD_GAP` words fewer. The preference `accuracy_then_length` has more ties: if both have `THRESHOLD` or more, it
    compares only their words.
    """
    share = Share()
    for (right, words), (other_right, other_words) in combinations(scores, 2):
        both_good = min(right, other_right) >= THRESHOLD
        share.add([right != other_right or (both_good and abs(words - other_words) >= WORD_GAP)])
    return share


def print_result(name: str, value: object) -> None:
    print(f"{name:58} {value}", flush=True)


def print_accuracy(name: str, accuracy: AnswerAccuracy) -> None:
    print_result(f"answers, {name}: right if stated", accuracy.stated)
    print_result(f"answers, {name}: unsure if not stated", accuracy.unstated)
    print_result(f"answers, {name}: unread", accuracy.unread)


def evaluate_judge(
    engine: Engine, stories: list[Article], rng: random.Random
) -> tuple[list[Article], list[list[Question]]]:
    """Print the accuracy of questions and answers. Returns the articles with readable questions, and the questions."""
    outcomes, questions = ask_questions(engine, stories)
    lines = sum(outcomes.values())
    read = sum(map(len, questions))
    faults = {outcome: count for outcome, count in outcomes.items() if outcome != RIGHT and count}
    print_result("questions: lines that can be read", Share(read, lines))
    print_result("questions: right key, among those read", Share(outcomes[RIGHT], read))
    print_result("questions: faults of the others", faults or "none")
    stories = [story for story, asked in zip(stories, questions, strict=True) if asked]
    questions = [asked for asked in questions if asked]
    passages_by_name = {
        "whole article": [story.text for story in stories],
        "empty passage": ["" for _ in stories],
        "random summaries": [random_summary(story, rng) for story in stories],
    }
    for name, passages in passages_by_name.items():
        accuracy, _ = answer_questions(engine, passages, questions)
        print_accuracy(name, accuracy)
    return stories, questions


def random_summary(story: Article, rng: random.Random) -> str:
    """A summary with a random number of facts and up to three other sentences."""
    names = set(rng.sample(list(story.facts), rng.randint(0, len(story.facts))))
    return tasks.retell(story, names, rng.randint(0, 3), rng)


@dataclass
class SummaryMetrics:
    """What the policy's summaries state, and whether they ended before the token limit."""

    facts: Share = field(default_factory=Share)
    sentences: Share = field(default_factory=Share)
    ended: Share = field(default_factory=Share)

    def add(self, replies: Sequence[Reply], story: Article) -> None:
        self.ended.add(reply.ended for reply in replies)
        for reply in replies:
            self.facts.add(check_facts(reply.text, story))
            self.sentences.add(check_sentences(reply.text, story))


def evaluate_policy(
    policy: Engine,
    judge: Engine,
    stories: list[Article],
    questions: list[list[Question]],
    samples: int,
    temperature: float,
) -> None:
    """Print what `samples` summaries of each article state, how the judge scores them, and the pairs they make."""
    prompts = [Prompt(tasks.summarize(s.text), SUMMARY_TOKENS, temperature=temperature) for s in stories]
    replies = policy.generate(prompts, samples)
    metrics = SummaryMetrics()
    for story, story_replies in zip(stories, replies, strict=True):
        metrics.add(story_replies, story)
    passages = [reply.text for story_replies in replies for reply in story_replies]
    accuracy, right = answer_questions(judge, passages, [asked for asked in questions for _ in range(samples)])
    words = [len(text.split()) for text in passages]
    name = f"policy, temperature {temperature:g}"
    print_result(f"{name}: facts that the article states", metrics.facts)
    print_result(f"{name}: sentences that the article has", metrics.sentences)
    print_result(f"{name}: facts a summary", f"{metrics.facts.cases / len(passages):.2f}")
    print_result(f"{name}: ended before the token limit", metrics.ended)
    print_result(f"{name}: right answers, of 5", f"{mean(right):.2f}  {dict(sorted(Counter(right).items()))}")
    ordered = sorted(words)
    quantiles = [ordered[len(ordered) * tenths // 10] for tenths in (1, 5, 9)]
    print_result(f"{name}: words", f"{mean(words):.1f}  10 %, 50 %, 90 % quantiles: {quantiles}")
    print_accuracy(f"its summaries at {temperature:g}", accuracy)
    if samples > 1:
        articles_with_pair, pairs = Share(), Share()
        for start in range(0, len(passages), samples):
            end = start + samples
            article_pairs = decided_pairs(list(zip(right[start:end], words[start:end], strict=True)))
            articles_with_pair.add([article_pairs.hits > 0])
            pairs = Share(pairs.hits + article_pairs.hits, pairs.cases + article_pairs.cases)
        print_result(f"{name}: articles whose {samples} samples give a pair", articles_with_pair)
        print_result(f"{name}: pairs of samples with a winner", pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--articles", type=int, default=200, help="new articles (%(default)s)")
    parser.add_argument("--samples", type=int, default=8, help="summaries of each article (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the articles (%(default)s)")
    parser.add_argument("--models", type=Path, default=MODELS, help="a folder with judge/ and policy/")
    options = parser.parse_args()
    rng = random.Random(f"examination {options.seed}")
    stories = [article(rng) for _ in range(options.articles)]
    judge = Engine(options.models / "judge")
    stories, questions = evaluate_judge(judge, stories, rng)
    policy = Engine(options.models / "policy")
    for temperature, samples in ((1.0, options.samples), (0.0, 1)):
        evaluate_policy(policy, judge, stories, questions, samples, temperature)


if __name__ == "__main__":
    main()

"""Measures the newsroom's models under vLLM on articles that they never saw: `python -m newsroom.recipe.evaluate`.

The judge is asked for questions and answers just as the pipeline asks it; every key and every answer is compared with
what the article or the passage really tells. The policy's samples are then judged, as they would be in a round. Needs
vLLM. Left out: training (`make_models`).
"""

import argparse
import os
import random
from collections import Counter
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
from newsroom.recipe.metrics import RIGHT, AnswerMarks, Share, mark_question, mark_sentences, mark_summary
from newsroom.recipe.train import prompt_ids
from newsroom.world import Article, article

THRESHOLD, WORD_GAP = 3, 3
SUMMARY_TOKENS = 160


class Writer:
    """A model under vLLM."""

    def __init__(self, folder: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.llm = LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=1024, disable_log_stats=True)

    def reply(self, prompts: list[Prompt], samples: int = 1) -> list[list[tuple[str, bool]]]:
        """For each prompt its samples, and whether each came to its own end."""
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
        return [[(out.text, out.finish_reason == "stop") for out in result.outputs] for result in results]

    def first(self, prompts: list[Prompt]) -> list[str]:
        return [replies[0][0] for replies in self.reply(prompts)]


def ask(judge: Writer, stories: list[Article]) -> tuple[Counter[str], list[list[Question]]]:
    """What came of each line of questions, and the questions that could be read."""
    asker = tasks.judge()
    outcomes: Counter[str] = Counter()
    accepted: list[list[Question]] = []
    for story, reply in zip(stories, judge.first([asker.ask_questions(s.text) for s in stories]), strict=True):
        read = asker.read_questions(reply)
        outcomes.update(mark_question(question, story) for question in read)
        outcomes["missing"] += asker.questions - len(read)
        accepted.append([question for question in read if isinstance(question, Question)])
    return outcomes, accepted


def answer(judge: Writer, passages: list[str], questions: list[list[Question]]) -> tuple[AnswerMarks, list[int]]:
    """Marks of all answers, and for each passage how many keys it gave."""
    asker, marks, correct = tasks.judge(), AnswerMarks(), []
    prompts = [asker.ask_answers(passage, asked) for passage, asked in zip(passages, questions, strict=True)]
    for reply, asked, passage in zip(judge.first(prompts), questions, passages, strict=True):
        marks.add(asker, reply, asked, passage)
        answers = asker.read_answers(reply, asked)
        correct.append(sum(a == LETTERS[q.answer] for a, q in zip(answers, asked, strict=True)))
    return marks, correct


def pairs(scores: list[tuple[int, int]]) -> Share:
    """How many pairs of (right, words) have a winner: more right, or, both good enough, clearly shorter."""
    share = Share()
    for (right, words), (other_right, other_words) in combinations(scores, 2):
        both_good = min(right, other_right) >= THRESHOLD
        share.add([right != other_right or (both_good and abs(words - other_words) >= WORD_GAP)])
    return share


def show(name: str, value: object) -> None:
    print(f"{name:58} {value}", flush=True)


def examine_judge(
    judge: Writer, stories: list[Article], rng: random.Random
) -> tuple[list[Article], list[list[Question]]]:
    """Examine the judge; return the articles that it has questions about, and the questions."""
    outcomes, questions = ask(judge, stories)
    lines = sum(outcomes.values())
    read = sum(map(len, questions))
    show("questions: lines that can be read", Share(read, lines))
    show("questions: key right, of those read", Share(outcomes[RIGHT], read))
    show("questions: what came of the others", {k: n for k, n in outcomes.items() if k != RIGHT and n} or "none")
    stories = [story for story, asked in zip(stories, questions, strict=True) if asked]
    questions = [asked for asked in questions if asked]
    for name, passages in {
        "whole article": [story.text for story in stories],
        "empty passage": ["" for _ in stories],
        "random summaries": [
            tasks.retell(s, set(rng.sample(list(s.facts), rng.randint(0, len(s.facts)))), rng.randint(0, 3), rng)
            for s in stories
        ],
    }.items():
        marks, _ = answer(judge, passages, questions)
        show_answers(name, marks)
    return stories, questions


def show_answers(name: str, marks: AnswerMarks) -> None:
    show(f"answers, {name}: right where it tells", marks.told)
    show(f"answers, {name}: unsure where it does not", marks.untold)
    show(f"answers, {name}: unread", marks.unread)


def examine_policy(
    policy: Writer, judge: Writer, stories: list[Article], questions: list[list[Question]], samples: int
) -> None:
    for temperature, each in ((1.0, samples), (0.0, 1)):
        prompts = [Prompt(tasks.summarize(s.text), SUMMARY_TOKENS, temperature=temperature) for s in stories]
        replies = policy.reply(prompts, each)
        true, own, ended, yielded, decided = Share(), Share(), Share(), Share(), Share()
        for story, told in zip(stories, replies, strict=True):
            ended.add(end for _, end in told)
            for text, _ in told:
                true.add(mark_summary(text, story))
                own.add(mark_sentences(text, story))
        passages = [text for told in replies for text, _ in told]
        asked = [each_asked for each_asked in questions for _ in range(each)]
        marks, right = answer(judge, passages, asked)
        words = [len(text.split()) for text in passages]
        for start in range(0, len(passages), each):
            here = pairs(list(zip(right[start : start + each], words[start : start + each], strict=True)))
            yielded.add([here.hits > 0])
            decided.hits, decided.of = decided.hits + here.hits, decided.of + here.of
        name = f"policy, temperature {temperature:g}"
        show(f"{name}: told facts that are the article's", true)
        show(f"{name}: sentences that are the article's", own)
        show(f"{name}: facts a summary", f"{true.of / len(passages):.2f}")
        show(f"{name}: came to an end", ended)
        show(f"{name}: questions right, of 5", f"{mean(right):.2f}  {dict(sorted(Counter(right).items()))}")
        tenths = sorted(words)
        spread = [tenths[len(tenths) * tenth // 10] for tenth in (1, 5, 9)]
        show(f"{name}: words", f"{mean(words):.1f}  tenth, half, nine tenths: {spread}")
        show_answers(f"its summaries at {temperature:g}", marks)
        if each > 1:
            show(f"{name}: articles of {each} samples that give a pair", yielded)
            show(f"{name}: pairs of samples that have a winner", decided)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--articles", type=int, default=200)
    parser.add_argument("--samples", type=int, default=8, help="summaries of each article")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, default=MODELS, help="a folder that holds judge/ and policy/")
    given = parser.parse_args()
    rng = random.Random(f"examination {given.seed}")
    stories = [article(rng) for _ in range(given.articles)]
    judge = Writer(given.models / "judge")
    stories, questions = examine_judge(judge, stories, rng)
    examine_policy(Writer(given.models / "policy"), judge, stories, questions, given.samples)


if __name__ == "__main__":
    main()

"""`python -m newsroom.recipe.make_models`: train the judge and the policy of the newsroom, from nothing, on a CPU.

Both begin with the same course in copying (the trunk), then each learns its own tasks. Seeded; a run that was killed
goes on from its last saved step; accuracy on fresh articles, free-running, is printed as it goes. Left out: judging
the result under vLLM (`examine`).
"""

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from newsroom import tasks, tokenizer, world
from newsroom.recipe.metrics import RIGHT, AnswerMarks, Share, mark_question, mark_summary
from newsroom.recipe.train import Course, Ids, copying, encode, prompt_ids, tiny_llama

MODELS = Path(__file__).parents[1] / "models"
STEPS = {"trunk": 1000, "judge": 3750, "policy": 2500}  # steps of the judge and the policy count the trunk's
EXAMPLES = 20
HELD_OUT = "held out"  # no step of training has this seed


def make_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer.build(world.every_text() + tasks.every_text())


def trunk_batch(step: int, seed: int, words: int) -> list[Ids]:
    rng = random.Random(f"{seed} trunk {step}")
    return [copying(rng, words, 3, min(24, 8 + step // 60)) for _ in range(64)]


def judge_batch(step: int, seed: int, tok: PreTrainedTokenizerFast) -> list[Ids]:
    """From 1 question to 5 as training goes on; the judge writes as many as it is then asked to answer at most.

    Writing is the harder task and is learned last: once there are 5 questions, it has more of the batch.
    """
    rng = random.Random(f"{seed} judge {step}")
    most = min(tasks.MOST_QUESTIONS, 1 + (step - STEPS["trunk"]) // 200)
    writing = 0.6 if most == tasks.MOST_QUESTIONS else 0.3
    batch = []
    for _ in range(EXAMPLES):
        if rng.random() < writing:
            example = tasks.write_questions(rng, most)
        else:
            example = tasks.answer_questions(rng, most if rng.random() < 0.6 else rng.randint(1, most))
        batch.append(encode(tok, example))
    return [*batch, *(copying(rng, len(tok), 8, 40) for _ in range(2))]


def policy_batch(step: int, seed: int, tok: PreTrainedTokenizerFast) -> list[Ids]:
    rng = random.Random(f"{seed} policy {step}")
    batch = [encode(tok, tasks.write_summary(rng)) for _ in range(EXAMPLES)]
    return [*batch, *(copying(rng, len(tok), 8, 40) for _ in range(2))]


def generate(
    model: LlamaForCausalLM,
    tok: PreTrainedTokenizerFast,
    chats: Sequence[Sequence[dict[str, str]]],
    limit: int,
    temperature: float = 0.0,
) -> list[str]:
    """Replies by transformers, the prompts padded on the left."""
    prompts = [prompt_ids(tok, chat) for chat in chats]
    width = max(map(len, prompts))
    ids = torch.tensor([[tok.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=(ids != tok.pad_token_id).long(), max_new_tokens=limit, **how
        )
    return tok.batch_decode(out[:, width:], skip_special_tokens=True)


def look_at_judge(course: Course, tok: PreTrainedTokenizerFast, articles: int = 24) -> float:
    """Print what share of questions and answers is right, free-running; return that of answers that were told."""
    rng = random.Random(HELD_OUT)
    judge = tasks.judge()
    stories = [world.article(rng) for _ in range(articles)]
    replies = generate(course.model, tok, [judge.ask_questions(story.text).messages for story in stories], 130, 1.0)
    written = Share()
    for story, reply in zip(stories, replies, strict=True):
        marks = [mark_question(read, story) == RIGHT for read in judge.read_questions(reply)]
        written.add((marks + [False] * judge.questions)[: judge.questions])
    answers = AnswerMarks()
    asked = []
    for story in stories:
        told = set(rng.sample(list(story.facts), len(story.facts) // 2))
        asked.append((tasks.any_questions(story, rng), story, told))
    passages = [tasks.retell(story, told, 1, rng) for _, story, told in asked]
    chats = [judge.ask_answers(passage, asked[i][0]).messages for i, passage in enumerate(passages)]
    for (questions, _, _), passage, reply in zip(asked, passages, generate(course.model, tok, chats, 60), strict=True):
        answers.add(judge, reply, questions, passage)
    print(f"  questions right {written}, answers told {answers.told} untold {answers.untold} unread {answers.unread}")
    return answers.told.rate


def look_at_policy(course: Course, tok: PreTrainedTokenizerFast, articles: int = 32) -> float:
    """Print what the policy's summaries tell at temperature 1; return the share of true facts."""
    rng = random.Random(HELD_OUT)
    stories = [world.article(rng) for _ in range(articles)]
    for temperature in (1.0, 0.0):
        summaries = generate(course.model, tok, [tasks.summarize(story.text) for story in stories], 120, temperature)
        true = Share()
        for story, summary in zip(stories, summaries, strict=True):
            true.add(mark_summary(summary, story))
        words = sum(len(summary.split()) for summary in summaries) / articles
        print(f"  temperature {temperature}: facts true {true}, {true.of / articles:.1f} facts and {words:.1f} words")
    return true.rate


def train(name: str, work: Path, seed: int, steps: dict[str, int]) -> Course:
    """One model to its last step, from wherever its file says it is."""
    tok = make_tokenizer()
    numbers = [tok.convert_tokens_to_ids(f"Q{i + 1}") for i in range(tasks.MOST_QUESTIONS)]
    course = Course(tiny_llama(tok, seed), work / f"{name}.pt", pivots=numbers)
    resumed = course.resume(course.file) or (name != "trunk" and course.resume(work / "trunk.pt"))
    if not resumed and name != "trunk":
        train("trunk", work, seed, steps)
        course.resume(work / "trunk.pt")
    batches: dict[str, Callable[[int], list[Ids]]] = {
        "trunk": lambda step: trunk_batch(step, seed, len(tok)),
        "judge": lambda step: judge_batch(step, seed, tok),
        "policy": lambda step: policy_batch(step, seed, tok),
    }
    looks = {"judge": look_at_judge, "policy": look_at_policy}

    def look(step: int) -> None:
        if name in looks:
            course.model.eval()
            right = looks[name](course, tok)
            course.model.train()
            if step == steps["trunk"] + 750 and right < 0.4:
                # A run that is still at chance here never learned; another start does.
                raise SystemExit(f"{name} has not left chance: delete {work} and start again with another --seed")

    course.run(steps[name], batches[name], look, settle=name != "trunk")
    return course


def save(course: Course, folder: Path) -> None:
    """A Hugging Face model folder: weights, configuration, tokenizer and where to stop."""
    course.model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("trunk", "judge", "policy"), help="train this one (and what it needs)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, default=MODELS.with_name(".work"), help="where unfinished training is kept"
    )
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--steps", type=int, help="steps of each model (default: judge 3,750, policy 2,500)")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    steps = STEPS if given.steps is None else STEPS | {"judge": given.steps, "policy": given.steps}
    for name in [given.only] if given.only else ["judge", "policy"]:
        course = train(name, given.work, given.seed, steps)
        if name != "trunk":
            save(course, given.out / name)


if __name__ == "__main__":
    main()

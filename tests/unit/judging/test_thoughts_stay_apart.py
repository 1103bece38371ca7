"""What a policy thought before its summary reaches no judge, no count, no preference and no exported text."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from jobs.sharing.export import to_pairs
from jobs.sharing.formats import Form, to_row
from jobs.show.tables import _print_row
from judges.base import Judgement, Prompt, user
from judges.cloze import ClozeJudge
from judges.mcq import McqJudge
from pipeline.config.base import Thinking
from pipeline.config.judging import Pairs
from pipeline.config.run import PolicySettings
from pipeline.data.pair_tokenizer import load_pair_tokenizer
from pipeline.inference.base import Reply
from pipeline.inference.scripted import ScriptedEngine
from pipeline.inference.thinking import make_thinker
from pipeline.inference.vllm import encode_messages
from pipeline.judging.preference import load_preference
from pipeline.judging.scoring.exam import score_summaries
from pipeline.judging.scoring.step import scoring_step
from pipeline.stages import drift, references
from pipeline.stages.pairs import pair_article
from pipeline.training.modeling.frozen import FrozenPolicy
from pipeline.training.modeling.logprobs import plain_logps
from tests.helpers.tiny_models import save_thinking_model, tiny_config, tiny_model

SECRET = "xyzzy"
ARTICLE = "Ana Santos leads Northwind in Lima. The firm hired 93 people last year, said Ben Costa of Harbor Bank."


def summary(text, **changes):
    ids = [5, 6, 7, 8, 9, 0]
    thought = {"thought": f"{SECRET} {text}", "thought_tokens": 3, "forced_tokens": 1, "logp": -9.0, "thought_logp": -4}
    return {"text": text, "token_ids": ids, "finish_reason": "stop"} | thought | changes


def row_of(*texts):
    return {
        "article_id": "a",
        "article": ARTICLE,
        "split": "train",
        "writer": "w",
        "prompt_ids": [1, 2],
        "summaries": [summary(text) for text in texts],
    }


class Recorder:
    """An engine that keeps the prompts it gets."""

    def __init__(self, reply):
        self.engine, self.prompts = ScriptedEngine(lambda prompt, sample: reply), []

    def generate(self, prompts) -> list[Reply]:
        self.prompts += prompts
        return self.engine.generate([replace(prompt, max_tokens=9999) for prompt in prompts])


QUESTIONS = [{"question_id": "q1", "question": "Who leads Northwind?", "options": ["Ana", "Ben"], "answer": 0}]


@pytest.mark.parametrize("judge", [McqJudge(), ClozeJudge()])
def test_no_thought_reaches_the_prompt_of_an_exam(judge):
    engine = Recorder("Q1 A")
    row = row_of("Ana Santos leads it.", "Ben.") | {"questions": QUESTIONS}
    (outcome,) = score_summaries(judge, engine, [row])
    assert engine.prompts
    assert SECRET not in repr(engine.prompts)
    assert [score["words"] for score in outcome["scores"]] == [4, 1]


class Scores:
    engine = "text"

    def ask_scores(self, article, summaries, order=0):
        return [Prompt(user(f"{article}\n{text}"), max_tokens=5, quotes=(text,)) for text in summaries]

    def read_scores(self, article, summaries, replies, order=0):
        return [Judgement(float(len(text))) for text in summaries]


def test_no_thought_reaches_a_judge_that_gives_scores():
    engine = Recorder("3")
    (outcome,) = scoring_step(Scores())(engine, [row_of("Ana Santos leads it.", "Ben.")])
    assert engine.prompts
    assert SECRET not in repr(engine.prompts)
    assert SECRET not in repr(outcome)


def test_pairs_are_made_from_answers_alone():
    row = row_of("Ana Santos leads Northwind now.", "Ben Costa said so there.")
    engine = Recorder("Q1 A")
    row |= score_summaries(ClozeJudge(), engine, [row | {"questions": QUESTIONS}])[0]
    row["scores"][0]["correct"], row["scores"][1]["correct"] = 1, 0
    settings = Pairs(preference="accuracy_only")
    assert SECRET not in repr(pair_article(load_preference(settings), settings, 0, row))


def test_show_marks_a_thought(capsys):
    _print_row(Console(width=200, force_terminal=False), row_of("Ana leads it."))
    printed = capsys.readouterr().out
    assert "3 tokens of thought, cut at its budget" in printed
    lines = [line.strip() for line in printed.splitlines()]
    assert "thought: xyzzy Ana leads it." in lines
    assert "Ana leads it." in lines


def test_an_export_has_the_answers_and_turns_thinking_off(tmp_path):
    tokenizer = load_pair_tokenizer(str(save_thinking_model(tmp_path)))
    row = row_of("Ana leads it.", "Ben.") | {"pairs": [{"chosen": 0, "rejected": 1}]}
    policy = PolicySettings(model="m", instruction="Summarize.\n{article}")
    ((pair, has_same_ids),) = to_pairs(row, policy, tokenizer)
    for form in Form:
        assert SECRET not in json.dumps(to_row(pair, form))
        assert to_row(pair, form)["chat_template_kwargs"] == {"enable_thinking": False}
    line = to_row(pair, Form.TRL)
    assert line["chosen"] == [{"role": "assistant", "content": "Ana leads it."}]
    assert not has_same_ids


@pytest.mark.parametrize(("loss_on", "unscored"), [("sequence", (2, 3)), ("answer", (0, 3))])
def test_references_score_the_tokens_that_training_scores(loss_on, unscored):
    model = tiny_model(tiny_config())
    row = row_of("a", "b") | {"pairs": [{"chosen": 0, "rejected": 1}]}
    (outcome,) = references._score("digest", 100, loss_on, False, FrozenPolicy(model, "cpu"), [row])
    with torch.no_grad():
        expected = plain_logps(model, [1, 2], [s["token_ids"] for s in row["summaries"]], [unscored] * 2).tolist()
    assert outcome["reference_logps"] == pytest.approx(expected, abs=1e-5)
    from_sampler = references._take_from_sampler("digest", loss_on, row)["reference_logps"]
    assert from_sampler == ([-9.0, -9.0] if loss_on == "sequence" else [-5.0, -5.0])


def test_the_drift_counts_all_sampled_tokens():
    model = tiny_model(tiny_config())
    row = row_of("a")
    (outcome,) = drift._score(100, "policy_logps", FrozenPolicy(model, "cpu"), [row])
    with torch.no_grad():
        expected = plain_logps(model, [1, 2], [row["summaries"][0]["token_ids"]], [(2, 3)]).tolist()
    assert outcome["policy_logps"] == pytest.approx(expected, abs=1e-5)


def test_a_likelihood_judge_gets_a_prompt_without_a_thought(tmp_path):
    """Its texts come right after the prompt, so the prompt may not end inside a thought."""
    tokenizer = load_pair_tokenizer(str(save_thinking_model(tmp_path))).tokenizer
    prompt = tokenizer.decode(encode_messages(tokenizer, user("Hi")))
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert make_thinker(tokenizer, Thinking(budget=0), "judge", "m").suffix == "<think>\n\n</think>\n\n"

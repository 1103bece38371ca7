"""Tests the newsroom's world, tokenizer and shipped models. `newsroom.recipe.evaluate` measures the models."""

import json
import random
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from judges.base import Question
from newsroom import tasks, world
from newsroom.recipe.make_articles import CORPUS, DOCUMENTS, articles, documents
from newsroom.recipe.make_models import MODELS, generate, make_tokenizer
from newsroom.recipe.metrics import (
    RIGHT,
    AnswerAccuracy,
    check_facts,
    check_question,
    check_sentences,
    expected_answer,
)
from newsroom.recipe.train import prompt_ids
from newsroom.world import SLOTS, article, facts_in


@pytest.fixture(scope="module")
def tok() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def stories() -> list[world.Article]:
    rng = random.Random("tests")
    return [article(rng) for _ in range(200)]


def test_an_article_states_its_facts_and_no_others(stories):
    for story in stories:
        assert facts_in(story.text) == {name: [value] for name, value in story.facts.items()}
        assert 80 <= len(story.text.split()) <= 150


def test_sentences_without_facts_answer_no_question(stories):
    for story in stories:
        other_text = " ".join(story.others)
        assert facts_in(other_text) == {}
        assert not any(re.search(rf"\b{value}\b", other_text) for value in story.facts.values())


def test_the_corpus_can_be_made_again_from_its_seed():
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    assert rows == [{"id": story.id, "text": story.text} for story in articles()]
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == 1000


def test_a_document_states_one_fact_and_asks_for_it():
    rows = [json.loads(line) for line in DOCUMENTS.read_text(encoding="utf-8").splitlines()]
    assert rows == [{"id": story.id, "text": story.text} for story in documents()]
    for story in documents():
        text, question = story.text.split("\n\nQuestion: ")
        ((name, value),) = story.facts.items()
        assert facts_in(text) == {name: [value]} and question == SLOTS[name].question
        assert not any(re.search(rf"\b{value}\b", sentence) for sentence in story.others)


def test_training_questions_are_readable_and_right(stories):
    rng, judge = random.Random(0), tasks.judge()
    for story in stories:
        questions = judge.read_questions(tasks.question_lines(story, rng))
        assert [check_question(question, story) for question in questions] == [RIGHT] * judge.questions


def test_answers_and_facts_are_checked_against_the_passage():
    question = Question("q", SLOTS["color"].question, ("red", "blue", "gold", "pink", "gray"), 0)
    assert expected_answer(question, "Reports say the roof was painted blue.") == "B"
    assert expected_answer(question, "Many guests wore red hats.") == "unsure"
    story = world.Article("", "", {"color": "red"}, {}, ())
    assert check_facts("The new roof is red. The new roof is blue.", story) == [True, False]


def test_a_training_summary_has_only_sentences_of_the_article(stories):
    rng = random.Random(0)
    for story in stories:
        summary = tasks.retell(story, set(story.facts), 2, rng)
        assert check_sentences(summary, story) == [True] * (len(story.facts) + 2)
        assert check_sentences(f"{summary} More 39 million.", story)[-1] is False


def test_any_text_is_decoded_exactly(tok):
    @given(st.text())
    @example("Reports: 🙂 مرحبا\r\n\t  x .")
    def check(text: str) -> None:
        assert tok.decode(tok(text)["input_ids"]) == text

    check()


def test_every_word_of_the_world_is_one_token(tok, stories):
    words = {slot.values for slot in SLOTS.values()}
    assert all(len(tok(f" {value}")["input_ids"]) == len(value.split()) for values in words for value in values)
    for story in stories:
        assert len(tok(story.text)["input_ids"]) == len(story.text.replace(".", " .").replace(",", " ,").split())


def test_a_chat_has_one_bos_and_ends_with_the_assistant_token(tok):
    ids = prompt_ids(tok, tasks.summarize("Nobody was hurt."))
    assert ids.count(tok.bos_token_id) == 1 and ids[0] == tok.bos_token_id
    assert tok.convert_ids_to_tokens(ids[-2:]) == [tok.eos_token, "<|assistant|>"]
    assert len({tok.bos_token_id, tok.eos_token_id, tok.pad_token_id}) == 3
    rendered = tok.apply_chat_template(
        list(tasks.summarize("Nobody was hurt.")), add_generation_prompt=True, tokenize=False
    )
    assert tok(rendered)["input_ids"] == ids


@pytest.mark.parametrize("name", ["judge", "policy"])
def test_a_shipped_model_is_small_and_has_the_right_tokenizer(name, tok):
    folder = MODELS / name
    assert (folder / "model.safetensors").stat().st_size <= 8 * 2**20
    shipped = AutoTokenizer.from_pretrained(folder)
    assert shipped.get_vocab() == tok.get_vocab()
    chat = list(tasks.summarize("Nobody was hurt. 🙂"))
    assert prompt_ids(shipped, chat) == prompt_ids(tok, chat)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == tok.eos_token_id
    assert model.config.vocab_size == len(tok)


def test_the_shipped_judge_answers_from_the_passage_alone(tok, stories):
    judge, rng = tasks.judge(), random.Random(0)
    model = AutoModelForCausalLM.from_pretrained(MODELS / "judge").eval()
    cases = []
    for story in stories[:4]:
        asked = tasks.any_questions(story, rng)
        half_of_facts = set(rng.sample(list(story.facts), len(story.facts) // 2))
        cases += [(asked, story.text), (asked, tasks.retell(story, half_of_facts, 2, rng)), (asked, "")]
    replies = generate(model, tok, [judge.ask_answers(passage, asked).messages for asked, passage in cases], 60)
    accuracy = AnswerAccuracy()
    for (asked, passage), reply in zip(cases, replies, strict=True):
        accuracy.add(judge, reply, asked, passage)
    assert accuracy.stated.rate >= 0.9 and accuracy.unstated.rate >= 0.9, str(accuracy)

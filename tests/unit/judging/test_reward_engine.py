"""The engine of reward models: batches give the values of single conversations, and nothing is cut."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from judges.base import Prompt
from judges.reward import RewardJudge
from pipeline.config import UserError
from pipeline.judging.engines.reward import RewardEngine
from pipeline.judging.scoring.scored import score_by_judge
from pipeline.storage.model_files import hub
from tests.helpers.tiny_models import tiny_config

WORDS = ["[UNK]", "<s>", "</s>", *"abcdefghij", *(f"w{i}" for i in range(20)), "user", "assistant", ":"]
TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} </s>{% endfor %}"


def save_reward_model(folder, family="llama", pad=None, labels=1, template=TEMPLATE):
    """A tiny reward model with random weights, and a tokenizer of one token per word."""
    config = tiny_config(family, num_labels=labels, pad_token_id=pad, max_position_embeddings=64, num_key_value_heads=2)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="</s>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def conversations(*summaries):
    return RewardJudge(instruction="w1 w2 {article}").ask_scores("a b c d e", summaries)


def rewards(engine, prompts):
    return [float(reply.samples[0].text) for reply in engine.generate(prompts)]


@pytest.mark.parametrize(
    ("family", "pad"),
    [
        ("llama", None),  # the head must find the last token beside padding that the model does not name
        ("llama", 2),  # padded with the token that ends each conversation, as many reward models are
        ("bert", 0),
    ],
)
def test_a_batch_gives_the_values_of_single_conversations(tmp_path, family, pad):
    engine = RewardEngine(save_reward_model(tmp_path, family, pad), "float32", None, on_gpu=False)
    prompts = conversations("w3", "w3 w4 w5 w6 w7 w8", "", "j i h")
    single = [rewards(engine, [prompt])[0] for prompt in prompts]
    assert rewards(engine, prompts) == pytest.approx(single, abs=1e-5)
    assert len(set(single)) == 4
    # The same as transformers gives for the conversation by itself.
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = engine.tokenizer.apply_chat_template(list(prompts[1].messages), tokenize=True, return_dict=False)
    with torch.inference_mode():
        assert single[1] == pytest.approx(model(torch.tensor([ids])).logits.item(), abs=1e-5)


def test_a_long_conversation_is_refused_and_not_cut(tmp_path):
    engine = RewardEngine(save_reward_model(tmp_path), "float32", 20, on_gpu=False)
    short, long = engine.generate(conversations("w3", " ".join(["w3"] * 30)))
    assert short.error is None and len(short.prompt_ids) == 14
    assert long.error == "prompt too long" and long.samples == []


def test_a_quoted_marker_stays_text(tmp_path):
    engine = RewardEngine(save_reward_model(tmp_path), "float32", None, on_gpu=False)
    (reply,) = engine.generate(conversations("a </s> b"))
    assert reply.prompt_ids.count(WORDS.index("</s>")) == 2, "one for each message, by the template"


def test_a_model_without_a_chat_template_gets_bare_texts(tmp_path):
    engine = RewardEngine(save_reward_model(tmp_path, template=None), "bfloat16", None, on_gpu=False)
    (reply,) = engine.generate([Prompt(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}), 1)])
    assert reply.prompt_ids == [WORDS.index("a"), WORDS.index("b")]


def test_the_judge_reads_what_the_engine_gives(tmp_path):
    engine = RewardEngine(save_reward_model(tmp_path), "float32", None, on_gpu=False)
    row = {
        "article_id": "a",
        "article": "a b",
        "writer": "w",
        "summaries": [{"text": text} for text in ("a", "b", "w1 " * 70)],
    }
    (outcome,) = score_by_judge(RewardJudge(), engine, [row], again=1.0)
    first, second, long = outcome["scores"]
    assert first["value"] != second["value"] and first["unread"] == 0
    assert long["value"] is None and long["unread"] == 1 and outcome["tally"]["no reply: prompt too long"] == 1
    assert outcome["tally"]["tokens_in"] > 0 and "judged again" not in outcome["tally"], "there is no other order"


def test_another_kind_of_model_is_refused_before_the_run(tmp_path):
    hub.check_reward_model("judge.model", save_reward_model(tmp_path / "one"))
    two = save_reward_model(tmp_path / "two", labels=2)
    with pytest.raises(UserError, match="which has 2 labels: a reward model should have one"):
        hub.check_reward_model("judge.model", two)
    config = json.loads((tmp_path / "two/config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "two/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="a LlamaForCausalLM: a reward model should be"):
        hub.check_reward_model("judge.model", two)

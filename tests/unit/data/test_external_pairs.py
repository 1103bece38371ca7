"""External pairs: token ids equal TRL's, rows with one prompt become one article tree, and no row disappears."""

import json
from collections import Counter
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from judges.base import Skip
from pipeline.config import UserError
from pipeline.data.pair_tokenizer import PairTokenizer, load_pair_tokenizer
from pipeline.data.preference_formats import Preference, parse_row
from pipeline.stages.external_pairs import check_pairs, collect_pairs
from tests.helpers.tiny_models import tiny_config

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% else %}{{ raise_exception('no system') }}{% endif %}"
    "{% endfor %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think></think>"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
# Like Gemma 4: the generation prompt ends with text that a whole conversation does not have.
NOT_EXTENDING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think></think>{% endif %}")
STYLES = {  # template, BOS token, whether the tokenizer adds it to plain text
    "chatml": (CHATML, None, False),
    "qwen3": (THINKING, None, False),
    "llama": (LLAMA, "<s>", True),
    "mistral": (MISTRAL, "<s>", True),
}
SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "What color is the sky?"}


def answer(text):
    return [{"role": "assistant", "content": text}]


def tokenizer(template=None, bos=None, adds_bos=False):
    """A byte-level BPE that merges across a word's start, as Llama's and Qwen's do."""
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "[INST]", "[/INST]"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    text = ["the sky is blue and green, the color is what it is: what color is the sky? It is blue."] * 9
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token="<pad>", bos_token=bos)
    fast.chat_template = template
    return fast


@pytest.fixture(scope="module", params=STYLES)
def style(request):
    return tokenizer(*STYLES[request.param])


def trl(tokenizer, row):
    """The ids (prompt, chosen, rejected) that TRL's DPOTrainer makes of a row."""
    from accelerate import PartialState
    from datasets import Dataset
    from trl import DPOTrainer

    PartialState()
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    prepared = DPOTrainer._prepare_dataset(trainer, Dataset.from_list([row]), tokenizer, args, "train")[0]
    return prepared["prompt_ids"], prepared["chosen_ids"], prepared["rejected_ids"]


ROWS = [
    {"prompt": [ASK], "chosen": answer("It is blue."), "rejected": answer("It is green, and what it is.")},
    {"prompt": [ASK, *answer("blue"), ASK], "chosen": answer("blue"), "rejected": answer("green")},
    {"chosen": [ASK, *answer("It is blue.")], "rejected": [ASK, *answer("green")]},
    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    {"prompt": "The sky is ", "chosen": "blue.", "rejected": "green."},
    {"prompt": "The sky is b", "chosen": "lue.", "rejected": "ig."},
    {"prompt": "The sky is", "chosen": " blue.</s>", "rejected": " green."},
    {"chosen": "The sky is blue.", "rejected": "The sky is green."},
]


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_the_ids_equal_trls(style, row):
    ids = PairTokenizer(style).encode(parse_row(row))
    assert (ids.prompt, ids.chosen, ids.rejected) == trl(style, row)
    for answer_ids in (ids.chosen, ids.rejected):
        sequence = ids.prompt + answer_ids
        assert sequence.count(style.convert_tokens_to_ids("<s>")) == (style.bos_token is not None)
        if isinstance(row["chosen"], str):
            assert sequence[-1] == style.eos_token_id != sequence[-2]


@pytest.mark.parametrize("row", [ROWS[0], ROWS[3]], ids=["messages", "text"])
def test_the_ids_equal_trls_for_a_public_checkpoint(shared_data, row):
    tokens = load_pair_tokenizer(str(shared_data / "models" / "stories260K"))
    if isinstance(row.get("prompt"), list):
        tokens.tokenizer.chat_template = LLAMA
    ids = tokens.encode(parse_row(row))
    assert (ids.prompt, ids.chosen, ids.rejected) == trl(tokens.tokenizer, row)
    assert ids.prompt.count(tokens.tokenizer.bos_token_id) == 1


def test_a_system_prompt_and_template_arguments_reach_the_template():
    thinking = tokenizer(THINKING)
    row = {"prompt": [SYSTEM, ASK], "chosen": answer("blue"), "rejected": answer("green")}
    row["chat_template_kwargs"] = {"enable_thinking": False}
    ids = PairTokenizer(thinking).encode(parse_row(row))
    assert (ids.prompt, ids.chosen, ids.rejected) == trl(thinking, row)
    assert thinking.decode(ids.prompt).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert thinking.decode(ids.prompt).endswith("<think></think>")
    assert thinking.decode(ids.chosen) == "blue<|im_end|>\n"


def test_text_that_a_template_wrote_gets_no_second_bos():
    adds_bos = tokenizer(LLAMA, "<s>", adds_bos=True)
    prompt = adds_bos.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True)
    ids = PairTokenizer(adds_bos).encode(Preference(prompt, "blue", "green"))
    ids_of_messages = PairTokenizer(adds_bos).encode(Preference([ASK], answer("blue"), answer("green")))
    assert (ids.prompt, ids.chosen) == (ids_of_messages.prompt, ids_of_messages.chosen)
    assert ids.prompt.count(adds_bos.bos_token_id) == 1


def test_an_answer_begins_before_a_token_that_spans_prompt_and_answer():
    text = tokenizer()
    ids = PairTokenizer(text).encode(Preference("The sky is ", "blue.", "green."))
    assert ids.moved
    assert text.decode(ids.prompt) == "The sky is"
    assert text.decode(ids.chosen) == " blue.</s>"
    assert not PairTokenizer(text).encode(Preference("The sky is", " blue.", " green.")).moved


@pytest.mark.parametrize(
    ("template", "max_length", "pair", "reason"),
    [
        (None, 6, Preference("The sky", " is", " is blue and green"), "too long"),
        (None, None, Preference("The", "</s>", " is"), None),
        (
            MISTRAL,
            None,
            Preference([SYSTEM, ASK], answer("a"), answer("b")),
            "the chat template refuses the role system: 'no system'; policy.merge_system=true puts its text into the "
            "first user message",
        ),
        (
            NOT_EXTENDING,
            None,
            Preference([ASK], answer("a"), answer("b")),
            "the chat template does not extend the prompt",
        ),
        (LLAMA, None, Preference([ASK], answer("a"), answer("a ")), "chosen and rejected are the same"),
        ("{{ messages[0].content }}", None, Preference([ASK], answer("a"), answer("b")), "empty answer"),
        ("{% if messages | length > 1 %}a{% endif %}", None, Preference([ASK], answer("a"), answer("b")), "no prompt"),
    ],
)
def test_a_pair_that_cannot_be_learned_from_gives_the_reason(template, max_length, pair, reason):
    ids = PairTokenizer(tokenizer(template), max_length).encode(pair)
    assert ids == Skip(reason) if reason else not isinstance(ids, Skip)


# The stage


@pytest.fixture
def policy(tmp_path):
    """A folder with a tokenizer that has a chat template, and a configuration with a context of 64 tokens."""
    tokenizer(CHATML).save_pretrained(tmp_path / "policy")
    tiny_config(max_position_embeddings=64).save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy")


@pytest.fixture
def collected(tmp_path, policy):
    def _collected(*rows, name="pairs.jsonl", **settings):
        path = tmp_path / name
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines))
        tables = collect_pairs("build", pairs=str(path), **{"max_model_len": None, "model": policy} | settings)
        written = [row for table in tables for row in table.to_pylist()]
        return [r for r in written if r["skipped"] is None], [r for r in written if r["skipped"] is not None]

    return _collected


def text(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def tally(row):
    return {entry["what"]: entry["count"] for entry in row["tally"]}


def test_rows_of_one_prompt_become_one_row(collected):
    kept, skipped = collected(
        text("The sky is", " blue", " green"),
        text("What color is", " it", " the sky"),
        text("The sky is", " blue", " what"),
        text("The sky is", " blue", " green"),
        text("The sky is", " green", " blue"),
    )
    assert not skipped
    sky, color = kept
    assert sky["article"] == "The sky is"
    assert [summary["text"] for summary in sky["summaries"]] == [" blue", " green", " what"]
    pairs = [(pair["chosen"], pair["rejected"]) for pair in sky["pairs"]]
    assert pairs == [(0, 1), (0, 2), (1, 0)]
    assert tally(sky) == {"merged": 3, "pairs": 3, "pairs given again": 1, "pairs given both ways": 1}
    assert tally(color) == {"pairs": 1}
    assert sky["article_id"] != color["article_id"]
    assert {row["split"] for row in kept} == {"train"}
    assert {summary["finish_reason"] for summary in sky["summaries"]} == {"stop"}


def test_the_same_prompt_in_another_format_is_the_same_row(collected):
    kept, _ = collected(
        {"prompt": [ASK], "chosen": answer("blue"), "rejected": answer("green")},
        {"question": ASK["content"], "system": "", "chosen": "blue", "rejected": "what"},
        {"chosen": [ASK, *answer("what")], "rejected": [ASK, *answer("green")]},
    )
    (row,) = kept
    assert row["article"] == "user: What color is the sky?"
    assert [summary["text"] for summary in row["summaries"]] == ["blue", "green", "what"]
    assert len(row["pairs"]) == 3


def test_the_article_id_depends_on_the_prompt_only(collected):
    rows = [text(f"The sky {i}", " is", " was") for i in range(5)]
    first, _ = collected(*rows)
    second, _ = collected(*reversed(rows))
    assert {r["article"]: r["article_id"] for r in first} == {r["article"]: r["article_id"] for r in second}


def test_every_row_is_kept_or_skipped_with_a_reason(collected):
    kept, skipped = collected(
        text("The sky is", " blue", " green"),
        b"{cut of",
        b'{"prompt": "\xff"}',
        b"[1]",
        text("The sky is", " blue", " blue"),
        text("The sky is", " blue", ""),
        {"prompt": "The sky is", "chosen": " blue"},
        text("is " * 100, "a", "b"),
        text("The sky is ", "blue", "green"),
    )
    assert Counter(row["skipped"] for row in skipped) == {
        "not JSON": 1,
        "not UTF-8": 1,
        "not a JSON object": 1,
        "chosen and rejected are the same": 1,
        "empty answer": 1,
        "no chosen or no rejected": 1,
        "too long": 1,
    }
    assert [row["article_id"] for row in skipped] == [f"row {number}" for number in range(2, 9)]
    (row,) = kept  # the prompt "The sky is " is cut to "The sky is", because " blue" is one token
    assert tally(row)["answers that begin inside the prompt's last token"] == 1
    assert tally(row)["merged"] == 1


def test_an_adapter_has_the_tokenizer_and_the_context_length_of_its_base(tmp_path, policy):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": policy}))
    tokens = load_pair_tokenizer(str(tmp_path / "adapter"))
    assert (tokens.max_length, tokens.tokenizer.chat_template) == (64, CHATML)
    tokenizer(LLAMA, "<s>").save_pretrained(tmp_path / "adapter")
    assert load_pair_tokenizer(str(tmp_path / "adapter"), 32).tokenizer.chat_template == LLAMA


def test_max_model_len_limits_a_pair(collected):
    long = text("The sky is", " blue" * 8, " green")
    assert collected(long, text("The", " sky", " is"), max_model_len=8)[1][0]["skipped"] == "too long"
    assert not collected(long, max_model_len=64)[1]
    with pytest.raises(UserError, match=r"policy.max_model_len is 1000000, and .* takes \d+ tokens .*: lower it"):
        collected(long, max_model_len=1_000_000)


def test_files_of_all_formats_are_read_alike(tmp_path, policy):
    rows = [{"prompt": [ASK], "chosen": answer("blue"), "rejected": answer("green")}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    tables = [
        [
            table.to_pylist()
            for table in collect_pairs("b", pairs=str(tmp_path / name), max_model_len=None, model=policy)
        ]
        for name in ("a.json", "a.jsonl", "a.parquet")
    ]
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0][0][0]["pairs"]) == 1


@pytest.mark.parametrize(
    "open_pairs",
    [check_pairs, lambda pairs, model: list(collect_pairs("", pairs=pairs, max_model_len=None, model=model))],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, policy, open_pairs):
    (tmp_path / "other.jsonl").write_text('not JSON\n{"text": "a", "label": 1}')
    with pytest.raises(UserError, match="has the columns text, label; known are chosen and rejected beside prompt"):
        open_pairs(str(tmp_path / "other.jsonl"), policy)
    with pytest.raises(UserError, match="pairs is 'none.jsonl': no such file"):
        open_pairs("none.jsonl", policy)
    (tmp_path / "a.xlsx").write_text("prompt,chosen")
    with pytest.raises(UserError, match="a.xlsx.*it should"):
        open_pairs(str(tmp_path / "a.xlsx"), policy)
    tokenizer().save_pretrained(policy)  # without the template
    (tmp_path / "policy" / "chat_template.jinja").unlink()
    (tmp_path / "m.jsonl").write_text(json.dumps({"question": "q", "chosen": "a", "rejected": "b"}))
    with pytest.raises(UserError, match="m.jsonl: the pairs are messages, and the policy's tokenizer has no chat temp"):
        open_pairs(str(tmp_path / "m.jsonl"), policy)


def test_columns_that_may_hold_the_prompt_stop_a_guess(tmp_path, policy):
    path = tmp_path / "guess.jsonl"
    rows = [{"query": "q", "chosen": "The sky is blue", "rejected": "The sky is green"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="to have the prompt, and query may have it. Rename the one that has it to"):
        check_pairs(str(path), policy)
    del rows[0]["query"]
    rows[0]["system"] = "Be brief."
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="none of them is known to have the prompt. .*, remove the system column"):
        check_pairs(str(path), policy)


def test_what_was_guessed_or_not_read_is_in_the_record(tmp_path, policy, collected):
    guess = {"chosen": "The sky is blue", "rejected": "The sky is green", "score": 1}
    repeats = text("What color is the sky?", "What color is the sky? It is blue", "What color is the sky? It is")
    kept, _ = collected(guess, repeats | {"topic": "sky", "score": 2})
    assert tally(kept[0]) == {
        "pairs": 1,
        "prompts guessed from the common start of both answers": 1,
        "rows with a column that was not read: score": 1,
    }
    assert tally(kept[1])["pairs whose answers both begin with the whole prompt"] == 1
    assert tally(kept[1])["rows with a column that was not read: topic"] == 1
    first = check_pairs(str(tmp_path / "pairs.jsonl"), policy)
    assert first.describe() == (
        "the prompt is the common start of chosen and rejected, which is a guess: no column is known to have it; not "
        "read: score"
    )


def test_system_and_input_are_the_prompt(collected):
    row = {"system": "Be brief.", "input": ASK["content"], "chosen": "It is blue.", "rejected": "It is green."}
    kept, _ = collected(row)
    assert kept[0]["article"] == "system: Be brief.\n\nuser: What color is the sky?"
    assert [summary["text"] for summary in kept[0]["summaries"]] == ["It is blue.", "It is green."]
    assert tally(kept[0]) == {"pairs": 1}


def test_null_keys_and_other_names_of_roles_give_the_same_ids(tmp_path, collected):
    """A Parquet file gives each message the keys of all others."""
    turns = [ASK | {"name": "Eve"}, *answer("blue"), ASK]
    rows = [{"prompt": turns, "chosen": answer("It is blue."), "rejected": answer("It is green.")}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "nulls.parquet")
    (row,) = pq.read_table(tmp_path / "nulls.parquet").to_pylist()
    assert row["prompt"][1]["name"] is None
    prints_names = CHATML.replace("{{ m.role }}", "{{ m.role }}{{ ' %s' % m.name if 'name' in m }}")
    tokens = PairTokenizer(tokenizer(prints_names))
    ids = tokens.encode(parse_row(row))
    assert tokens.tokenizer.decode(ids.prompt).count("None") == 0
    human = [{"role": "Human", "content": ASK["content"]}, {"role": "bot", "content": "blue"}]
    kept, _ = collected({"prompt": human[:1], "chosen": human[1:], "rejected": "green"})
    same, _ = collected({"prompt": [ASK], "chosen": "blue", "rejected": "green"})
    assert kept == same


def test_a_template_without_a_system_role_is_quoted_or_gets_it_in_the_users_message(tmp_path, policy):
    tokenizer(MISTRAL, "<s>").save_pretrained(policy)
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"system": "Be brief.", "question": "The sky?", "chosen": "blue", "rejected": "green"}))
    refusal = r"no pair to train on \(the chat template refuses the role system: 'no system'; policy.merge_system=true"
    with pytest.raises(UserError, match=refusal):
        check_pairs(str(path), policy)
    assert check_pairs(str(path), policy, merge_system=True).columns.prompt == ("system", "question")
    (table,) = collect_pairs("b", pairs=str(path), max_model_len=None, merge_system=True, model=policy)
    tokens = load_pair_tokenizer(policy).tokenizer
    assert tokens.decode(table["prompt_ids"][0].as_py()) == "<s>[INST] Be brief.\n\nThe sky? [/INST]"


def test_a_template_cannot_fill_the_record_with_reasons(policy, collected):
    tokenizer(CHATML.replace("{{ m.role }}", "{{ raise_exception(m.content) }}")).save_pretrained(policy)
    rows = [{"question": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(80)]
    _, skipped = collected(text("The sky is", " blue", " green"), *rows)
    assert len(skipped) == 80 and len({row["skipped"] for row in skipped}) == 51


def test_a_file_without_a_pair_is_refused(collected):
    with pytest.raises(UserError, match=r"has no pair to train on \(not JSON: 2, empty answer: 1\)"):
        collected(b"{a", b"{", text("p", "", "r"))
    with pytest.raises(UserError, match=r"has no pair to train on \(it is empty\)"):
        collected()

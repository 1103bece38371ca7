"""Tests of bad input: each case ends in one clear line, never in a traceback, and no code in it is run."""

import contextlib
import json
import shutil
import sys
from itertools import islice

import httpx
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.cli import main
from judges.base import LETTERS, UNSURE, Prompt, Question, Skip, user
from judges.cloze import ClozeJudge
from judges.mcq import McqJudge
from judges.prompts import WORDINGS
from pipeline.config import Config, UserError, loader
from pipeline.config.hardware import Server
from pipeline.config.run import Articles
from pipeline.config.servers import ServedModel
from pipeline.data import preference_formats, readers
from pipeline.data.pair_tokenizer import load_pair_tokenizer
from pipeline.inference.server.openai_server import OpenAIServerEngine
from pipeline.stages import articles, external_pairs
from pipeline.storage.ledger import Ledger
from pipeline.storage.model_files import hub
from pipeline.training import checkpoint
from pipeline.training.modeling import loading
from tests.bad_input import articles as bad_articles
from tests.bad_input import models as bad_models
from tests.bad_input import pairs as bad_pairs
from tests.bad_input import records as bad_records
from tests.bad_input import replies as bad_replies
from tests.bad_input import settings as bad_settings
from tests.helpers.cli import run_rondo
from tests.helpers.paths import DEMO, ROOT


def named(cases):
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


@contextlib.contextmanager
def refused(line, location="", error=UserError):
    """Expect an error of one line that contains `line`, in which `{at}` stands for `location`."""
    with pytest.raises(error) as caught:
        yield
    message, line = str(caught.value), line.replace("{at}", str(location))
    assert line in message
    assert "\n" not in message and len(message) < 1200 and message.isprintable()


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """After each test: no command and no code in the bad input has left a mark."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(ROOT)
    yield
    assert not [*tmp_path.rglob("PWNED"), *tmp_path.rglob("pwned"), *ROOT.glob("pwned")]


# Settings


@pytest.mark.parametrize(("text", "overrides", "line"), named(bad_settings.CASES))
def test_settings(tmp_path, text, overrides, line):
    path = DEMO
    if text is not bad_settings.DEMO:
        path = tmp_path / "bad.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused(line, path):
        loader.load_config(path, overrides)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda path: path.mkdir(), "cannot be opened: Is a directory"),
        (lambda path: path.symlink_to(path), "cannot be opened: Too many levels of symbolic links"),
        (lambda path: None, "no configuration at {at}"),
    ],
    ids=["a folder", "a loop of links", "nothing"],
)
def test_a_settings_path_without_a_readable_file(tmp_path, make, line):
    make(tmp_path / "bad.yaml")
    with refused(line, tmp_path / "bad.yaml"):
        loader.load_config(tmp_path / "bad.yaml")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, ""], ids=["NUL", "long", "empty"])
def test_an_impossible_settings_path(name):
    with refused("cannot be opened: "):
        loader.load_config(name)


_words = st.sampled_from(
    ["run", "rounds", "training", "beta", "&a", "*a", "!!python/name:os", "- ", ": ", "\n", "  ", "{", "[", "'"]
)


@given(st.lists(_words | st.text(max_size=4), max_size=25).map("".join))
@settings(max_examples=300, deadline=None)
@example("? [a]\n: b")
@example("<<: *a")
@example("run: =")
@example("a: 0x_\nb: 1__0\nc: 190:20:30\nd: 2001-13-45")
def test_any_text_is_accepted_or_raises_a_user_error(text):
    with contextlib.suppress(ValueError):
        raw = loader.parse_yaml(text)
        with contextlib.suppress(UserError):
            assert isinstance(loader.parse_config(raw), Config)


@given(st.lists(_words | st.text(max_size=4), max_size=8).map("".join))
@settings(max_examples=200, deadline=None)
@example("rounds=1__0")
@example("run=2001-13-45")
def test_any_override_is_accepted_or_raises_a_user_error(text):
    with contextlib.suppress(UserError):
        loader.parse_config(loader.apply_overrides(yaml.safe_load(DEMO.read_text()), [text]))


# Articles


def _read(path):
    given = Articles(path=str(path), min_words=2, max_words=50, eval_fraction=0.5)
    articles.check_corpus(given)
    return [row for table in articles.read_articles(articles=given) for row in table.to_pylist()]


@pytest.mark.parametrize(("name", "data", "line"), named(bad_articles.FILES))
def test_an_articles_file(tmp_path, name, data, line):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with refused(line, tmp_path / name):
        _read(tmp_path / name)


@pytest.mark.parametrize(("place", "line"), bad_articles.PLACES, ids=[place[:20] for place, _ in bad_articles.PLACES])
def test_an_articles_location(place, line):
    with refused(line):
        list(islice(readers.read_rows(place, "articles.path"), 1))


@pytest.mark.parametrize(("row", "fate"), named(bad_articles.ROWS))
def test_an_article_row(tmp_path, row, fate):
    line = row if isinstance(row, bytes) else json.dumps(row).encode()
    (tmp_path / "x.jsonl").write_bytes(bad_articles.lines(*bad_articles.GOOD) + line + b"\n")
    *good, last = _read(tmp_path / "x.jsonl")
    assert last["skipped"] == fate
    assert [row["skipped"] for row in good] == [None] * 8
    last["article_id"].encode(), last["article"].encode()  # both can be written and tokenized


def test_ids_with_different_unicode_forms_are_two_articles(tmp_path):
    """Both look like é, but their bytes differ, and ids are never changed."""
    rows = [{"id": name, "text": f"Article {name} tells of {i}."} for i, name in enumerate(["e\u0301", "\u00e9"])]
    (tmp_path / "x.jsonl").write_bytes(bad_articles.lines(*bad_articles.GOOD, *rows))
    assert [row["article_id"] for row in _read(tmp_path / "x.jsonl")][-2:] == ["e\u0301", "\u00e9"]


def test_a_byte_order_mark_and_a_line_of_20_mb(tmp_path):
    long = {"id": "long", "text": "word " * 4_000_000}
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + bad_articles.lines(*bad_articles.GOOD, long))
    rows = _read(tmp_path / "x.jsonl")
    assert rows[0]["article_id"] == "0" and rows[-1]["skipped"] == "over 50 words"


# Models


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(bad_models.POLICY, tmp_path / "model")


@pytest.mark.parametrize(("spoil", "line"), named(bad_models.FOLDERS))
def test_a_model_folder(folder, spoil, line):
    hub.check_model("policy.model", str(folder))
    spoil(folder)
    with refused(line):
        hub.check_model("policy.model", str(folder))


@pytest.mark.parametrize(("spoil", "line"), named(bad_models.UNLOADABLE))
def test_a_model_that_cannot_be_loaded(folder, spoil, line):
    spoil(folder)
    hub.check_model("policy.model", str(folder))
    with pytest.raises(ValueError, match=".") as caught:
        loading.weights_digest(folder), loading.load_model(folder, "float32")
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("config", "beside", "line"), named(bad_models.ADAPTERS))
def test_an_adapter(tmp_path, config, beside, line):
    text = config if isinstance(config, str) else json.dumps(config).replace("{at}", str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(text)
    beside(tmp_path)
    with refused(line):
        hub.check_model("policy.model", str(tmp_path))


@pytest.mark.parametrize(("name", "line"), bad_models.NAMES, ids=[name[:20] for name, _ in bad_models.NAMES])
def test_a_model_name(name, line):
    with pytest.raises(UserError, match=".") as caught:
        hub.check_model("policy.model", name)
    assert line in str(caught.value)


def test_code_beside_a_supported_model_is_not_run(folder):
    bad_models.set_json(folder, "config.json", auto_map=bad_models.code(folder))
    hub.check_model("policy.model", str(folder))
    assert type(loading.load_model(folder, "float32")).__name__ == "LlamaForCausalLM"
    assert load_pair_tokenizer(str(folder)).has_chat_template


def test_tokenizer_code_is_not_run_and_no_prompt_appears(folder):
    bad_models.set_json(folder, "tokenizer_config.json", auto_map=bad_models.code(folder), tokenizer_class="Model")
    with refused("cannot be loaded (trust_remote_code is off): "):
        load_pair_tokenizer(str(folder))


def test_pickles_beside_good_weights_are_not_read(folder):
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "scheduler.pt", "tokenizer.pkl"):
        bad_models.evil(folder / name)
    hub.check_model("policy.model", str(folder))
    load_pair_tokenizer(str(folder))
    assert loading.weights_digest(folder) == loading.weights_digest(bad_models.POLICY)
    loading.load_model(folder, "float32")


def test_vllm_does_not_read_pickles(folder):
    """The folder may have changed after it was checked."""
    from pipeline.config.hardware import EngineHardware
    from pipeline.inference.vllm import VllmEngine

    bad_models.pickled(folder)
    with pytest.raises(RuntimeError, match="Cannot find any model weights"):
        VllmEngine(str(folder), "float32", 128, seed=0, hardware=EngineHardware())


def test_the_pickle_would_run():
    """Otherwise the tests above could not fail."""
    import pickle

    assert b"system" in pickle.dumps(bad_models.Evil("x"))


def test_a_dataset_that_is_a_pickle_or_a_script(tmp_path, monkeypatch):
    bad_models.evil(tmp_path / "articles.pkl")
    with refused("it should end in .jsonl, .ndjson, .json, .csv or .tsv, "):
        _read(tmp_path / "articles.pkl")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("open('PWNED', 'w')")
    monkeypatch.chdir(tmp_path)
    with refused("and mine is a folder here: name one file in it, without hf:"):
        list(readers.read_rows("hf:mine", "articles.path"))


# Pairs


@pytest.fixture(scope="module")
def tokens():
    return load_pair_tokenizer(str(bad_models.POLICY))


@pytest.mark.parametrize(("row", "reason"), named(bad_pairs.ROWS))
def test_a_pairs_row(tokens, row, reason):
    pair = preference_formats.parse_row(row)
    assert (pair if isinstance(pair, Skip) else tokens.encode(pair)) == Skip(reason)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=6,
)
_columns = [
    "prompt",
    "chosen",
    "rejected",
    "conversations",
    "question",
    "instruction",
    "history",
    "system",
    "tools",
    "input",
]


@given(st.dictionaries(st.sampled_from([*_columns, "chat_template_kwargs"]), _json), _json, _json)
@settings(max_examples=200, deadline=None)
def test_any_pairs_row_is_read_or_skipped(tokens, row, chosen, rejected):
    pair = preference_formats.parse_row({"chosen": chosen, "rejected": rejected} | row)
    if not isinstance(pair, Skip):
        tokens.encode(pair)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "{at} has no pair to train on (it is empty); known are chosen and rejected beside prompt"),
        ("x\ny\n", "{at} has no pair to train on (not JSON: 2); known are"),
        ('{"a": 1, "b": 2}\n', "{at} has the columns a, b; known are chosen and rejected"),
        ('{"prompt": "p", "chosen": "a", "rejected": "a"}\n', "(chosen and rejected are the same: 1); known are"),
    ],
    ids=["empty", "not JSON", "other columns", "all the same"],
)
def test_a_pairs_file(tmp_path, text, line):
    (tmp_path / "x.jsonl").write_text(text)
    with refused(line, tmp_path / "x.jsonl"):
        external_pairs.check_pairs(str(tmp_path / "x.jsonl"), str(bad_models.POLICY))
        list(
            external_pairs.collect_pairs(
                "", pairs=str(tmp_path / "x.jsonl"), max_model_len=None, model=str(bad_models.POLICY)
            )
        )


# Replies


_ASKED = [Question("1", "Who won?", ("Ann", "Bob", "Cy"), 0), Question("2", "Who lost?", ("Di", "Ed", "Flo"), 1)]


@pytest.mark.parametrize(("reply", "expected"), named(bad_replies.QUESTIONS))
def test_a_reply_with_questions(reply, expected):
    questions = McqJudge(options=3).read_questions(reply)
    assert [question.reason if isinstance(question, Skip) else None for question in questions] == expected


@pytest.mark.parametrize(("reply", "expected"), named(bad_replies.ANSWERS))
def test_a_reply_with_answers(reply, expected):
    assert McqJudge(options=3).read_answers(reply, _ASKED) == expected


_reply = st.lists(
    st.sampled_from(
        ["Q1", "Q2", " ", "?", " Answer ", " | ", "A", "Unsure", "\n", "\t", "Who won?", "Ann", "\x1c", "\u2028"]
    )
    | st.text(max_size=4),
    max_size=25,
).map("".join)


@given(_reply)
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize(
    "judge",
    [*(McqJudge(options=3, wording=w) for w in WORDINGS.values()), ClozeJudge(options=3)],
    ids=[*WORDINGS, "cloze"],
)
def test_any_reply_is_parsed_or_unread(judge, reply):
    answers = judge.read_answers(reply, _ASKED)
    assert len(answers) == 2 and all(answer in (None, UNSURE, *LETTERS[:3]) for answer in answers)
    for question in judge.read_questions(reply):
        assert isinstance(question, Skip) or len(set(question.options)) == 3 > question.answer >= 0


_server = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "finish_reason",
                    "refusal",
                    "logprobs",
                    "logprob",
                    "usage",
                    "prompt_tokens",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def http():
    """An engine, and a dict: the engine's server replies with its `body`."""
    response = {}
    engine = OpenAIServerEngine(
        "judge", ServedModel(server="s"), Server(base_url="http://unused/v1", tries=1, concurrency=4)
    )
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=response["body"]))
    engine.clients = [httpx.AsyncClient(base_url="http://unused/v1", transport=transport) for _ in range(4)]
    yield engine, response
    engine.close()


@given(_server | st.binary(max_size=20))
@settings(max_examples=200, deadline=None)
@example({"choices": [{"message": {"content": {"a": 1}}, "finish_reason": "stop"}]})
@example({"choices": [{"message": {"content": "x"}, "finish_reason": ["stop"]}]})
@example({"choices": [{"message": "x", "finish_reason": "stop"}]})
@example({"choices": [{"message": {"content": "x"}, "finish_reason": "stop", "logprobs": {"content": [1]}}]})
@example(
    {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": float("inf")}}
)
@example({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": [1]})
@example([])
@example(b"[" * 100_000)
@example(b"\xff")
@example(None)
def test_any_server_reply_is_a_sample_or_an_error(http, body):
    engine, response = http
    response["body"] = body if isinstance(body, bytes) else json.dumps(body).encode()
    engine.unserved_in_a_row = 0
    (reply,) = engine.generate_once([Prompt(user("Who?"), max_tokens=4)])
    assert (reply.error is None) == bool(reply.samples)


# Records, locks, checkpoints


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in bad_records.RECORDS])
def test_a_record(tmp_path, data):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "record.json").write_bytes(data)
    with refused(bad_records.DAMAGED, tmp_path):
        Ledger(str(tmp_path)).find("stage")


@pytest.mark.parametrize(("make", "line"), named(bad_records.CHECKPOINTS))
def test_a_checkpoint(tmp_path, make, line):
    make(tmp_path)
    with refused(line, error=ValueError):
        checkpoint.load(tmp_path, [("weight", torch.zeros(4, 2))], rank=0, workers=1)


def test_a_checkpoint_of_more_workers_is_loaded(tmp_path):
    for rank in (0, 1):
        bad_records.write_part(
            tmp_path, f"rank-{rank:05d}-of-00002.safetensors", weight=torch.full((2, 2), float(rank))
        )
    bad_models.evil(tmp_path / "optimizer.pt")
    weight = torch.zeros(4, 2)
    checkpoint.load(tmp_path, [("weight", weight)], rank=0, workers=1)
    assert weight.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


# The command line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run"], "Missing argument 'CONFIG'."),
        (["show", "runs/demo"], "Missing argument 'STAGE'."),
        (["run", str(DEMO), "--remke", "x"], "No such option: --remke (Possible options: --remake)"),
        (["show", "runs/demo", "pairs", "--rows", "0"], "Invalid value for '--rows': "),
        (["plan", str(DEMO), "--price", "abc"], "Invalid value for '--price': "),
    ],
)
def test_a_command_line_mistake_is_reported_with_the_usage(monkeypatch, capsys, arguments, line):
    monkeypatch.setattr(sys, "argv", ["rondo", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.startswith("Usage: ") and line in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "none.yaml"], "error: no configuration at none.yaml; there are "),
        (["run", str(DEMO), "rounds=yes"], "error: rounds is true: it should not be true or false"),
        (
            ["run", str(DEMO), "policy.model=/none"],
            "error: policy.model is '/none': no such folder, and not a hub name",
        ),
        (["run", str(DEMO), "articles.path=README.md"], "error: articles.path is 'README.md': it should end in"),
        (["show", "/none", "\x1b[31mscores"], "error: /none holds no run"),
        (
            ["run", "configs/own_pairs.yaml"],
            "error: configs/own_pairs.yaml has its own pairs (pairs.jsonl): use it with `rondo train`",
        ),
        (
            ["run", str(DEMO), "training.lora={target_modules: [q_prj]}"],
            "error: training.lora.target_modules has q_prj, ",
        ),
        (["show", str(DEMO), "pairs"], f"error: run is '{DEMO}', which is a file: it should be a run folder"),
        (
            ["plan", str(DEMO), "judge.model=newsroom/models/jugde"],
            "error: judge.model is 'newsroom/models/jugde': no such folder",
        ),
    ],
    ids=["no file", "yes", "no model", "no articles", "no run", "own pairs", "no layer", "a file", "no judge"],
)
def test_the_command_reports_bad_input_in_one_line(tmp_path, arguments, line):
    extra = [f"run={tmp_path}/run"] if arguments[0] == "run" else []
    done = run_rondo(*arguments, *extra)
    assert done.returncode == 2 and done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr and "\x1b" not in done.stderr
    assert not (tmp_path / "run").exists()

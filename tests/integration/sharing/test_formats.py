"""Each form of `rondo export` is the one that its tool documents, and `rondo train` reads the same pairs from it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.sharing.export import export_pairs
from jobs.sharing.formats import ExportedPair, Form, read_form, to_row
from judges.base import Skip, fill, user
from pipeline.config import UserError
from pipeline.config.loader import load_config
from pipeline.data.pair_tokenizer import load_pair_tokenizer
from pipeline.data.preference_formats import Preference, has_known_columns, parse_row, read_columns
from pipeline.data.readers import read_rows
from pipeline.stages.external_pairs import collect_pairs
from pipeline.storage import run_folder
from pipeline.storage.ledger import Ledger
from tests.helpers.paths import POLICY_MODEL, ROOT
from tests.helpers.tables import add_table

ENDINGS = [(form, ending) for form in Form for ending in ("jsonl", "json", "parquet") if form is not Form.ARGILLA]
ENDINGS += [(Form.ARGILLA, "json")]
SYSTEM = {"role": "system", "content": "Be brief."}
EXAMPLE = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "1"}]
QUESTION = {"role": "user", "content": 'Two, "quoted"\nand {article}.'}
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with three pairs in two rounds, whose policy has a system prompt."""
    place = tmp_path_factory.mktemp("run")
    instruction = "[{role: system, content: Be brief.}, {role: user, content: 'Summarize. {article}'}]"
    overrides = [f"run={place}/run", f"policy.model={POLICY_MODEL}", f"policy.instruction={instruction}"]
    config = load_config(ROOT / "configs/demo.yaml", overrides)
    ledger, tokens = Ledger(config.run), load_pair_tokenizer(str(POLICY_MODEL))
    run_folder.write_settings(ledger, config)
    answers = ["It was red.", "Reports say so.", "Nobody came."]
    for number, pairs in ((1, [(0, 1), (0, 2)]), (2, [(2, 1)])):
        summaries = [{"text": text, "token_ids": [1, 2], "finish_reason": "stop"} for text in answers]
        prompt_ids = tokens.encode_prompt([SYSTEM, *user("Summarize. The roof.")])
        scores = [
            {"answers": [], "correct": i, "unread": 0, "words": 3, "invalid_chars": 0, "value": i / 2} for i in range(3)
        ]
        row = {"article_id": "a", "article": "The roof.", "split": "train", "prompt_ids": prompt_ids}
        row |= {"summaries": summaries, "scores": scores}
        row["pairs"] = [{"chosen": chosen, "rejected": rejected, "reason": "r"} for chosen, rejected in pairs]
        add_table(ledger, f"round-{number:02d}/pairs", [row], build=str(number))
    return config, ledger


@pytest.mark.parametrize(("form", "ending"), ENDINGS, ids=lambda value: str(value))
def test_training_reads_the_same_pairs_from_every_form(run, tmp_path, form, ending):
    config, ledger = run
    out = tmp_path / f"pairs.{ending}"
    assert export_pairs(config, ledger, str(out), form=form).pairs == 3
    prompt = [SYSTEM, *user(fill("Summarize. {article}", {"article": "The roof."}))]
    expected = [
        Preference(prompt, *([{"role": "assistant", "content": text}] for text in pair))
        for pair in (
            ("It was red.", "Reports say so."),
            ("It was red.", "Nobody came."),
            ("Nobody came.", "Reports say so."),
        )
    ]
    rows = list(read_rows(str(out), "pairs", is_row=has_known_columns))
    assert [parse_row(row) for row in rows] == expected
    assert not read_columns(rows[0]).suspects
    assert not parse_row(rows[0]).is_guessed
    (part,) = collect_pairs("b", pairs=str(out), max_model_len=None, model=config.policy.model)
    (row,) = part.to_pylist()
    assert len(row["pairs"]) == 3
    assert row["prompt_ids"] == load_pair_tokenizer(str(POLICY_MODEL)).encode_prompt(prompt)


@given(
    turns=st.sampled_from([[QUESTION], [SYSTEM, QUESTION], [*EXAMPLE, QUESTION], [SYSTEM, *EXAMPLE, QUESTION]]),
    chosen=texts,
    rejected=texts,
    form=st.sampled_from(list(Form)),
)
def test_any_text_comes_back(turns, chosen, rejected, form):
    row = json.loads(json.dumps(to_row(ExportedPair(turns, chosen, rejected, {}, None, 1.0, None), form)))
    back = parse_row(row)
    if chosen == rejected:
        assert back == Skip("chosen and rejected are the same")
        return
    assert back == Preference(turns, *([{"role": "assistant", "content": text}] for text in (chosen, rejected)))


def test_the_columns_are_those_of_the_tools(run, tmp_path):
    config, ledger = run
    rows = {}
    for form in Form:
        export_pairs(config, ledger, str(tmp_path / f"{form}.json"), number=1, form=form)
        rows[form] = next(iter(read_rows(str(tmp_path / f"{form}.json"), "pairs")))
    assert list(rows[Form.ULTRAFEEDBACK]) == [
        "prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected"
    ]  # fmt: skip
    assert (rows[Form.ULTRAFEEDBACK]["score_chosen"], rows[Form.ULTRAFEEDBACK]["score_rejected"]) == (0.0, 0.5)
    assert set(rows[Form.ARGILLA]) == {"id", "fields", "metadata", "suggestions", "responses", "vectors"}
    assert rows[Form.ARGILLA]["id"] == "round-01/a/0"
    assert isinstance(json.loads((tmp_path / "argilla.json").read_text()), list)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    columns = {"chosen": "chosen", "rejected": "rejected", "system": "system"}
    assert info == {
        "llama-factory-alpaca": {
            "file_name": "llama-factory-alpaca.json",
            "ranking": True,
            "columns": {"prompt": "instruction", "query": "input"} | columns,
        },
        "llama-factory-sharegpt": {
            "file_name": "llama-factory-sharegpt.json",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "conversations"} | columns,
        },
    }
    assert rows[Form.SHAREGPT]["conversations"] == [{"from": "human", "value": "Summarize. The roof."}]


def test_people_in_argilla_may_prefer_the_other_answer():
    record = to_row(ExportedPair([QUESTION], "a", "b", {}, None, None, None), Form.ARGILLA)

    def read(*values):
        return parse_row(record | {"responses": {"preference": [{"value": value, "user_id": "u"} for value in values]}})

    as_judged = parse_row(record)
    assert read() == read("chosen") == read("chosen", "rejected", "chosen") == as_judged
    assert read("rejected") == Preference(as_judged.prompt, as_judged.rejected, as_judged.chosen)
    assert read("chosen", "rejected") == read("tie") == Skip("neither answer is preferred")


def test_what_a_form_cannot_hold_is_refused(run, tmp_path):
    config, ledger = run
    with pytest.raises(UserError, match="--format is 'csv': it should be one of trl, ultrafeedback, llama-factory"):
        read_form("csv")
    with pytest.raises(UserError, match="Argilla reads its records from one JSON list"):
        export_pairs(config, ledger, str(tmp_path / "pairs.jsonl"), form=Form.ARGILLA)
    text = ExportedPair("Plain text.", "a", "b", {}, None, None, None)
    for form in set(Form) - {Form.TRL}:
        with pytest.raises(UserError, match=r"the policy has no chat template, .*use --format trl"):
            to_row(text, form)
    odd = ExportedPair([QUESTION, QUESTION], "a", "b", {}, None, None, None)
    with pytest.raises(UserError, match="use --format llama-factory-sharegpt"):
        to_row(odd, Form.ALPACA)
    (tmp_path / "dataset_info.json").write_text("[")
    with pytest.raises(UserError, match=r"dataset_info\.json is damaged"):
        export_pairs(config, ledger, str(tmp_path / "pairs.jsonl"), form=Form.ALPACA)

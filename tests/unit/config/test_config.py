"""Tests that wrong settings are refused with a clear message, and that all shipped configurations are valid."""

import contextlib
import re
from datetime import date

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from judges.base import Question
from pipeline.config import Config, UserError
from pipeline.config.loader import apply_overrides, load_alignment, load_config, parse_config, parse_yaml
from pipeline.judging.factory import make_judge
from tests.helpers.paths import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DEMO = next(path for path in CONFIGS if path.stem == "demo")
OWN_PAIRS = DEMO.with_name("own_pairs.yaml")
DEMO_SETTINGS = yaml.safe_load(DEMO.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path):
    if path == OWN_PAIRS:
        assert load_alignment(path).pairs == "pairs.jsonl"
    else:
        assert load_config(path).rounds >= 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_can_train_on_external_pairs(path):
    alignment = load_alignment(path, ["pairs=mine.jsonl", "training.beta=0.5"])
    assert (alignment.pairs, alignment.training.beta) == ("mine.jsonl", 0.5)
    if path != OWN_PAIRS:
        config = load_config(path)
        # Only rounds use the instruction.
        policy = config.policy.model_copy(update={"instruction": alignment.policy.instruction})
        assert (alignment.run, alignment.policy, alignment.hardware) == (config.run, policy, config.hardware)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([], "pairs is missing: set it in the file, or on the command line as pairs=…"),
        (
            ["pairs=x.jsonl", "rounds=3"],
            "the configuration has no 'rounds' (did you mean run?); it has run, seed, pairs",
        ),
        (["pairs=x.jsonl", "trainig.beta=1"], "the configuration has no 'trainig' (did you mean training?)"),
        (["pairs=x.jsonl", "training.beat=1"], "training has no 'beat' (did you mean beta?)"),
        (["pairs=x.jsonl", "pairs.threshold=4"], "pairs.threshold: pairs is a value ('x.jsonl'), not a section"),
        (["pairs=s3://key:secret@bucket/x.jsonl"], "pairs holds a user or a password: put credentials in the"),
        (
            ["pairs=x.jsonl", "references.source=sampler"],
            "references.source is sampler, but `rondo train` samples no summaries: set it to",
        ),
        (["pairs=x.jsonl", "references.source=none"], "training.loss_type has sigmoid, which needs a reference"),
    ],
)
def test_a_wrong_setting_for_external_pairs_is_refused_in_one_line(overrides, line):
    with pytest.raises(UserError) as caught:
        load_alignment(DEMO, overrides)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["document_qa.yaml", "document_qa_cpu.yaml"])
def test_another_task_needs_only_other_settings(name):
    config = load_config(DEMO.with_name(name))
    judge = make_judge(config.judge, config.seed)
    (questions_message,) = judge.ask_questions("The roof is red.\n\nQuestion: What colour?").messages
    assert "The roof is red.\n\nQuestion: What colour?" in questions_message["content"]
    question = Question("q", "Which colour has the roof?", ("red", "blue", "green", "grey", "white"), 0)
    (answers_message,) = judge.ask_answers("It is red.", [question]).messages
    answers_prompt = answers_message["content"]
    assert answers_prompt.index("Which colour has the roof?") < answers_prompt.index("It is red.")
    for message, template in (
        (questions_message, config.judge.questions_prompt),
        (answers_message, config.judge.answers_prompt),
    ):
        assert message["content"].startswith(template.split("{")[0])
        assert not re.search(r"\{\w+\}", message["content"]), "every placeholder is filled"


def test_the_reference_configuration_has_the_published_values():
    config = load_config(DEMO.with_name("cnn_mistral7b.yaml"))
    assert (config.articles.limit, config.seed, config.summaries.n) == (21000, 21, 10)
    assert (config.summaries.temperature, config.summaries.top_p) == (0.8, 0.95)
    assert (config.pairs.threshold, config.pairs.min_word_gap, config.pairs.max_per_article) == (3, 3, 3)
    assert (config.training.beta, config.training.num_train_epochs, config.training.pairs_per_step) == (0.01, 3, 36)
    assert config.training.learning_rate == 5e-6
    lora = config.training.lora
    assert (lora.r, lora.lora_alpha, len(lora.target_modules)) == (8, 16, 7)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("pairs.zzz=3", "pairs has no 'zzz'; it has preference, threshold, min_word_gap,"),
        ("pairs.treshold=3", "did you mean threshold?"),
        ("trainig.beta=1", "the configuration has no 'trainig' (did you mean training?)"),
        ("hardware.trainer.worker=2", "hardware.trainer has no 'worker' (did you mean workers?)"),
        ("training.beta=-1", "training.beta is -1: input should be greater than 0"),
        ("training.beta=.nan", "training.beta is nan: input should be a finite number"),
        ("rounds=two", "rounds is 'two': input should be a valid integer"),
        ("rounds=0", "rounds is 0: input should be greater than 0"),
        ("summaries.n=1", "summaries.n is 1: input should be greater than or equal to 2"),
        ("summaries.temperature=0", "summaries.temperature is 0: it should be a number above 0, or a list such as"),
        ("summaries.temperature=[]", "summaries.temperature is []: it should be a number above 0, or a list such as"),
        ("summaries.temperature=[0.7, hot]", "summaries.temperature is [0.7, 'hot']: it should be a number above 0"),
        ("summaries.temperature=true", "summaries.temperature is true: it should not be true or false"),
        ("summaries={n: 2, temperature: [0.5, 0.7, 1]}", "summaries.temperature has 3 temperatures, and summaries.n"),
        ("summaries.stop=['']", "it has an empty text, which would end every summary at once"),
        (
            "training.loss_type=dpo",
            "training.loss_type has an unknown loss 'dpo'; known losses are sigmoid, robust, ipo,",
        ),
        (
            "training.loss_type=[sigmoid, dpo]",
            "training.loss_type has an unknown loss 'dpo'; known losses are sigmoid, robust, ipo,",
        ),
        (
            "training.loss_type=[[ipo]]",
            "training.loss_type has an unknown loss ['ipo']; known losses are sigmoid, robust, ipo,",
        ),
        (
            "training.loss_type=[]",
            "training.loss_type is []: it should be a loss or a list of losses; known losses are sigmoid,",
        ),
        (
            "training.loss_type=1",
            "training.loss_type has an unknown loss '1'; known losses are sigmoid,",
        ),
        ("training.loss_type=[ipo, ipo]", "training.loss_type has ipo twice: name it once, with its weight in loss_w"),
        (
            "training.loss_weights=[1, 2]",
            "training.loss_weights has 2 weights and training.loss_type has 1 loss (sigmoid): give each",
        ),
        ("training.loss_weights=[0]", "training.loss_weights.0 is 0: input should be greater than 0"),
        ("training.loss_type=exo_pair", "exo_pair, which is infinite if training.label_smoothing is 0: set it above 0"),
        ("training.label_smoothing=0.5", "training.label_smoothing is 0.5: input should be less than 0.5"),
        ("training.simpo_gamma=1", "training.simpo_gamma is 1, and it has no effect on training.loss_type sigmoid: "),
        ("training.simpo_gamma=-1", "training.simpo_gamma is -1: input should be greater than or equal to 0"),
        ("training.rpo_alpha=0", "training.rpo_alpha is 0: input should be greater than 0"),
        ("training.lora.alpha=1", "training.lora has no 'alpha' (did you mean lora_alpha?)"),
        ("training.lora={r: 0}", "training.lora.r is 0: input should be greater than 0"),
        (
            "training.lora.target_modules=q_proj",
            "target_modules is 'q_proj': it should be all-linear, or a list of linear layers",
        ),
        ("training.lora.target_modules=[]", "target_modules is []: it should be all-linear"),
        ("policy.dtype=float16", "policy.dtype is 'float16': input should be 'float32' or 'bfloat16'"),
        ("policy.instruction=Summarize!", "policy.instruction must contain {article}, the place of the article"),
        ("policy.instruction=5", "policy.instruction must contain {article}"),
        ("policy.instruction=[]", "policy.instruction ends with nothing: the last message should be the user's"),
        ("policy.instruction=[{role: bot, content: x}]", "policy.instruction[0] has the role 'bot': it should be one"),
        ("policy.merge_system=true", "policy.merge_system is set, and policy.instruction has no system message"),
        (
            "second_judge={kind: cloze, wording: newsroom}",
            "second_judge.wording is set, and second_judge.kind is cloze, which asks no model: remove it",
        ),
        ("second_judge={kind: cloze, questions: 2}", "is only 2: no article would get a second opinion"),
        (
            "training={loss_type: sft, beta: 0.7}",
            "training.beta is 0.7, and it has no effect on training.loss_type sft",
        ),
        (
            "articles.max_words=10",
            "articles.min_words is 20 and articles.max_words is 10: every article would be skipped",
        ),
        (
            "articles={path: a.jsonl, eval_fraction: 0.66, test_fraction: 0.34}",
            "articles.eval_fraction is 0.66 and articles.test_fraction is 0.34: no article would be left for training",
        ),
        ("judge.kind=cloze", "judge.kind is cloze, which needs no model, and judge.model is set"),
        ("judge.model=null", "judge.kind is mcq and judge.model is missing"),
        ("judge.wording=plan", "judge.wording is 'plan'; there are plain, newsroom"),
        (
            "judge={kind: cloze, logprobs: true}",
            "judge.logprobs is true, and judge.kind is cloze, which is always sure",
        ),
        (
            "pairs.weighting=margin",
            "pairs.weighting is margin, which needs the probabilities of answers: set judge.logprobs=true as well",
        ),
        ("judge.questions_prompt=Ask!", "judge.questions_prompt must say where these go: {article}"),
        ("judge.answers_prompt='{passage} {question}'", "judge.answers_prompt must say where these go: {questions}"),
        ("judge.answers_prompt=''", "judge.answers_prompt must say where these go: {questions}, {passage}"),
        (
            "judge={kind: cloze, answers_prompt: x}",
            "judge.answers_prompt is set, and judge.kind is cloze, which asks no",
        ),
        ("questions.min_questions=4", "pairs.threshold is 5 and questions.min_questions is only 4"),
        (
            "summaries.max_tokens=1024",
            "summaries.max_tokens is 1024 and policy.max_model_len is 1024: no room is left for the prompt",
        ),
        ("run=s3://key:secret@bucket/run", "run holds a user or a password: put credentials in the environment"),
        (
            "second_judge={kind: cloze, questions: 3}",
            "questions.min_questions is 5 and second_judge.questions is only 3",
        ),
        ("second_judge={kind: clozer}", "second_judge.kind is 'clozer'; there are mcq, cloze, likelihood"),
        (
            "second_judge={model: m, wording: plan}",
            "second_judge.wording is 'plan'; there are plain, newsroom",
        ),
        (
            "second_judge={kind: cloze, model: m}",
            "second_judge.kind is cloze, which needs no model, and second_judge.model is set",
        ),
        ("second_judge={knd: cloze}", "second_judge has no 'knd' (did you mean kind?)"),
        ("questions.min_questions=6", "questions.min_questions is 6 and judge.questions is only 5"),
        (
            "pairs.preference=accuracy",
            "pairs.preference is 'accuracy': it should be one of accuracy_then_length, accuracy_only,",
        ),
        ("pairs.selection=best", "pairs.selection is 'best': input should be 'random', 'best_worst', 'widest_margin'"),
        ("pairs.max_length_ratio=0.5", "pairs.max_length_ratio is 0.5: input should be greater than or equal to 1"),
        ("pairs.min_words=300", "no summary could be paired"),
        ("hardware.judge.gpus_per_replica=1.5", "above 1 it must be a whole number"),
        ("training.load_in_4bit=true", "training.load_in_4bit is set and training.lora is not"),
        ("training.load_in_4bit=nf4", "training.load_in_4bit is 'nf4': it should be true, false, or a section"),
        ("articles=x.jsonl", "articles is 'x.jsonl'"),
        ("rounds.x=1", "rounds is a value (3), not a section"),
        ("rounds", "'rounds' is not a setting: write NAME=VALUE"),
        ("rounds=[", "rounds: '[' is not a YAML value"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(override, line):
    with pytest.raises(UserError) as caught:
        load_config(DEMO, [override])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("training", "line"),
    [
        (
            {"loss_type": "ipo", "label_smoothing": 0.1},
            "training.label_smoothing is 0.1, and it has no effect on training.loss_type ipo: leave label_smoothing "
            "out, or add a loss that uses it (sigmoid, robust, exo_pair, aot, aot_unpaired, simpo)",
        ),
        ({"loss_type": ["hinge", "sft"], "label_smoothing": 0.1}, "has no effect on training.loss_type hinge, sft"),
        (
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]},
            "has 1 weight and training.loss_type has 2 losses (sigmoid, sft)",
        ),
        (
            {"loss_type": ["sigmoid", "sft"], "rpo_alpha": 1.0},
            "training.rpo_alpha adds sft, and training.loss_type already has it",
        ),
        (
            {"loss_type": "orpo", "rpo_alpha": 1.0},
            "training.rpo_alpha adds sft, and training.loss_type has orpo, which already includes sft",
        ),
        ({"loss_type": "simpo", "beta": 0}, "training.beta is 0: input should be greater than 0"),
        ({"discopop_tau": 0.1}, "training.discopop_tau is 0.1, and it has no effect on training.loss_type sigmoid"),
        (
            {"loss_type": ["sigmoid", "aot"], "f_divergence_type": "forward_kl"},
            "training.f_divergence_type is forward_kl, and it has no meaning for aot: use reverse_kl",
        ),
        ({"loss_type": "sft", "f_divergence_type": "js_divergence"}, "it has no meaning for sft"),
        (
            {"f_alpha_divergence_coef": 0.3},
            "training.f_alpha_divergence_coef is 0.3 and training.f_divergence_type is reverse_kl: leave it out",
        ),
        ({"loss_type": "simpo", "ld_alpha": 0.5}, "training.ld_alpha is 0.5, and it has no meaning for simpo"),
        ({"ld_alpha": 1.5}, "training.ld_alpha is 1.5: input should be less than or equal to 1"),
        ({"loss_type": "aot", "use_weighting": True}, "training has aot, which is not one for each pair"),
        ({"rpo_alpha": 1.0, "use_weighting": True}, "training has rpo_alpha, which is not one for each pair"),
        (
            {"lora": {"use_dora": True}},
            "training.lora.use_dora is true and training.lora.merge is false: vLLM does not serve DoRA adapters",
        ),
    ],
)
def test_an_invalid_combination_of_losses_is_refused(training, line):
    with pytest.raises(UserError) as caught:
        parse_config(DEMO_SETTINGS | {"training": training})
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "training",
    [
        {"loss_type": "ipo"},
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"loss_type": "exo_pair", "label_smoothing": 0.001},
        {"loss_type": ["ipo", "simpo"], "simpo_gamma": 1.5, "label_smoothing": 0.1},
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"loss_type": "sigmoid", "rpo_alpha": 1.0},
        {"loss_type": ["sigmoid", "sft"], "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        {"loss_type": ["aot", "aot_unpaired"], "ld_alpha": 0.0, "label_smoothing": 0.1},
        {"loss_type": "discopop", "discopop_tau": 0.1, "use_weighting": True},
    ],
)
def test_losses_and_mixtures_survive_a_round_trip_through_yaml(training):
    config = parse_config(DEMO_SETTINGS | {"training": training})
    written = config.model_dump(mode="json")
    assert written["training"] | training == written["training"]
    assert parse_config(yaml.safe_load(yaml.safe_dump(written))) == config


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["training.ld_alpha=0.5", "references.source=sampler", "summaries.logprobs=true"],
            "training.ld_alpha is set and references.source is sampler, which gives one log-probability",
        ),
        (
            ["training.router_aux_loss_coef=0.01", "hardware.trainer.torch_compile=true"],
            "training.router_aux_loss_coef is 0.01 and hardware.trainer.torch_compile is true",
        ),
    ],
)
def test_a_loss_that_the_run_cannot_compute_is_refused(overrides, line):
    with pytest.raises(UserError) as caught:
        load_config(DEMO, overrides)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_of_one_loss_is_the_same_recipe_as_its_name():
    assert load_config(DEMO, ["training.loss_type=[ipo]"]) == load_config(DEMO, ["training.loss_type=ipo"])


def test_all_wrong_settings_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        load_config(DEMO, ["rounds=two", "training.beta=-1", "x=1"])
    assert len(str(caught.value).split("\n")) == 3


def test_a_missing_setting_is_named():
    with pytest.raises(UserError, match=r"articles\.path is missing: set it in the file, or on the command line"):
        parse_config({"run": "r", "articles": {}, "policy": {"model": "m"}, "judge": {"kind": "cloze"}})


def test_a_missing_or_malformed_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no configuration at"):
        load_config(tmp_path / "none.yaml")
    for text in ("a: [", "- 1\n- 2", "\x00", ""):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError):
            load_config(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError):
        load_config(tmp_path / "bad.yaml")


@pytest.mark.parametrize("limit_to_one", ["pairs.selection=best_worst", "pairs.max_per_article=1"])
def test_margin_weighting_needs_several_pairs_per_article(limit_to_one):
    margin_weighting = ["judge.logprobs=true", "pairs.weighting=margin"]
    with pytest.raises(UserError, match="weighs the pairs of an article against each other, but pairs.selection or"):
        load_config(DEMO, [*margin_weighting, limit_to_one])
    config = load_config(DEMO, [*margin_weighting, "pairs.max_per_article=1", "pairs.selection=all"])
    assert config.pairs.weighting == "margin"


def test_overrides_change_the_settings_that_they_name():
    config = load_config(DEMO, ["training.beta=0.05", "rounds=3", "hardware.trainer.workers=2"])
    assert (config.training.beta, config.rounds, config.hardware.trainer.workers) == (0.05, 3, 2)


def test_settings_survive_a_round_trip_through_yaml():
    config = load_config(DEMO, ["training.lora.target_modules=[q_proj, v_proj]"])
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(Config.model_fields)), inner),
        max_leaves=8,
    ),
    st.sampled_from(list(Config.model_fields)),
)
def test_any_value_is_accepted_or_raises_a_user_error(value, name):
    raw = DEMO_SETTINGS | {name: value}
    with contextlib.suppress(UserError):
        parse_config(raw)


@given(st.text(max_size=20))
def test_any_override_is_accepted_or_raises_a_user_error(text):
    with contextlib.suppress(UserError):
        apply_overrides({}, [text])


def test_a_date_is_a_date_even_if_a_library_changes_pyyaml(monkeypatch):
    constructors = yaml.SafeLoader.yaml_constructors
    monkeypatch.setitem(constructors, "tag:yaml.org,2002:timestamp", constructors["tag:yaml.org,2002:str"])
    assert parse_yaml("2024-01-31") == date(2024, 1, 31)

"""Every setting that decides a result, on one page; where and how wide to run is in `hardware.py`.

One frozen model a stage, no unknown keys. Names are those of TRL (training, in `learning.py`) and vLLM (sampling);
when rounds end by themselves (`stop`) is in `stopping.py`.
Left out: reading them from a file (`reading.py`), and anything that a result does not depend on.
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from judges.prompts import WORDINGS
from pipeline.config.base import Natural, Positive, Settings, Share, check_places
from pipeline.config.hardware import Hardware
from pipeline.config.servers import ComparedModel, ServedModel, check_servers
from pipeline.config.stopping import Stop
from pipeline.config.training import References, Training, check_references

Dtype = Literal["float32", "bfloat16"]
USER_CODE = r"[\w.]+:\w+"  # module:name, code of the user's
JUDGES = ("mcq", "cloze")
PREFERENCES = ("accuracy_then_length", "accuracy_only", "length_matched", "accuracy_then_any_length")
Logger = Literal["tensorboard", "wandb", "mlflow"]


class Articles(Settings):
    """The corpus: JSONL or Parquet by path or URI, or a Hugging Face dataset as `hf:NAME` or `hf:NAME/CONFIG:SPLIT`."""

    path: str
    id_column: str = "id"
    text_column: str = "text"
    limit: Positive | None = None  # the first so many of the file; None: all
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # held out, by hash of the id
    min_words: Natural = 20
    max_words: Positive = 4000
    # same: read once. new: each round takes `limit` articles that no round before it had, of a corpus that may have
    # grown since; held-out ones are the first round's.
    each_round: Literal["same", "new"] = "same"

    @model_validator(mode="after")
    def _has_room(self) -> "Articles":
        if self.min_words > self.max_words:
            raise ValueError(
                f"articles.min_words is {self.min_words} and articles.max_words {self.max_words}: "
                "no article could be used"
            )
        return self


class PolicySettings(Settings):
    """The model that is trained: a Hugging Face folder or name; with `training.lora` also a LoRA adapter's."""

    model: str
    dtype: Dtype = "bfloat16"  # of sampling, references and training alike
    max_model_len: Positive | None = None  # tokens of prompt and summary; None: what the model allows
    instruction: str = (
        "Write a very short summary of the article in at most two sentences, keeping its most important facts."
        "\n\n{article}"
    )

    @model_validator(mode="before")
    @classmethod
    def _is_ours_to_train(cls, data: Any) -> Any:
        if isinstance(data, dict) and (found := {"served", "server", "base_url"} & data.keys()):
            raise ValueError(
                f"policy.{min(found)} is set: a server gives neither token ids nor weights, so its model cannot be "
                "trained. Name a model's folder or a hub name as policy.model; a served one can be judged beside it: "
                "compare.NAME={model: …, server: …}"
            )
        return data

    @model_validator(mode="after")
    def _instruction_has_article(self) -> "PolicySettings":
        if "{article}" not in self.instruction:
            raise ValueError("policy.instruction must say where the article goes: {article}")
        return self


class JudgeSettings(Settings):
    """The judge: who asks questions about articles and answers them from summaries."""

    # mcq: an LLM writes and answers multiple-choice questions. cloze: blanks out names and numbers, without a model.
    # module:Class: a judge of yours, see `judges.base.Judge`.
    kind: str = "mcq"
    settings: dict[str, Any] = Field(default_factory=dict)  # of a judge of yours: keyword arguments of its class
    model: str | None = None
    served: ServedModel | None = None  # None: vLLM runs the model here
    dtype: Dtype = "bfloat16"
    max_model_len: Positive | None = None
    wording: str = "plain"
    # These replace the prompts of the wording. The first has {article}, and may have {count}, {choices} (the number of
    # options) and {wrong} (the form of the wrong options). The second has {questions} and {passage}, and may have
    # {count}.
    questions_prompt: str | None = None
    answers_prompt: str | None = None
    questions: Positive = 5
    options: Annotated[int, Field(ge=2, le=10)] = 5
    question_temperature: Annotated[float, Field(ge=0)] = 0.0
    # Keep the log-probability of each answer, and a soft score beside the count. About a tenth slower.
    logprobs: bool = False

    @property
    def name(self) -> str:
        """What records and reports call the judge."""
        if self.is_user_class:
            return f"{self.kind} with {self.model}" if self.model else self.kind
        return self.model or self.kind

    @property
    def is_user_class(self) -> bool:
        return self.kind not in JUDGES

    @field_validator("kind")
    @classmethod
    def _is_a_judge(cls, value: str) -> str:
        if value not in JUDGES and not re.fullmatch(USER_CODE, value):
            raise ValueError(f"judge.kind is {value!r}; there are {', '.join(JUDGES)}, or module:Class of your own")
        return value

    @field_validator("settings")
    @classmethod
    def _are_plain_values(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, setting in value.items():
            try:
                json.dumps(setting, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(
                    f"judge.settings.{name} is {setting!s:.80}: it should be text, a finite number, true, false, null, "
                    "or a list or section of these; put a date in quotes"
                ) from None
            if re.fullmatch(r"(?i)(.*_)?(api_?key|password|secret|token|credentials?)", name):
                raise ValueError(
                    f"judge.settings has {name!r}: settings are written into the run folder, so a judge must read keys "
                    "and passwords from the environment"
                )
        return value

    @model_validator(mode="after")
    def _has_its_model(self) -> "JudgeSettings":
        if self.kind == "mcq" and not self.model:
            raise ValueError("judge.kind is mcq and judge.model is missing: name a model, or use judge.kind=cloze")
        if self.kind == "cloze" and self.model:
            raise ValueError("judge.kind is cloze, which needs no model, and judge.model is set: remove one of them")
        if self.served and (self.dtype != "bfloat16" or self.max_model_len):
            raise ValueError(
                "judge.served is set, and its server decides dtype and max_model_len: remove them (on the command line "
                "judge.dtype=bfloat16 judge.max_model_len=null)"
            )
        if self.kind == "cloze" and self.served:
            raise ValueError("judge.kind is cloze, which needs no model, and judge.served is set: remove one of them")
        if self.served and not self.model:
            raise ValueError("judge.served is set and judge.model is missing: set the name that the server has for it")
        if self.logprobs and self.kind == "cloze":
            raise ValueError("judge.logprobs is true, and judge.kind is cloze, which is always sure: remove it")
        if self.logprobs and not self.model:
            raise ValueError(
                "judge.logprobs is true, and without judge.model no answer has a log-probability: remove it"
            )
        if self.logprobs and self.served and self.served.structured_outputs == "json_schema":
            raise ValueError(
                "judge.logprobs is true, and replies in json_schema consist of JSON's tokens, not the answers': set "
                "judge.served.structured_outputs to regex or null"
            )
        return self

    @model_validator(mode="after")
    def _has_no_setting_without_effect(self) -> "JudgeSettings":
        prompts = ("wording", "questions_prompt", "answers_prompt", "question_temperature")
        if self.kind == "cloze":
            self._refuse(*prompts, "dtype", "max_model_len", why="judge.kind is cloze, which asks no model: remove it")
        if self.is_user_class:
            own = "your class makes its own prompts: give it a setting of its own under judge.settings"
            self._refuse(*prompts, why=f"judge.kind is {self.kind}, and {own}")
            if not self.model:
                self._refuse("dtype", "max_model_len", why="judge.model is not: name a model, or remove it")
        elif self.settings:
            raise ValueError(
                f"judge.settings is for a class of yours, and judge.kind is {self.kind}, which has none of its own "
                f"({', '.join(self.settings)}): remove it"
            )
        return self

    def _refuse(self, *names: str, why: str) -> None:
        for name in names:
            if getattr(self, name) != JudgeSettings.model_fields[name].default:
                raise ValueError(f"judge.{name} is set, and {why}")

    @model_validator(mode="after")
    def _has_complete_prompts(self) -> "JudgeSettings":
        for name, places in (("questions_prompt", ("{article}",)), ("answers_prompt", ("{questions}", "{passage}"))):
            if (prompt := getattr(self, name)) is None:
                continue
            if missing := [place for place in places if place not in prompt]:
                raise ValueError(f"judge.{name} must say where these go: {', '.join(missing)}")
        if self.wording not in WORDINGS:
            raise ValueError(f"judge.wording is {self.wording!r}; there are {', '.join(WORDINGS)}")
        return self


class Questions(Settings):
    """Which questions are used, and which articles have enough of them."""

    min_questions: Positive = 4  # an article with fewer good ones is skipped
    check: bool = True  # right from the whole article, not right from nothing
    max_skipped: Share = 0.5  # of the articles; more stops the run


class Summaries(Settings):
    """How the policy is sampled for training. Names as in vLLM."""

    n: Annotated[int, Field(ge=2)] = 8
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 256
    logprobs: bool = False  # keep every sample's log-probability by the engine; else those of its first batch
    max_skipped: Share = 0.5


class Scores(Settings):
    max_unread: Share = 0.1  # share of answers that could not be read; more stops the run


class Pairs(Settings):
    """Which of two summaries is better, and which pairs of an article are trained on."""

    # accuracy_then_length: both at `threshold` or above, the shorter wins, else the one with more right.
    # accuracy_only: more right wins. length_matched: … if the two are of about one length. Or module:function of yours.
    preference: str = "accuracy_then_length"
    threshold: Natural = 3
    min_word_gap: Positive = 3  # of accuracy_then_length
    max_length_ratio: Annotated[float, Field(ge=1)] = 1.2  # of length_matched: words of the longer over the shorter's
    min_words: Natural = 5
    max_words: Positive = 200
    # random: up to max_per_article. best_worst: one. widest_margin: up to max_per_article. all: every one that is no
    # tie, those of an article together weighing as much as one pair.
    selection: Literal["random", "best_worst", "widest_margin", "all"] = "random"
    max_per_article: Positive = 3
    # margin: an article's pairs weigh by how much surer the judge is of the chosen's right answers than of the
    # rejected's, about a mean of what they weigh without; needs judge.logprobs=true.
    weighting: Literal["none", "margin"] = "none"
    # Two cures for pairs that grow alike from round to round, both off-policy in part, which the records count:
    rejected: Literal["policy", "base"] = "policy"  # base: in each pair the base's, better by the policy
    replay: Annotated[float, Field(ge=0)] = (
        0.0  # articles of earlier rounds' pairs to one of this round's; 0.25: a quarter
    )

    @field_validator("preference")
    @classmethod
    def _names_a_preference(cls, value: str) -> str:
        if value not in PREFERENCES and not re.fullmatch(USER_CODE, value):
            raise ValueError(
                f"pairs.preference is {value!r}; there are {', '.join(PREFERENCES)}, or module:function of your own"
            )
        return value


class Evaluation(Settings):
    """Greedy summaries of the held-out articles."""

    max_tokens: Positive = 256
    ask_again: Share = 0.05  # of the summaries, judged twice, the options in another order: the judge card's agreement
    max_skipped: Share = 0.5


class Baselines(Settings):
    """What the base is judged beside: summaries that learned nothing."""

    lead_sentences: Positive = 3  # lead-n: the article's first sentences
    shorten_to: Annotated[float, Field(gt=0, lt=1)] = 0.8  # shorten-only: this share of the words of the base's summary


class Report(Settings):
    """How the finished evaluations are counted; nothing is made again for it."""

    max_words: Positive = 200  # a summary of so many words counts as too long
    resamples: Annotated[int, Field(ge=100)] = 10_000  # of the paired bootstrap
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


class Config(Settings):
    """One run: its folder or URI, what is played, and where. Field order is the order of the journey."""

    run: str
    rounds: Positive = 1  # at most: `stop` may end them sooner
    # What a round starts from: its writer, reference (but see references.policy) and weights. champion: the last policy
    # that beat the champion before it.
    start_from: Literal["latest", "champion"] = "latest"
    stop: Stop = Stop()
    seed: Natural = 0
    articles: Articles
    policy: PolicySettings
    judge: JudgeSettings
    second_judge: JudgeSettings | None = (
        None  # scores the evaluations too, by questions of its own; None: no second opinion
    )
    questions: Questions = Questions()
    summaries: Summaries = Summaries()
    scores: Scores = Scores()
    pairs: Pairs = Pairs()
    references: References = References()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    baselines: Baselines = Baselines()
    compare: dict[str, ComparedModel] = Field(
        default_factory=dict
    )  # models at servers, by the name of their column in the report
    report: Report = Report()
    report_to: tuple[Logger, ...] = ()  # metrics of training, beside metrics.jsonl
    hardware: Hardware = Hardware()

    @model_validator(mode="after")
    def _is_possible(self) -> "Config":
        for name, judge, comes_of_it in (
            ("judge", self.judge, "every article would be skipped"),
            ("second_judge", self.second_judge, "of no article would there be a second opinion"),
        ):
            if judge and self.questions.min_questions > judge.questions:
                raise ValueError(
                    f"questions.min_questions is {self.questions.min_questions} and {name}.questions only "
                    f"{judge.questions}: {comes_of_it}"
                )
        if self.pairs.threshold > self.questions.min_questions:
            raise ValueError(
                f"pairs.threshold is {self.pairs.threshold} and questions.min_questions only "
                f"{self.questions.min_questions}: no summary of an article with so few questions could reach it"
            )
        if self.pairs.weighting == "margin" and not self.judge.logprobs:
            raise ValueError("pairs.weighting is margin, which needs what judge.logprobs=true keeps: set it too")
        one_each = self.pairs.selection == "best_worst" or (
            self.pairs.max_per_article == 1 and self.pairs.selection != "all"
        )
        if self.pairs.weighting == "margin" and one_each:
            raise ValueError(
                "pairs.weighting is margin, which weighs an article's pairs against each other, and by "
                "pairs.selection or pairs.max_per_article each has one: have more of them, or set it to none"
            )
        if self.references.source == "sampler" and not self.summaries.logprobs:
            raise ValueError("references.source is sampler, which needs what summaries.logprobs=true keeps: set it too")
        if self.references.source == "sampler" and (self.pairs.replay or self.pairs.rejected == "base"):
            raise ValueError(
                "references.source is sampler, and pairs.replay or pairs.rejected=base brings in summaries that "
                "another policy sampled: use references.source=trainer"
            )
        second = self.second_judge
        check_servers(
            self.judge.served,
            second.served if second else None,
            self.compare,
            self.hardware,
            second_here=bool(second and second.model and not second.served),
        )
        check_references(self.references, self.training)
        for name, longest in (("summaries", self.summaries.max_tokens), ("evaluation", self.evaluation.max_tokens)):
            if self.policy.max_model_len is not None and longest >= self.policy.max_model_len:
                raise ValueError(
                    f"{name}.max_tokens is {longest} and policy.max_model_len {self.policy.max_model_len}: "
                    "no prompt would have room"
                )
        check_places(
            {
                "run": self.run,
                "articles.path": self.articles.path,
                "policy.model": self.policy.model,
                "judge.model": self.judge.model or "",
                "second_judge.model": self.second_judge.model or "" if self.second_judge else "",
            }
        )
        if self.pairs.min_words >= self.pairs.max_words:
            raise ValueError(
                f"pairs.min_words is {self.pairs.min_words} and pairs.max_words {self.pairs.max_words}: "
                "no summary could be paired"
            )
        return self


class Alignment(Settings):
    """Training on preference pairs from elsewhere, without rounds: what `rondo train` and `pipeline.align` take."""

    run: str
    seed: Natural = 0
    pairs: str  # a file by path or URI, or hf:OWNER/NAME[/CONFIG][:SPLIT]; `formats.py` says which columns are known
    max_skipped: Share = 0.5  # of the rows of that file; more stops the run
    policy: PolicySettings
    references: References = References()
    training: Training = Training()
    report_to: tuple[Logger, ...] = ()
    hardware: Hardware = Hardware()

    @model_validator(mode="after")
    def _is_possible(self) -> "Alignment":
        if self.policy.instruction != PolicySettings.model_fields["instruction"].default:
            raise ValueError("policy.instruction is set, and pairs from elsewhere have prompts of their own: remove it")
        if self.references.source == "sampler":
            raise ValueError("references.source is sampler, and nothing is sampled here: set it to trainer, or none")
        check_references(self.references, self.training)
        check_places({"run": self.run, "pairs": self.pairs, "policy.model": self.policy.model})
        return self

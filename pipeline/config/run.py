"""Defines the settings that change a result, one section per stage. Settings of the hardware are in `hardware.py`.

Settings cannot be changed once they are made, and unknown keys are refused. Names are vLLM's for sampling and TRL's for
training (`training.py`). The rules that end a run early (`stop`) are in `stopping.py`. `loader.py` reads the settings
from a file.
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from judges.prompts import WORDINGS
from pipeline.config.base import Natural, Positive, Settings, Share, check_locations
from pipeline.config.hardware import Hardware
from pipeline.config.servers import ComparedModel, ServedModel, check_served_models
from pipeline.config.stopping import Stop
from pipeline.config.training import References, Training, check_references

Dtype = Literal["float32", "bfloat16"]
USER_CODE = r"[\w.]+:\w+"  # module:name of the user's own code
JUDGES = ("mcq", "cloze")
PREFERENCES = ("accuracy_then_length", "accuracy_only", "length_matched", "accuracy_then_any_length")
Logger = Literal["tensorboard", "wandb", "mlflow"]


class Articles(Settings):
    """The corpus.

    `path` is a JSONL or Parquet file by path or URI, or a Hugging Face dataset as `hf:NAME` or `hf:NAME/CONFIG:SPLIT`.
    """

    path: str
    id_column: str = "id"
    text_column: str = "text"
    limit: Positive | None = None  # use only the first `limit` articles of the file; None: all
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share that is held out, chosen by a hash of the id
    min_words: Natural = 20  # shorter articles are skipped
    max_words: Positive = 4000  # longer articles are skipped
    # same: every round uses the same articles. new: each round takes `limit` articles that no earlier round
    # had, from a corpus that may have grown meanwhile; the held-out articles stay those of the first round.
    each_round: Literal["same", "new"] = "same"

    @model_validator(mode="after")
    def _check_word_limits(self) -> "Articles":
        if self.min_words > self.max_words:
            raise ValueError(
                f"articles.min_words is {self.min_words} and articles.max_words is {self.max_words}: every article "
                "would be skipped. Set min_words to at most max_words"
            )
        return self


class PolicySettings(Settings):
    """The model to train: a Hugging Face model by folder or name. With `training.lora` it may be a LoRA adapter."""

    model: str
    dtype: Dtype = "bfloat16"  # for sampling, references and training alike
    max_model_len: Positive | None = None  # longest prompt and summary together, in tokens; None: the model's limit
    instruction: str = (
        "Write a very short summary of the article in at most two sentences, keeping its most important facts."
        "\n\n{article}"
    )

    @model_validator(mode="before")
    @classmethod
    def _check_not_served(cls, data: Any) -> Any:
        if isinstance(data, dict) and (server_settings := {"served", "server", "base_url"} & data.keys()):
            raise ValueError(
                f"policy.{min(server_settings)} is set: a model at a server cannot be trained, because a server gives "
                "neither token ids nor weights. Set policy.model to a model folder or a hub name. To compare a served "
                "model with the policy, use compare.NAME={model: …, server: …}"
            )
        return data

    @model_validator(mode="after")
    def _check_instruction(self) -> "PolicySettings":
        if "{article}" not in self.instruction:
            raise ValueError("policy.instruction must contain {article}, the place of the article")
        return self


class JudgeSettings(Settings):
    """The judge, which asks questions about articles and answers them from summaries."""

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
            why = "a class of yours that makes its own prompts: remove it, or give the class such a setting"
            self._refuse(*prompts, why=f"judge.kind is {self.kind}, {why} under judge.settings")
            if not self.model:
                self._refuse("dtype", "max_model_len", why="judge.model is not: name a model, or remove it")
        elif self.settings:
            raise ValueError(
                f"judge.settings is for a class of yours, and judge.kind is {self.kind}, which has no such settings "
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
    """Which questions are used, and how many an article needs."""

    min_questions: Positive = 4  # an article with fewer good questions is skipped
    check: bool = True  # keep only questions that the judge answers correctly with the article and not without it
    max_skipped: Share = 0.5  # largest share of articles skipped; a larger one ends the run


class Summaries(Settings):
    """How the policy samples summaries for training. Names as in vLLM."""

    n: Annotated[int, Field(ge=2)] = 8
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 256
    # True: keep the engine's log-probability of every summary. False: only of each engine's first batch.
    logprobs: bool = False
    max_skipped: Share = 0.5  # largest share of articles skipped; a larger one ends the run


class Scores(Settings):
    """How summaries are scored."""

    max_unread: Share = 0.1  # largest share of answers that could not be parsed; a larger one ends the run


class Pairs(Settings):
    """Which of two summaries is preferred, and which pairs of an article are trained on."""

    # accuracy_then_length: if both have `threshold` right answers or more, the shorter wins; else more right wins.
    # accuracy_only: more right wins.
    # length_matched: more right wins, among summaries of about equal length; all others tie.
    # accuracy_then_any_length: as accuracy_then_length, but without min_word_gap, and fewer words break ties below
    # `threshold` too.
    # module:function: the user's own function.
    preference: str = "accuracy_then_length"
    threshold: Natural = 3  # right answers
    min_word_gap: Positive = 3  # accuracy_then_length: the shorter must be shorter by this many words
    max_length_ratio: Annotated[float, Field(ge=1)] = 1.2  # length_matched: words of the longer by those of the shorter
    min_words: Natural = 5  # a shorter summary is never paired
    max_words: Positive = 200  # a summary of this many words or more is never paired
    # random: up to max_per_article pairs. best_worst: one pair. widest_margin: up to max_per_article pairs, those with
    # the largest differences. all: every pair that is not a tie; together they weigh as much as one pair.
    selection: Literal["random", "best_worst", "widest_margin", "all"] = "random"
    max_per_article: Positive = 3
    # none: an article's pairs weigh the same. margin: a pair weighs more if the judge is surer of the right answers of
    # the chosen than of the rejected; the mean weight stays the same. Needs judge.logprobs=true.
    weighting: Literal["none", "margin"] = "none"
    # `rejected` and `replay` are remedies for pairs that become alike from round to round. Both make training partly
    # off-policy; the records count such pairs.
    # policy: chosen and rejected are both the policy's. base: the rejected is the base's summary, in each pair.
    rejected: Literal["policy", "base"] = "policy"
    # Articles with pairs replayed from earlier rounds, per article with pairs of this round. 0.25: a quarter as many.
    replay: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("preference")
    @classmethod
    def _check_preference(cls, value: str) -> str:
        if value not in PREFERENCES and not re.fullmatch(USER_CODE, value):
            raise ValueError(
                f"pairs.preference is {value!r}: it should be one of {', '.join(PREFERENCES)}, or your own "
                "module:function"
            )
        return value


class Evaluation(Settings):
    """How the held-out articles are summarized (greedily) and judged."""

    max_tokens: Positive = 256
    # Share of the summaries that are judged twice, the second time with options in another order. The judge card shows
    # how often both agree.
    ask_again: Share = 0.05
    max_skipped: Share = 0.5  # largest share of articles skipped; a larger one ends the run


class Baselines(Settings):
    """Summaries that need no training, judged beside those of the base."""

    lead_sentences: Positive = 3  # lead-n: the first n sentences of the article
    shorten_to: Annotated[float, Field(gt=0, lt=1)] = 0.8  # shorten-only: share of the words kept of the base's summary


class Report(Settings):
    """How finished evaluations are counted. A change here remakes no artifact."""

    max_words: Positive = 200  # a summary of this many words or more counts as too long
    resamples: Annotated[int, Field(ge=100)] = 10_000  # of the paired bootstrap
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


class Config(Settings):
    """All settings of a run. The fields are in the order in which a round uses them."""

    run: str  # the run folder, a path or a URI
    rounds: Positive = 1  # number of rounds; `stop` may end the run earlier
    # The policy that a round starts from: it writes the summaries and gives the initial weights, and it is the
    # reference (but see references.policy). latest: the policy of the round before. champion: the last policy that beat
    # the champion before it.
    start_from: Literal["latest", "champion"] = "latest"
    stop: Stop = Stop()
    seed: Natural = 0
    articles: Articles
    policy: PolicySettings
    judge: JudgeSettings
    # A second judge, which also scores the held-out summaries, with its own questions. None: no second opinion.
    second_judge: JudgeSettings | None = None
    questions: Questions = Questions()
    summaries: Summaries = Summaries()
    scores: Scores = Scores()
    pairs: Pairs = Pairs()
    references: References = References()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    baselines: Baselines = Baselines()
    # Models at servers to compare with the policy, by the name of their column in the report.
    compare: dict[str, ComparedModel] = Field(default_factory=dict)
    report: Report = Report()
    report_to: tuple[Logger, ...] = ()  # where else to log training metrics; metrics.jsonl is always written
    hardware: Hardware = Hardware()

    @model_validator(mode="after")
    def _check_questions(self) -> "Config":
        for name, judge, consequence in (
            ("judge", self.judge, "every article would be skipped"),
            ("second_judge", self.second_judge, "no article would get a second opinion"),
        ):
            if judge and self.questions.min_questions > judge.questions:
                raise ValueError(
                    f"questions.min_questions is {self.questions.min_questions} and {name}.questions is only "
                    f"{judge.questions}: {consequence}"
                )
        return self

    @model_validator(mode="after")
    def _check_pairs(self) -> "Config":
        pairs, min_questions = self.pairs, self.questions.min_questions
        if pairs.threshold > min_questions:
            raise ValueError(
                f"pairs.threshold is {pairs.threshold} and questions.min_questions is only {min_questions}: if an "
                "article has so few questions, no summary can reach the threshold"
            )
        if pairs.min_words >= pairs.max_words:
            raise ValueError(
                f"pairs.min_words is {pairs.min_words} and pairs.max_words is {pairs.max_words}: "
                "no summary could be paired"
            )
        if pairs.weighting != "margin":
            return self
        if not self.judge.logprobs:
            raise ValueError(
                "pairs.weighting is margin, which needs the probabilities of answers: set judge.logprobs=true as well"
            )
        if pairs.selection == "best_worst" or (pairs.max_per_article == 1 and pairs.selection != "all"):
            raise ValueError(
                "pairs.weighting is margin, which weighs the pairs of an article against each other, but "
                "pairs.selection or pairs.max_per_article allows only one pair per article: allow more, or set "
                "pairs.weighting to none"
            )
        return self

    @model_validator(mode="after")
    def _check_references(self) -> "Config":
        if self.references.source == "sampler":
            if not self.summaries.logprobs:
                raise ValueError(
                    "references.source is sampler, which needs the engine's log-probabilities of all summaries: set "
                    "summaries.logprobs=true as well"
                )
            if self.pairs.replay or self.pairs.rejected == "base":
                raise ValueError(
                    "references.source is sampler, but with pairs.replay or pairs.rejected=base some summaries were "
                    "sampled by another policy: use references.source=trainer"
                )
        check_references(self.references, self.training)
        return self

    @model_validator(mode="after")
    def _check_servers(self) -> "Config":
        second = self.second_judge
        check_served_models(
            self.judge.served,
            second.served if second else None,
            self.compare,
            self.hardware,
            second_judge_is_local=bool(second and second.model and not second.served),
        )
        return self

    @model_validator(mode="after")
    def _check_prompt_room(self) -> "Config":
        limit = self.policy.max_model_len
        for name, max_tokens in (("summaries", self.summaries.max_tokens), ("evaluation", self.evaluation.max_tokens)):
            if limit is not None and max_tokens >= limit:
                raise ValueError(
                    f"{name}.max_tokens is {max_tokens} and policy.max_model_len is {limit}: no room is left for the "
                    f"prompt. Lower {name}.max_tokens, or raise policy.max_model_len"
                )
        return self

    @model_validator(mode="after")
    def _check_locations(self) -> "Config":
        check_locations(
            {
                "run": self.run,
                "articles.path": self.articles.path,
                "policy.model": self.policy.model,
                "judge.model": self.judge.model or "",
                "second_judge.model": self.second_judge.model or "" if self.second_judge else "",
            }
        )
        return self


class Alignment(Settings):
    """All settings of a training on preference pairs from elsewhere, without rounds.

    `rondo train` and `pipeline.align` take these settings.
    """

    run: str  # the run folder, a path or a URI
    seed: Natural = 0
    # A file by path or URI, or hf:OWNER/NAME[/CONFIG][:SPLIT]. `data/preference_formats.py` lists the known columns.
    pairs: str
    max_skipped: Share = 0.5  # largest share of rows skipped in that file; a larger one ends the run
    policy: PolicySettings
    references: References = References()
    training: Training = Training()
    report_to: tuple[Logger, ...] = ()  # where else to log training metrics; metrics.jsonl is always written
    hardware: Hardware = Hardware()

    @model_validator(mode="after")
    def _check_alignment(self) -> "Alignment":
        if self.policy.instruction != PolicySettings.model_fields["instruction"].default:
            raise ValueError("policy.instruction is set, but these pairs have their own prompts: remove it")
        if self.references.source == "sampler":
            raise ValueError(
                "references.source is sampler, but `rondo train` samples no summaries: set it to trainer or none"
            )
        check_references(self.references, self.training)
        check_locations({"run": self.run, "pairs": self.pairs, "policy.model": self.policy.model})
        return self

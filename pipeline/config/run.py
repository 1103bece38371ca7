"""Defines the settings that change a result, one section per stage. Settings of the hardware are in `hardware.py`.

Settings cannot be changed once they are made, and unknown keys are refused. Names are vLLM's for sampling and TRL's for
training (`training.py`). The rules that end a run early (`stop`) are in `stopping.py`. `loader.py` reads the settings
from a file.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Dtype, Natural, Positive, Settings, Share, check_locations
from pipeline.config.hardware import Hardware
from pipeline.config.judging import JUDGES, PREFERENCES, JudgeSettings, Pairs, Questions, Scores, refusal_of_check
from pipeline.config.servers import ComparedModel, check_served_models
from pipeline.config.stopping import Stop
from pipeline.config.training import References, Training, check_references

Logger = Literal["tensorboard", "wandb", "mlflow"]


class Articles(Settings):
    """The corpus.

    `path` is a JSONL or Parquet file by path or URI, or a Hugging Face dataset as `hf:NAME` or `hf:NAME/CONFIG:SPLIT`.
    """

    path: str
    id_column: str = "id"
    text_column: str = "text"
    group_column: str | None = None  # articles with the same value, such as a document's id, are all held out or none
    limit: Positive | None = None  # use only the first `limit` articles of the file; None: all
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share that is held out, chosen by a hash of the id
    # Words are counted by white space, and in Chinese, Japanese, Thai, Lao, Khmer and Burmese by characters.
    min_words: Natural = 20  # shorter articles are skipped
    max_words: Positive = 4000  # longer articles are skipped
    # An article is skipped if it shares this much with an earlier one, from 0 to 1: of all runs of 5 words of both, the
    # share that both have. None: only if all its words are the same.
    near_copies: Annotated[float, Field(ge=0.2, le=1)] | None = 0.8
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
    # Has {article}, and may have {language}: the English name of the article's language.
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


class Summaries(Settings):
    """How the policy samples summaries for training. Names as in vLLM."""

    n: Annotated[int, Field(ge=2)] = 8
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 256
    # True: keep the engine's log-probability of every summary. False: only of each engine's first batch.
    logprobs: bool = False
    max_skipped: Share = 0.5  # largest share of articles skipped; a larger one ends the run


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

    @model_validator(mode="before")
    @classmethod
    def _choose_preference(cls, data: Any) -> Any:
        """A judge that counts no right answers prefers the higher score, unless the settings name a preference."""
        if not isinstance(data, dict):
            return data
        judge, pairs = data.get("judge"), data.get("pairs", {})
        kind = JUDGES.get(str(judge.get("kind"))) if isinstance(judge, dict) else None
        if kind is None or kind.asks_questions or not isinstance(pairs, dict) or "preference" in pairs:
            return data
        return data | {"pairs": pairs | {"preference": "higher_score"}}

    @model_validator(mode="after")
    def _check_preference(self) -> "Config":
        preference = self.pairs.preference
        if self.judge.asks_questions is False and preference in PREFERENCES and preference != "higher_score":
            raise ValueError(
                f"pairs.preference is {preference}, which compares right answers, and judge.kind is {self.judge.kind}, "
                "which asks no questions: remove it, or set it to higher_score"
            )
        return self

    @model_validator(mode="after")
    def _check_questions(self) -> "Config":
        for name, judge, consequence in (
            ("judge", self.judge, "every article would be skipped"),
            ("second_judge", self.second_judge, "no article would get a second opinion"),
        ):
            asks = judge and judge.asks_questions is not False
            if judge and asks and self.questions.min_questions > judge.questions:
                raise ValueError(
                    f"questions.min_questions is {self.questions.min_questions} and {name}.questions is only "
                    f"{judge.questions}: {consequence}"
                )
            draft = self.questions.draft
            if judge and asks and draft is not None and draft < judge.questions:
                raise ValueError(
                    f"questions.draft is {draft} and {name}.questions is {judge.questions}, which are kept of those "
                    "that are drafted: raise questions.draft, or remove it"
                )
        if self.judge.asks_questions is not False:
            for check in self.questions.more_checks:
                if refusal := refusal_of_check(check, self.judge):
                    raise ValueError(f"questions.more_checks has {check}, and {refusal}: remove it")
        return self

    @model_validator(mode="after")
    def _check_pairs(self) -> "Config":
        pairs, min_questions = self.pairs, self.questions.min_questions
        if self.judge.asks_questions is not False and pairs.threshold > min_questions:
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

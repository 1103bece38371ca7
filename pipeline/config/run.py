"""Defines the settings that change a result, one section per stage. Settings of the hardware are in `hardware.py`.

Settings cannot be changed once they are made, and unknown keys are refused. Names are vLLM's for sampling and TRL's for
training (`training.py`). The rules that end a run early (`stop`) are in `stopping.py`. `loader` reads the settings
from a file.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from judges.text.conversations import read_instruction
from pipeline.config.base import (
    Dtype,
    EngineKwargs,
    Location,
    Natural,
    Positive,
    Settings,
    Share,
    Thinking,
    check_locations,
)
from pipeline.config.hardware import EngineHardware, Hardware
from pipeline.config.judging import JUDGES, PREFERENCES, JudgeSettings, Pairs, Questions, Scores, refusal_of_check
from pipeline.config.servers import ComparedModel, check_served_models
from pipeline.config.stopping import Stop
from pipeline.config.training import References, Training, check_4bit, check_references, check_router_loss

Logger = Literal["tensorboard", "wandb", "mlflow"]


class Articles(Settings):
    """The corpus. `data/readers.py` lists the kinds of files."""

    # A file (JSON, CSV or Parquet) or a folder of .txt files by path or URI, or a Hugging Face dataset as `hf:NAME` or
    # `hf:NAME/CONFIG:SPLIT`.
    path: Location
    id_column: str = "id"  # the column that names an article: its hash decides the split
    text_column: str = "text"  # the column with the article
    group_column: str | None = None  # articles with the same value, such as a document's id, are all in one split
    limit: Positive | None = None  # use only the first `limit` articles of the file; None: all
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share that is held out, chosen by a hash of the id
    # Share of test articles, which nothing reads before the end of the run. They are taken from the training articles.
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Words are counted by white space, and in Chinese, Japanese, Thai, Lao, Khmer and Burmese by characters.
    min_words: Natural = 20  # shorter articles are skipped
    max_words: Positive = 4000  # longer articles are skipped
    # An article is skipped if it shares this much with an earlier one, from 0 to 1: of all runs of 5 words of both, the
    # share that both have. None: only if all its words are the same.
    near_copies: Annotated[float, Field(ge=0.2, le=1)] | None = 0.8
    # same: every round uses the same articles. new: each round takes `limit` articles that no earlier round
    # had, from a corpus that may have grown meanwhile; held-out and test articles stay those of the first round.
    each_round: Literal["same", "new"] = "same"

    @model_validator(mode="after")
    def _check_fractions(self) -> "Articles":
        if self.eval_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"articles.eval_fraction is {self.eval_fraction} and articles.test_fraction is {self.test_fraction}: "
                "no article would be left for training. Set them to less than 1 together"
            )
        return self

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

    model: Location  # a Hugging Face causal LM, or with `training.lora` a LoRA adapter
    dtype: Dtype = "bfloat16"  # for sampling, references and training alike
    # Longest prompt, thought and summary together, in tokens; None: the model's limit.
    max_model_len: Positive | None = None
    thinking: Thinking | None = None  # whether it thinks before it writes a summary; None: it does not
    # Further arguments for vLLM that may change what it writes, by vLLM's own names, such as {kv_cache_dtype: fp8}.
    # They hold for sampling only. Arguments that change the speed only are in hardware.policy.engine_kwargs.
    engine_kwargs: EngineKwargs = Field(default_factory=dict)
    # Has {article}, and may have {language}: the English name of the article's language. A text, which the user says,
    # or a list of messages: [{role: system, content: …}, …, {role: user, content: …}]: `judges/text/conversations.py`.
    instruction: str | tuple[dict[str, str], ...] = (
        "Write a very short summary of the article in at most two sentences, keeping its most important facts."
        "\n\n{article}"
    )
    # Put the system message into the first user message, for a chat template that takes no system role. In a run it is
    # that of the instruction; in a training on pairs, that of each prompt.
    merge_system: bool = False

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

    @field_validator("instruction", mode="before")
    @classmethod
    def _check_instruction(cls, value: Any) -> Any:
        if isinstance(value, str):
            read_instruction(value, "policy.instruction")
            return value
        if not isinstance(value, list | tuple):
            raise PydanticCustomError("instruction", "it should be text in quotes, or a list of messages")
        return read_instruction(value, "policy.instruction")


class Summaries(Settings):
    """How the policy samples summaries for training. Names as in vLLM."""

    n: Annotated[int, Field(ge=2)] = 8  # summaries of each article
    # A number, or a list of them: the n summaries of each article are then spread over these temperatures evenly.
    temperature: float | tuple[float, ...] = 1.0
    # Sample from the most likely tokens that have this probability together. 1: from all.
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0  # sample from the k most likely tokens; 0: from all
    min_p: Share = 0.0  # leave out tokens with less than this share of the probability of the most likely one
    # Above 1: tokens of the article and of the summary so far are less likely; below 1 more likely.
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    # Texts that end a summary, which does not have them. The policy is trained on their tokens too. Held-out summaries
    # go on after them, so a policy should learn to stop there.
    stop: tuple[str, ...] = ()
    max_tokens: Positive = 256  # of a summary, without its thought; a longer one is cut off
    # True: keep the engine's log-probability of every summary. False: only of each engine's first batch.
    logprobs: bool = False
    max_skipped: Share = 0.5  # largest share of articles skipped; a larger one ends the run

    @property
    def temperatures(self) -> tuple[float, ...]:
        return self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)

    @property
    def shown_temperature(self) -> str:
        """The temperature as it is written in settings."""
        shown = ", ".join(f"{temperature:g}" for temperature in self.temperatures)
        return f"[{shown}]" if isinstance(self.temperature, tuple) else shown

    @property
    def is_own_distribution(self) -> bool:
        """Whether summaries are drawn from the policy's own distribution, which nothing sharpens or cuts."""
        unchanged = (1.0,), 1.0, 0, 0.0, 1.0
        return (self.temperatures, self.top_p, self.top_k, self.min_p, self.repetition_penalty) == unchanged

    @field_validator("temperature", mode="before")
    @classmethod
    def _check_temperature(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return value  # refused by `Settings`
        try:
            numbers = sorted(float(each) for each in (value if isinstance(value, list | tuple) else [value]))
        except (TypeError, ValueError):
            numbers = []
        if not numbers or not all(0 < number < math.inf for number in numbers):
            raise PydanticCustomError("temperature", "it should be a number above 0, or a list such as [0.7, 1.0]")
        return tuple(numbers) if len(numbers) > 1 else numbers[0]

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise PydanticCustomError("stop", "it has an empty text, which would end every summary at once")
        return value

    @model_validator(mode="after")
    def _check_spread(self) -> "Summaries":
        if len(self.temperatures) > self.n:
            raise ValueError(
                f"summaries.temperature has {len(self.temperatures)} temperatures, and summaries.n is {self.n}: raise "
                "n, or name fewer"
            )
        return self


class Evaluation(Settings):
    """How the held-out articles are summarized (greedily) and judged."""

    max_tokens: Positive = 256  # of a summary, without its thought; a longer one is cut off
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
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95  # of every interval and test in the report


class Config(Settings):
    """All settings of a run. The fields are in the order in which a round uses them."""

    run: Location  # the run folder, a path or a URI
    rounds: Positive = 1  # number of rounds; `stop` may end the run earlier
    # The policy that a round starts from: it writes the summaries and gives the initial weights, and it is the
    # reference (but see references.policy). latest: the policy of the round before. champion: the last policy that beat
    # the champion before it.
    start_from: Literal["latest", "champion"] = "latest"
    stop: Stop = Stop()
    seed: Natural = 0  # of draws and shuffles; samples of the engines differ from run to run all the same
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
    report_to: tuple[Logger, ...] = ()  # trackers that get the metrics of training, the evaluations and the report
    hardware: Hardware = Hardware()

    @property
    def judges(self) -> dict[str, JudgeSettings]:
        """Every judge by the name of its section, such as `judge` or `second_judge.members.NAME`; no jury."""
        second = self.second_judge.single_judges("second_judge") if self.second_judge else {}
        return self.judge.single_judges("judge") | second

    def judge_hardware(self, name: str) -> EngineHardware:
        """The part of `hardware.judge` that a judge runs on, by the name of its section in `judges`.

        All engines of a jury run at the same time, and together they take what one judge takes: each member has an
        equal part of the CPUs, and each model that runs here an equal part of the GPUs and of their memory.
        """
        hardware, jury = self.hardware.judge, getattr(self, name.partition(".")[0])
        if jury.kind != "jury":
            return hardware
        local = _count_local_models(jury)
        runs_here = self.judges[name].model and not self.judges[name].served
        return hardware.model_copy(
            update={
                "cpus_per_replica": max(0.01, math.floor(100 * hardware.cpus_per_replica / len(jury.members)) / 100),
                "gpus_per_replica": hardware.gpus_per_replica / local if runs_here else 0,
                "gpu_memory_utilization": hardware.gpu_memory_utilization / (local if runs_here else 1),
            }
        )

    @model_validator(mode="after")
    def _check_gpus_of_jury(self) -> "Config":
        gpus = self.hardware.judge.gpus_per_replica
        for section, jury in (("judge", self.judge), ("second_judge", self.second_judge)):
            local = _count_local_models(jury) if jury else 0
            if local and gpus / local > 1 and gpus % local:
                raise ValueError(
                    f"hardware.judge.gpus_per_replica is {gpus:g}, and {section}.members has {local} models that run "
                    f"here, which share these GPUs: set it to 1, or to a multiple of {local}"
                )
            if local and (stages := self.hardware.judge.pipeline_stages) > 1 and gpus % (local * stages):
                raise ValueError(
                    f"hardware.judge.gpus_per_replica is {gpus:g}, {section}.members has {local} models that run here, "
                    f"which share these GPUs, and engine_kwargs divides those of each into {stages} groups: set it to "
                    f"a multiple of {local * stages}"
                )
        return self

    @model_validator(mode="after")
    def _check_gpus_of_scoring_engines(self) -> "Config":
        local = {name: judge for name, judge in self.judges.items() if judge.model and not judge.served}
        one_gpu = [name for name, judge in local.items() if judge.kind in JUDGES and not JUDGES[judge.kind].served]
        if len(one_gpu) == len(local) and any(self.judge_hardware(name).gpus_per_replica > 1 for name in one_gpu):
            gpus, name = self.hardware.judge.gpus_per_replica, one_gpu[0]
            raise ValueError(
                f"hardware.judge.gpus_per_replica is {gpus:g}, and {name}.kind is {local[name].kind}, whose "
                "model runs on one GPU, so the others would idle: lower it, and use "
                "hardware.judge.replicas for more GPUs"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _choose_preference(cls, data: Any) -> Any:
        """A judge that counts no right answers has another preference, unless the settings name one."""
        if not isinstance(data, dict):
            return data
        judge, pairs = data.get("judge"), data.get("pairs", {})
        kind = JUDGES.get(str(judge.get("kind"))) if isinstance(judge, dict) else None
        if kind is None or kind.asks_questions or not isinstance(pairs, dict) or "preference" in pairs:
            return data
        return data | {"pairs": pairs | {"preference": kind.preference}}

    @model_validator(mode="before")
    @classmethod
    def _give_instruction_to_reward_models(cls, data: Any) -> Any:
        """A reward model reads the policy's own conversation, unless its settings have another instruction."""
        if not isinstance(data, dict) or not isinstance(policy := data.get("policy"), dict):
            return data
        instruction = policy.get("instruction", PolicySettings.model_fields["instruction"].default)
        given = {name: _with_instruction(data[name], instruction) for name in ("judge", "second_judge") if name in data}
        return data | given

    @model_validator(mode="after")
    def _check_preference(self) -> "Config":
        preference, kind = self.pairs.preference, JUDGES.get(self.judge.kind)
        if kind and not kind.asks_questions and preference in PREFERENCES and preference != kind.preference:
            why = "has no value of its own" if self.judge.kind == "jury" else "asks no questions"
            raise ValueError(
                f"pairs.preference is {preference}, and judge.kind is {self.judge.kind}, which {why}: remove it, or "
                f"set it to {kind.preference}"
            )
        if self.pairs.min_standard_errors and self.judge.kind in ("jury", "reward"):
            why = "whose members have scales of their own" if self.judge.kind == "jury" else "whose score has no parts"
            raise ValueError(
                f"pairs.min_standard_errors is set, and judge.kind is {self.judge.kind}, {why}: use pairs.min_margin"
            )
        if preference == "majority_vote" and self.judge.kind != "jury":
            raise ValueError(
                f"pairs.preference is majority_vote, which counts the votes of a jury, and judge.kind is "
                f"{self.judge.kind}: remove it"
            )
        return self

    @model_validator(mode="after")
    def _check_questions(self) -> "Config":
        for name, judge in self.judges.items():
            skips = name.startswith("judge")
            consequence = "every article would be skipped" if skips else "no article would get a second opinion"
            consequence = "it would never vote" if ".members." in name else consequence
            asks = judge.asks_questions is not False
            if asks and self.questions.min_questions > judge.questions:
                raise ValueError(
                    f"questions.min_questions is {self.questions.min_questions} and {name}.questions is only "
                    f"{judge.questions}: {consequence}"
                )
            draft = self.questions.draft
            if asks and draft is not None and draft < judge.questions:
                raise ValueError(
                    f"questions.draft is {draft} and {name}.questions is {judge.questions}, which are kept of those "
                    "that are drafted: raise questions.draft, or remove it"
                )
        if self.judge.asks_questions is not False:
            for check in self.questions.more_checks:
                if refusal := refusal_of_check(check, self.judge):
                    raise ValueError(f"questions.more_checks has {check}, and {refusal}: remove it")
        asking = [judge for judge in self.judges.values() if judge.asks_questions is not False]
        for check in self.questions.more_checks:
            if all(refusal_of_check(check, judge) for judge in asking):
                who = "no judge can do it" if asking else "no judge asks questions"
                raise ValueError(
                    f"questions.more_checks has {check}, and {who}: remove it (on the command line "
                    "questions.more_checks=[])"
                )
        if self.questions.draft is not None and not asking:
            raise ValueError(
                f"questions.draft is {self.questions.draft}, and no judge asks questions: remove it (on the command "
                "line questions.draft=null)"
            )
        return self

    @model_validator(mode="after")
    def _check_settings_of_rules(self) -> "Config":
        """Refuse a setting of `pairs` that only other preferences read. A function of the user's may read any."""
        pairs = self.pairs
        if pairs.preference not in PREFERENCES:
            return self
        if pairs.min_margin and pairs.preference not in ("higher_score", "majority_vote"):
            raise ValueError(
                f"pairs.min_margin is {pairs.min_margin:g}, and pairs.preference is {pairs.preference}, which has no "
                "margin: set it to 0, or use pairs.preference=higher_score"
            )
        if pairs.min_margin >= 1 and pairs.preference == "majority_vote":
            raise ValueError(
                f"pairs.min_margin is {pairs.min_margin:g}, and pairs.preference is majority_vote: no lead is larger "
                "than 1, so no summary could win. Set it to a share of the weights, such as 0 or 0.5"
            )
        if self.judge.asks_questions is False:
            for name in ("threshold", "min_word_gap", "max_length_ratio"):
                value, default = getattr(pairs, name), Pairs.model_fields[name].default
                if value != default:
                    raise ValueError(
                        f"pairs.{name} is {value}, and pairs.preference is {pairs.preference}, which does not use it: "
                        f"remove it (on the command line pairs.{name}={default})"
                    )
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
        if not self.judge.is_user_class and self.judge.kind != "mcq":
            raise ValueError(
                f"pairs.weighting is margin, which needs the probabilities of answers, and judge.kind is "
                f"{self.judge.kind}, which has none: set pairs.weighting to none"
            )
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
        trainer = self.hardware.trainer
        check_router_loss(self.training, trainer.torch_compile)
        check_4bit(self.training, self.references, trainer.workers, trainer.cpu_offload)
        return self

    @model_validator(mode="after")
    def _check_servers(self) -> "Config":
        check_served_models(
            {f"{name}.served": judge.served for name, judge in self.judges.items() if judge.served},
            self.compare,
            self.hardware,
            # A first judge without a model of its own runs on hardware.judge too.
            has_local_judge=any(
                not judge.served and (judge.model or name.startswith("judge")) for name, judge in self.judges.items()
            ),
        )
        return self

    @model_validator(mode="after")
    def _check_prompt_room(self) -> "Config":
        limit, thinking = self.policy.max_model_len, self.policy.thinking
        budget = thinking.budget if thinking else 0
        for name, max_tokens in (("summaries", self.summaries.max_tokens), ("evaluation", self.evaluation.max_tokens)):
            if limit is not None and max_tokens + budget >= limit:
                thought, lower = "", f"{name}.max_tokens"
                if budget:
                    thought, lower = f", policy.thinking.budget is {budget}", f"{lower} or policy.thinking.budget"
                raise ValueError(
                    f"{name}.max_tokens is {max_tokens}{thought} and policy.max_model_len is {limit}: no room is left "
                    f"for the prompt. Lower {lower}, or raise policy.max_model_len"
                )
        return self

    @model_validator(mode="after")
    def _check_merge_system(self) -> "Config":
        read_instruction(self.policy.instruction, "policy.instruction", self.policy.merge_system)
        return self

    @model_validator(mode="after")
    def _check_loss_on(self) -> "Config":
        if self.training.loss_on == "answer" and not (self.policy.thinking and self.policy.thinking.budget):
            raise ValueError(
                "training.loss_on is answer, which leaves out thoughts, and the policy does not think: remove it, or "
                "set policy.thinking"
            )
        return self

    @property
    def locations(self) -> dict[str, str]:
        """The paths, URIs and hub names in these settings, by the names of their settings."""
        models = {
            f"{name}.model": judge.model for name, judge in self.judges.items() if judge.model and not judge.served
        }
        return {"run": self.run, "articles.path": self.articles.path, "policy.model": self.policy.model} | models

    @model_validator(mode="after")
    def _check_locations(self) -> "Config":
        check_locations(self.locations)
        return self


def _count_local_models(judge: JudgeSettings) -> int:
    """The number of members of a jury whose models run here."""
    return sum(1 for member in judge.members.values() if member.model and not member.served)


def _with_instruction(judge: Any, instruction: Any) -> Any:
    """The raw settings of a judge, with the policy's instruction for each reward model that has none."""
    if not isinstance(judge, dict):
        return judge
    if judge.get("kind") == "reward" and isinstance(own := judge.get("settings") or {}, dict):
        return judge | {"settings": {"instruction": instruction} | own}
    if isinstance(members := judge.get("members"), dict):
        return judge | {"members": {name: _with_instruction(each, instruction) for name, each in members.items()}}
    return judge


class Alignment(Settings):
    """All settings of a training on preference pairs from elsewhere, without rounds.

    `rondo train` and `pipeline.align` take these settings.
    """

    run: Location  # the run folder, a path or a URI
    seed: Natural = 0  # of the order of the pairs, and of which are held out
    # A file by path or URI, or `hf:OWNER/NAME/CONFIG:SPLIT`. `data/preference_formats.py` lists the known columns.
    pairs: Location
    max_skipped: Share = 0.5  # largest share of rows skipped in that file; a larger one ends the run
    policy: PolicySettings
    references: References = References()
    training: Training = Training()
    report_to: tuple[Logger, ...] = ()  # trackers that get the metrics, which metrics.jsonl always has
    hardware: Hardware = Hardware()

    @property
    def locations(self) -> dict[str, str]:
        """The paths, URIs and hub names in these settings, by the names of their settings."""
        return {"run": self.run, "pairs": self.pairs, "policy.model": self.policy.model}

    @model_validator(mode="after")
    def _check_alignment(self) -> "Alignment":
        if self.policy.instruction != PolicySettings.model_fields["instruction"].default:
            raise ValueError("policy.instruction is set, but these pairs have their own prompts: remove it")
        if self.policy.thinking is not None or self.training.loss_on != "sequence":
            name = "policy.thinking" if self.policy.thinking is not None else "training.loss_on"
            raise ValueError(f"{name} is set, but `rondo train` samples no summaries, so no model thinks: remove it")
        if self.policy.engine_kwargs:
            raise ValueError("policy.engine_kwargs is set, but `rondo train` samples no summaries: remove it")
        if self.references.source == "sampler":
            raise ValueError(
                "references.source is sampler, but `rondo train` samples no summaries: set it to trainer or none"
            )
        check_references(self.references, self.training)
        trainer = self.hardware.trainer
        check_router_loss(self.training, trainer.torch_compile)
        check_4bit(self.training, self.references, trainer.workers, trainer.cpu_offload)
        check_locations(self.locations)
        return self

"""Settings of judges, questions, scores and pairs: everything that decides which of two summaries is preferred."""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from judges.mcq.languages import LANGUAGES
from judges.prompts import WORDINGS
from pipeline.config.base import Dtype, EngineKwargs, Location, Natural, Positive, Settings, Share, Thinking
from pipeline.config.servers import ServedModel

USER_CODE = r"[\w.]+:\w+"  # module:name of the user's own code
MoreCheck = Literal["single_key", "important", "no_overlap"]
PREFERENCES = {  # in a sentence, with the settings of `pairs` that it uses
    "accuracy_then_length": "More right answers win. If both have {threshold} or more, the one that is at least "
    "{min_word_gap} words shorter wins.",
    "accuracy_only": "More right answers win, at any length.",
    "length_matched": "More right answers win; it is a tie if one has more than {max_length_ratio:g} times the words.",
    "accuracy_then_any_length": "More right answers win, but {threshold} or more count alike; then fewer words win.",
    "higher_score": "The higher score wins. A difference of up to {min_margin:g} is a tie.",
    "majority_vote": "The one for which more of the jury votes wins.",
}


@dataclass(frozen=True)
class JudgeKind:
    """What a built-in kind of judge needs.

    Attributes:
        asks_questions: it asks questions about articles, and its score is the number of right answers. Otherwise it
            gives scores of its own (`judges.base.ScoringJudge`).
        needs_model: it needs `judge.model`. A kind that needs none refuses one.
        served: its model may run at a server.
        has_prompts: the settings of prompts (`wording` and the like) are for it.
        compares: it compares summaries with each other (`judges.base.ComparingJudge`).
        preference: the default of `pairs.preference`. For a judge that asks no questions it is the only one, beside
            functions of yours.
    """

    asks_questions: bool
    needs_model: bool
    served: bool = False
    has_prompts: bool = False
    compares: bool = False
    preference: str = "higher_score"


JUDGES = {
    "mcq": JudgeKind(True, needs_model=True, served=True, has_prompts=True, preference="accuracy_then_length"),
    "cloze": JudgeKind(True, needs_model=False, preference="accuracy_then_length"),
    "likelihood": JudgeKind(False, needs_model=True),
    "rubric": JudgeKind(False, needs_model=True, served=True),
    "pairwise": JudgeKind(False, needs_model=True, served=True, compares=True),
    "reward": JudgeKind(False, needs_model=True),
    "verifiable": JudgeKind(False, needs_model=False),
    "jury": JudgeKind(False, needs_model=False, preference="majority_vote"),
}


_OF_MODEL = ("dtype", "max_model_len", "thinking", "engine_kwargs")  # settings without effect where no model is asked


class JudgeSettings(Settings):
    """The judge, which asks questions about articles and answers them from summaries, or gives scores."""

    # mcq: an LLM writes and answers multiple-choice questions. cloze: blanks out what matters, without a model.
    # likelihood: a small LM measures how likely a summary is after its article, and how much of it the summary covers.
    # rubric: an LLM rates summaries by criteria. pairwise: an LLM compares two summaries, in both orders.
    # reward: a sequence-classification model gives a number. verifiable: a function of yours does.
    # jury: several judges vote, see `members`.
    # module:Class: a judge of yours, see `judges.base.Judge` and `judges.base.ScoringJudge`.
    kind: str = "mcq"
    # Keyword arguments of the judge's class, a built-in one or yours; mcq has settings of its own below instead.
    settings: dict[str, Any] = Field(default_factory=dict)
    model: Location | None = None  # None: for kinds that need no model
    served: ServedModel | None = None  # None: vLLM runs the model here
    dtype: Dtype = "bfloat16"  # of the model, where vLLM runs it here
    max_model_len: Positive | None = None  # longest prompt and reply together, in tokens; None: the model's limit
    thinking: Thinking | None = None  # whether it thinks before each reply; None: it does not
    # Further arguments for vLLM that may change its replies, by vLLM's own names, such as {quantization: fp8}.
    # Arguments that change the speed only are in hardware.judge.engine_kwargs.
    engine_kwargs: EngineKwargs = Field(default_factory=dict)
    wording: str = "plain"  # the prompts of mcq, by their name in `judges/prompts.py`
    # The language of mcq's questions and options, by its ISO 639-1 code. auto: that of each article.
    language: str = "auto"
    # Replaces the prompt of the wording that asks for questions. It has {article}, and may have {count}, {choices} (the
    # number of options), {wrong} (the form of the wrong options) and {language} (its name in English).
    questions_prompt: str | None = None
    # Replaces the prompt that asks for answers. It has {questions} and {passage}, and may have {count} and {language}.
    answers_prompt: str | None = None
    questions: Positive = 5  # questions about an article
    options: Annotated[int, Field(ge=2, le=10)] = 5  # options of a question, without "unsure"
    question_temperature: Annotated[float, Field(ge=0)] = 0.0  # at which the questions are sampled; 0: greedily
    # Keep the log-probability of each answer, and a soft score beside the count. About a tenth slower.
    logprobs: bool = False
    # The judges of a jury by a name of your choice, each with settings as here and a weight.
    members: dict[str, "JuryMember"] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """What records and reports call the judge."""
        if self.kind == "mcq":
            return str(self.model)
        if self.kind == "jury":
            return f"jury of {', '.join(f'{name} ({member.name})' for name, member in self.members.items())}"
        if self.kind == "verifiable":
            return str(self.function)
        return f"{self.kind} with {self.model}" if self.model else self.kind

    @property
    def is_user_class(self) -> bool:
        return self.kind not in JUDGES

    @property
    def asks_questions(self) -> bool | None:
        """Whether it is a built-in judge that asks questions; None for a class of yours, whose methods decide."""
        return None if self.is_user_class else JUDGES[self.kind].asks_questions

    @property
    def function(self) -> str | None:
        """The function of a verifiable judge, as `module:function`."""
        return self.settings.get("function") if self.kind == "verifiable" else None

    def single_judges(self, section: str) -> "dict[str, JudgeSettings]":
        """The settings of the judge, or of each member of a jury, by the name of their section."""
        if self.kind != "jury":
            return {section: self}
        return {f"{section}.members.{name}": member for name, member in self.members.items()}

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
        kind = JUDGES.get(self.kind)
        if kind and kind.needs_model and not self.model:
            raise ValueError(
                f"judge.kind is {self.kind} and judge.model is missing: name a model, or use judge.kind=cloze"
            )
        if self.kind == "jury" and (self.model or self.served):
            raise ValueError(
                "judge.kind is jury, whose members have the models, and judge.model or judge.served is set: remove it"
            )
        if kind and not kind.needs_model and self.model:
            raise ValueError(
                f"judge.kind is {self.kind}, which needs no model, and judge.model is set: remove one of them"
            )
        if self.served and (self.dtype != "bfloat16" or self.max_model_len):
            raise ValueError(
                "judge.served is set, and its server decides dtype and max_model_len: remove them (on the command line "
                "judge.dtype=bfloat16 judge.max_model_len=null)"
            )
        if self.served:
            self._refuse("engine_kwargs", why="judge.served is set, whose server has its own engine: remove it")
        if kind and not kind.needs_model and self.served:
            raise ValueError(
                f"judge.kind is {self.kind}, which needs no model, and judge.served is set: remove one of them"
            )
        if kind and self.served and not kind.served:
            raise ValueError(
                f"judge.kind is {self.kind}, whose model runs here and not at a server: remove judge.served"
            )
        if self.served and not self.model:
            raise ValueError("judge.served is set and judge.model is missing: set the name that the server has for it")
        if self.logprobs and self.kind != "mcq" and kind:
            why = "which is always sure" if self.kind == "cloze" else "which answers no questions"
            why = "whose members have this setting" if self.kind == "jury" else why
            raise ValueError(f"judge.logprobs is true, and judge.kind is {self.kind}, {why}: remove it")
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
        prompts = ("wording", "language", "questions_prompt", "answers_prompt", "question_temperature")
        if self.kind == "jury":
            members = "judge.kind is jury, whose members have this setting: set it in judge.members"
            self._refuse(*prompts, *_OF_MODEL, "questions", "options", why=members)
        if kind := JUDGES.get(self.kind):
            if not kind.has_prompts:
                does = "makes its own prompts" if kind.needs_model else "asks no model"
                self._refuse(*prompts, why=f"judge.kind is {self.kind}, which {does}: remove it")
            if not kind.needs_model:
                self._refuse(*_OF_MODEL, why=f"judge.kind is {self.kind}, which asks no model: remove it")
            if not kind.served:
                self._refuse(
                    "thinking", "engine_kwargs", why=f"judge.kind is {self.kind}, which writes no text: remove it"
                )
            if not kind.asks_questions:
                self._refuse(
                    "questions", "options", why=f"judge.kind is {self.kind}, which asks no questions: remove it"
                )
            if self.kind in ("mcq", "jury") and self.settings:
                raise ValueError(
                    f"judge.settings is for other kinds of judges, and judge.kind is {self.kind}, which has no such "
                    f"settings ({', '.join(self.settings)}): remove it"
                )
            return self
        why = "a class of yours that makes its own prompts: remove it, or give the class such a setting"
        self._refuse(*prompts, why=f"judge.kind is {self.kind}, {why} under judge.settings")
        if not self.model:
            self._refuse(*_OF_MODEL, why="judge.model is not: name a model, or remove it")
        return self

    def _refuse(self, *names: str, why: str) -> None:
        for name in names:
            default = JudgeSettings.model_fields[name].get_default(call_default_factory=True)
            if getattr(self, name) != default:
                written = "null" if default is None else default
                raise ValueError(f"judge.{name} is set, and {why} (on the command line judge.{name}={written})")

    @field_validator("language")
    @classmethod
    def _is_a_language(cls, value: str) -> str:
        if value != "auto" and value not in LANGUAGES:
            close = [code for code, name in LANGUAGES.items() if name.casefold() == value.casefold()]
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(
                f"judge.language is {value!r}{hint}: it should be auto or the ISO 639-1 code of a language, such as de"
            )
        return value

    @model_validator(mode="after")
    def _has_its_function(self) -> "JudgeSettings":
        if self.kind != "verifiable":
            return self
        if other := sorted(self.settings.keys() - {"function"}):
            raise ValueError(f"judge.settings has no {other[0]!r}: judge.kind is verifiable, which has only function")
        if not re.fullmatch(USER_CODE, str(self.function)):
            raise ValueError(
                f"judge.kind is verifiable and judge.settings.function is {self.function!r}: it should be "
                "module:function of your own"
            )
        return self

    @model_validator(mode="after")
    def _has_its_members(self) -> "JudgeSettings":
        if self.kind != "jury" and self.members:
            raise ValueError(f"judge.members is set, and judge.kind is {self.kind}: set it to jury, or remove members")
        if self.kind == "jury" and len(self.members) < 2:
            raise ValueError(
                f"judge.kind is jury and judge.members has {', '.join(self.members) or 'none'}: name two judges or more"
            )
        for name, member in self.members.items():
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"judge.members has {name!r}: a name should consist of letters, digits, - and _")
            if member.kind == "jury":
                raise ValueError(f"judge.members.{name}.kind is jury: name its members here instead")
        return self

    @model_validator(mode="after")
    def _has_complete_prompts(self) -> "JudgeSettings":
        for name, places in (("questions_prompt", ("{article}",)), ("answers_prompt", ("{questions}", "{passage}"))):
            if (prompt := getattr(self, name)) is None:
                continue
            if missing := [place for place in places if place not in prompt]:
                raise ValueError(f"judge.{name} must say where these go: {', '.join(missing)}")
        if self.wording not in WORDINGS:
            raise ValueError(f"judge.wording is {self.wording!r}; there are {', '.join(WORDINGS)}")
        if self.language != "auto" and WORDINGS[self.wording].restate:
            raise ValueError(
                f"judge.language is {self.language}, and judge.wording is {self.wording}, which its model learned in "
                "one language: remove judge.language"
            )
        return self


class JuryMember(JudgeSettings):
    """A judge of a jury."""

    weight: Annotated[float, Field(gt=0)] = 1.0  # of its vote


JudgeSettings.model_rebuild()


class Questions(Settings):
    """Which questions are used, and how many an article needs."""

    min_questions: Positive = 4  # an article with fewer good questions is skipped
    check: bool = True  # keep only questions that the judge answers correctly with the article and not without it
    # Further checks, each off unless it is listed.
    # single_key: without the right option, the judge answers "unsure" from the whole article. Otherwise another option
    #   fits too. One more reply per article; a judge of yours may do it, cloze may not.
    # important: the judge rates the questions, and those about details are dropped. One more reply per article; only
    #   for mcq.
    # no_overlap: no two questions ask for the same, and none gives away the answer to another. No reply.
    # A second judge that cannot do a check leaves it out.
    more_checks: tuple[MoreCheck, ...] = ()
    # Ask for this many questions and keep the best `judge.questions` of them: the most important ones if `important` is
    # checked, else the first. None: ask for no more than are kept.
    draft: Positive | None = None
    max_skipped: Share = 0.5  # largest share of articles skipped; a larger one ends the run

    @field_validator("more_checks")
    @classmethod
    def _in_one_order(cls, value: tuple[MoreCheck, ...]) -> tuple[MoreCheck, ...]:
        return tuple(sorted(set(value)))

    def drafting(self, judge: JudgeSettings) -> JudgeSettings:
        """The settings of a judge that asks as many questions as are drafted."""
        return judge if self.draft is None else judge.model_copy(update={"questions": self.draft})

    def for_judge(self, judge: JudgeSettings) -> "Questions":
        """These settings without the further checks that a judge cannot do."""
        possible = tuple(name for name in self.more_checks if not refusal_of_check(name, judge))
        return self.model_copy(update={"more_checks": possible})


def refusal_of_check(check: str, judge: JudgeSettings) -> str | None:
    """Why a judge cannot do one of `Questions.more_checks`; None if it can."""
    if check == "single_key" and judge.kind == "cloze":
        return "judge.kind is cloze, which looks for words and so finds every option that the article has"
    if check == "single_key" and judge.options < 3:
        return f"judge.options is {judge.options}: no two options are left without the right one"
    if check == "important" and (judge.kind != "mcq" or WORDINGS[judge.wording].restate):
        kind = f"wording is {judge.wording}" if judge.kind == "mcq" else f"kind is {judge.kind}"
        return f"judge.{kind}, which cannot rate questions"
    return None


class Scores(Settings):
    """How summaries are scored."""

    max_unread: Share = 0.1  # largest share of answers that could not be parsed; a larger one ends the run
    # Before the first training: the share of pairs whose winner another set of as many questions would pick as well
    # (0.5: a coin; 0.6: a reliability of about 0.3). If the share's whole interval lies below it, the run stops. None:
    # it never stops.
    min_same_winner: Annotated[float, Field(ge=0.5, le=1)] | None = 0.6


class Pairs(Settings):
    """Which of two summaries is preferred, and which pairs of an article are trained on."""

    # The default is accuracy_then_length, higher_score for a judge that gives scores and asks no questions, and
    # majority_vote for a jury.
    # accuracy_then_length: if both have `threshold` right answers or more, the shorter wins; else more right wins.
    # accuracy_only: more right wins.
    # length_matched: more right wins, among summaries of about equal length; all others tie.
    # higher_score: the higher value of the judge wins.
    # majority_vote: the members of a jury vote for the higher value of their own.
    # accuracy_then_any_length: as accuracy_then_length, but without min_word_gap, and fewer words break ties below
    # `threshold` too.
    # module:function: the user's own function.
    preference: str = "accuracy_then_length"
    threshold: Natural = 3  # right answers
    min_word_gap: Positive = 3  # accuracy_then_length: the shorter must be shorter by this many words
    # higher_score: the difference in value must be larger than this. majority_vote: the winner's lead, as a share of
    # the weights that vote, must be larger.
    min_margin: Annotated[float, Field(ge=0)] = 0.0
    # A pair that the score decides needs a difference of this many of its own standard errors, by the questions (items)
    # that differ. 0: any difference is enough. 1 to 2 drops the pairs that may be chance.
    min_standard_errors: Annotated[float, Field(ge=0)] = 0.0
    max_length_ratio: Annotated[float, Field(ge=1)] = 1.2  # length_matched: words of the longer by those of the shorter
    min_words: Natural = 5  # a shorter summary is never paired
    max_words: Positive = 200  # a summary of this many words or more is never paired
    # Limits of faults (`judging/scoring/text_faults.py`). A summary beyond one of them is never chosen, and wins no
    # comparison. None: no limit.
    max_repeated: Share | None = None  # largest share of a summary's words that it said before
    max_copied: Share | None = None  # largest share of its 8-grams that are the article's
    max_lead_copied: Share | None = None  # largest share of its 8-grams that are the article's first sentences'
    max_off_topic_end: Share | None = None  # largest share of its last sentence's content that the article lacks
    same_language: bool = False  # a summary that is surely in another language than its article has a fault
    # never: a summary beyond a limit is in no pair. rejected: it is rejected against a summary within the limits, also
    # if the preference calls them a tie; if it prefers the one with the fault, they make no pair.
    faulty: Literal["never", "rejected"] = "never"
    # A summary that the token limit cut off is never chosen. never: it is in no pair. rejected: it is rejected against
    # a finished one, unless the preference prefers it. This teaches a policy to come to an end that often does not.
    cut_off: Literal["never", "rejected"] = "never"
    # Largest share of 8-grams that the chosen may have from the article beyond the rejected's own share. Without a
    # limit a judge that likes safe sentences teaches copying. None: no limit.
    max_copied_gap: Share | None = None
    # random: up to max_per_article pairs. best_worst: one pair. widest_margin: up to max_per_article pairs, those with
    # the largest differences. all: every pair that is not a tie; together they weigh as much as one pair.
    selection: Literal["random", "best_worst", "widest_margin", "all"] = "random"
    max_per_article: Positive = 3  # most pairs of an article
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

    @property
    def limits_faults(self) -> bool:
        """Whether some summaries can be beyond a limit of faults."""
        limits = (self.max_repeated, self.max_copied, self.max_lead_copied, self.max_off_topic_end)
        return self.same_language or any(limit is not None for limit in limits)

    def describe_preference(self) -> str:
        """Which of two summaries wins, in a few sentences."""
        sentence = PREFERENCES.get(self.preference, f"The author's own function decides: {self.preference}.")
        faults = ", or with a fault beyond a limit" if self.limits_faults else ""
        return f"{sentence.format(**self.model_dump())} One that the token limit cut off{faults} never wins."

    @model_validator(mode="after")
    def _check_faulty(self) -> "Pairs":
        if self.faulty == "rejected" and not self.limits_faults:
            raise ValueError(
                "pairs.faulty is rejected, and no setting says what a fault is: set pairs.max_repeated, "
                "pairs.max_copied, pairs.max_lead_copied, pairs.max_off_topic_end or pairs.same_language, or remove it"
            )
        return self

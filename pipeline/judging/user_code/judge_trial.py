"""Tries the user's own judge class on one small article, without a model, before anything starts."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from judges.base import LETTERS, UNSURE, Judgement, Prompt, Question, Sample, Skip, vet
from judges.verifiable import RETURNS, VerifiableJudge, read_result
from pipeline.config import UserError
from pipeline.config.judging import JudgeSettings
from pipeline.config.messages import one_line
from pipeline.judging.factory import asks_questions, make_judge, reply_method

_ARTICLE = (
    "Ana Santos leads Northwind. The firm hired 93 people in Lima last year. Ben Costa left Bluepeak for Harbor Bank. "
    "Carla Weber spoke in Oslo about 12 new schools. Dan Okafor paid 400 workers of Ironwood. Eva Rossi saw 45 cars in "
    "Rome. Farid Khan bought 7 boats from Marlow. Grace Xu met 61 pilots in Quito, and Hugo Lopez met 88 in Cairo."
)
_ODD_REPLIES = ("", "?\n\n\tnonsense | A")
_OPTIONS = ("Oslo", "Lima", "Rome", "Quito", "Cairo", "Delhi", "Accra", "Hanoi", "Perth", "Dakar")


def check_judge(settings: JudgeSettings | None, seed: int, section: str = "judge") -> None:
    """Make the judge that the settings name. If it is of the user's own class, call each of its methods.

    A judge that writes its own replies goes all the way from an article to answers. Any other judge only makes prompts,
    and must parse replies that make no sense.

    Args:
        settings: the settings of the judge or of a jury; None: there is no such judge.
        seed: decides the order of the options.
        section: `judge` or `second_judge`, for messages.

    Raises:
        UserError: the judge cannot be made or sent to Ray workers, or a method fails or returns a value that
            `judges.base.Judge` or `judges.base.ScoringJudge` does not allow.
    """
    if settings is None:
        return
    for name, single in settings.single_judges(section).items():
        judge = make_judge(single, seed, name)
        if single.is_user_class:
            _Trial(judge, single, name).run()
        if single.kind == "verifiable":
            _try_function(judge, f"{name}.settings.function is {single.function}")


def _try_function(judge: VerifiableJudge, subject: str) -> None:
    """Call the user's function with an article and a summary of it, and with an empty summary."""
    from ray import cloudpickle

    try:
        cloudpickle.loads(cloudpickle.dumps(judge))
    except Exception as error:  # pickling runs code of the user's
        raise UserError(f"{subject}, which cannot be sent to Ray workers: {one_line(error)}") from None
    for summary in (_ARTICLE[:47], ""):
        call = f"{subject}, and function(article, {summary[:24]!r})"
        try:
            result = judge.function(_ARTICLE, summary)
        except Exception as error:
            raise UserError(f"{call} fails: {type(error).__name__}: {one_line(error)}; {RETURNS}") from None
        if read_result(result).value is None:
            raise UserError(f"{call} returns {result!r:.80}: {RETURNS}")


class _Trial:
    """Calls the methods of one judge. A fault is a UserError that names the method."""

    def __init__(self, judge: Any, settings: JudgeSettings, section: str):
        self.judge, self.settings, self.section = judge, settings, section

    def run(self) -> None:
        self._check_pickle()
        if asks_questions(self.judge):
            self._try_exam()
        else:
            if self.settings.logprobs:
                raise UserError(
                    f"{self.section}.logprobs is true, and {self.section}.kind is {self.settings.kind}, which gives "
                    "scores and answers no questions: set it to false"
                )
            self._try_scoring()

    def _try_scoring(self) -> None:
        reply = None if self.settings.model else reply_method(self.judge)
        for article, summaries in (
            (_ARTICLE, [_ARTICLE[:47], "Hugo Lopez met pilots."]),
            (_ARTICLE, [""]),
            ("", ["a"]),
        ):
            self._try_scores(article, summaries, reply)
            if getattr(self.judge, "compares", False):
                self._try_scores(article, summaries, reply, anchor=_ARTICLE[:20])

    def _try_scores(
        self, article: str, summaries: Sequence[str], reply: Callable[[Prompt, int], str] | None, **anchor: str
    ) -> None:
        prompts = self._call("ask_scores", partial(self.judge.ask_scores, **anchor), article, summaries)
        for prompt in prompts:
            self._check_prompt("ask_scores", prompt)
        attempts: list[list[list[str]]] = [[[odd] for _ in prompts] for odd in _ODD_REPLIES]
        attempts.append([[] for _ in prompts])  # the engine gave no replies
        if reply is not None:
            attempts.append([[self._reply(reply, prompt)] for prompt in prompts])
        for texts in attempts:
            samples = [[Sample(text, [], "stop") for text in of_prompt] for of_prompt in texts]
            self._read_scores(article, summaries, samples, **anchor)
            if getattr(self.judge, "compares", False):
                self._count_places(article, summaries, samples, **anchor)

    def _count_places(
        self, article: str, summaries: Sequence[str], replies: Sequence[Sequence[Sample]], **anchor: str
    ) -> None:
        count_places = partial(self.judge.count_places, **anchor)
        counts = self._call("count_places", count_places, article, summaries, replies)
        if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
            raise self._fault(f"count_places returned {counts!r:.80}, and should return whole numbers by name")

    def _read_scores(
        self, article: str, summaries: Sequence[str], replies: Sequence[Sequence[Sample]], **anchor: str
    ) -> None:
        read_scores = partial(self.judge.read_scores, **anchor)
        judgements = self._call("read_scores", read_scores, article, summaries, replies)
        if not isinstance(judgements, list) or len(judgements) != len(summaries):
            raise self._fault(
                f"read_scores returned {judgements!r:.80} for {len(summaries)} summaries, and should return a list "
                "with one judges.base.Judgement for each"
            )
        for judgement in judgements:
            if not isinstance(judgement, Judgement) or not all(
                value is None or (type(value) in (int, float) and math.isfinite(value))
                for value in (judgement.value, *judgement.items)
            ):
                raise self._fault(
                    f"read_scores returned {judgement!r:.80}: it should be a judges.base.Judgement of finite numbers, "
                    "with None for what cannot be read"
                )

    def _try_exam(self) -> None:
        ask = self._ask_questions(_ARTICLE)
        self._ask_questions("")
        for odd_reply in _ODD_REPLIES:
            self._read_questions(odd_reply)
        reply = None if self.settings.model else reply_method(self.judge)
        if reply is None:
            options = _OPTIONS[: self.settings.options]
            questions = [Question(f"trial-{i}", f"Where did plan {i} begin?", options, i) for i in range(2)]
        else:
            questions = self._read_questions(self._reply(reply, ask))
        for asked in (questions, []):
            for passage in (_ARTICLE, ""):
                prompt = self._ask_answers(passage, asked)
                if reply is not None and asked:
                    self._read_answers(self._reply(reply, prompt), asked)
            for odd_reply in _ODD_REPLIES:
                self._read_answers(odd_reply, asked)

    def _check_pickle(self) -> None:
        from ray import cloudpickle

        try:
            cloudpickle.loads(cloudpickle.dumps(self.judge))
        except Exception as error:  # pickling runs code of the user's
            raise self._fault(f"cannot be sent to Ray workers: {type(error).__name__}: {error}") from None

    def _ask_questions(self, article: str) -> Prompt:
        return self._check_prompt("ask_questions", self._call("ask_questions", self.judge.ask_questions, article))

    def _ask_answers(self, passage: str, questions: Sequence[Question]) -> Prompt:
        prompt = self._call("ask_answers", self.judge.ask_answers, passage, questions)
        self._check_prompt("ask_answers", prompt)
        if self.settings.logprobs and not prompt.logprobs:
            raise self._fault(
                f"ask_answers returned a prompt without logprobs=True, and {self.section}.logprobs is true"
            )
        return prompt

    def _check_prompt(self, method: str, prompt: Any) -> Prompt:
        if not isinstance(prompt, Prompt):
            raise self._fault(f"{method} returned {prompt!r:.80}, and should return a judges.base.Prompt")
        if not _are_messages(prompt.messages):
            raise self._fault(
                f"{method} returned a prompt with messages {prompt.messages!r:.80}: messages should be chat messages, "
                "such as judges.base.user(text) makes"
            )
        if prompt.n != 1:
            raise self._fault(f"{method} returned a prompt with n={prompt.n}: a judge reads one sample, so set n=1")
        return prompt

    def _reply(self, reply: Callable[[Prompt, int], str], prompt: Prompt) -> str:
        text = self._call("reply", reply, prompt, 0)
        if not isinstance(text, str):
            raise self._fault(f"reply returned {text!r:.80}, and should return text")
        if len(text) >= prompt.max_tokens:  # of the scripted engine, a character is a token, and one more ends the text
            raise self._fault(
                f"reply returned {len(text):,} characters, and the prompt's max_tokens is {prompt.max_tokens:,}: "
                "without a model each character counts as a token, so set a higher max_tokens"
            )
        return text

    def _read_questions(self, reply: str) -> list[Question]:
        """Return the questions that the judge reads, as they come back from a table."""
        read = self._call("read_questions", self.judge.read_questions, reply)
        if not isinstance(read, list) or not all(isinstance(item, Question | Skip) for item in read):
            raise self._fault(f"read_questions returned {read!r:.80}, and should return a list of Question and Skip")
        questions = [item for item in read if isinstance(item, Question)]
        for question in questions:
            if not _is_storable(question):
                raise self._fault(
                    f"read_questions returned {question!r:.160}: question_id and question should be text, options a "
                    "tuple of texts, and answer a whole number"
                )
        # `vet` drops malformed questions in a run, too.
        return [
            Question(item.question_id, item.question, tuple(item.options), item.answer)
            for item in vet(questions)
            if isinstance(item, Question)
        ]

    def _read_answers(self, reply: str, questions: Sequence[Question]) -> None:
        answers = self._call("read_answers", self.judge.read_answers, reply, questions)
        if not isinstance(answers, list) or len(answers) != len(questions):
            raise self._fault(
                f"read_answers returned {answers!r:.80} for {len(questions)} questions, and should return a list with "
                "one answer for each"
            )
        for answer, question in zip(answers, questions, strict=True):
            letters = LETTERS[: len(question.options)]
            if answer not in (None, UNSURE, *letters):
                raise self._fault(
                    f"read_answers returned {answer!r:.80} for a question with {len(letters)} options: it should be a "
                    f"letter from A to {letters[-1]}, {UNSURE!r}, or None for an answer that cannot be read"
                )

    def _call(self, name: str, method: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return method(*arguments)
        except Exception as error:  # whatever the user's code raises
            trial = f"the trial reply {arguments[0]!r:.40}" if name.startswith("read_") else "a trial"
            raise self._fault(f"{name} fails on {trial}: {type(error).__name__}: {error}") from None

    def _fault(self, what: str) -> UserError:
        return UserError(f"{self.section}.kind is {self.settings.kind}: {what}")


def _are_messages(messages: Any) -> bool:
    return (
        isinstance(messages, tuple)
        and bool(messages)
        and all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages)
    )


def _is_storable(question: Question) -> bool:
    """Return whether a question's fields have the types of the column `questions`."""
    options: Any = question.options
    return (
        isinstance(question.question_id, str)
        and isinstance(question.question, str)
        and isinstance(options, tuple)
        and all(isinstance(option, str) for option in options)
        and type(question.answer) is int
    )

"""Settings of `stop`: the rules that end a run before its last round.

`evaluation/stopping/rules.py` applies the rules.
"""

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.config.base import Natural, Positive, Settings, Share

PositiveFloat = Annotated[float, Field(gt=0)]


class Stop(Settings):
    """When a run ends before it has done all `rounds` rounds. A rule that is None is off.

    Every rule is checked after each round. Words and characters are those of the new policy's held-out summaries.
    """

    patience: Positive | None = None  # rounds in a row whose policy does not beat, by the strict rule, its start policy
    min_yield: Share | None = None  # smallest share of the judged articles that gives at least one pair
    # Largest KL divergence from the base of the policy that wrote the round's summaries: nats per summary, sampled at
    # temperature 1 and top_p 1, without top_k, min_p and repetition_penalty.
    max_kl: PositiveFloat | None = None
    min_words: Natural | None = None  # smallest median of words per summary
    max_words: Positive | None = None  # largest median of words per summary
    max_words_ratio: PositiveFloat | None = None  # largest median of words per summary, over the base's median
    max_invalid_chars: Share | None = None  # largest share of summaries that contain gibberish
    # Faults of the text, as `judging/scoring/text_faults.py` measures them. A base that copies much is no fault of
    # training, so there is a bound for the share of copied 8-grams and one for its rise.
    max_repeated: Share | None = None  # largest mean share of a summary's words that it said before
    max_copied: Share | None = None  # largest mean share of a summary's 8-grams that are its article's
    max_copied_rise: Share | None = None  # largest rise of this share over the base's. 0.05: by 5 percentage points
    max_lead_copied: Share | None = None  # largest mean share of 8-grams that are the article's first sentences'
    max_off_topic: Share | None = None  # largest share of summaries whose last sentence leaves the article's topic
    max_other_language: Share | None = None  # largest share of summaries that are in another language than the article

    @model_validator(mode="after")
    def _check_word_limits(self) -> "Stop":
        if self.min_words is not None and self.max_words is not None and self.min_words > self.max_words:
            raise ValueError(
                f"stop.min_words is {self.min_words} and stop.max_words is {self.max_words}: every policy would stop "
                "the run. Set min_words to at most max_words"
            )
        return self

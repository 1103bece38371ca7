"""Settings of `stop`: when rounds end before there are `rounds` of them."""

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.config.base import Natural, Positive, Settings, Share

Above0 = Annotated[float, Field(gt=0)]


class Stop(Settings):
    """When rounds end before there are `rounds` of them. Each None: that rule stops nothing.

    Every rule is asked after each round; words and characters are those of the new policy on held-out articles.
    """

    patience: Positive | None = None  # rounds in a row not shown to beat, by the strict rule, what they started from
    min_yield: Share | None = None  # share of the judged articles that give a pair
    max_kl: Above0 | None = None  # nats a summary, of the round's writer to the base; at temperature 1 and top_p 1
    min_words: Natural | None = None  # median
    max_words: Positive | None = None  # median
    max_words_ratio: Above0 | None = None  # median over the base's
    max_invalid_chars: Share | None = None  # share of summaries with gibberish

    @model_validator(mode="after")
    def _leaves_room(self) -> "Stop":
        if self.min_words is not None and self.max_words is not None and self.min_words > self.max_words:
            raise ValueError(
                f"stop.min_words is {self.min_words} and stop.max_words {self.max_words}: no policy could go on"
            )
        return self

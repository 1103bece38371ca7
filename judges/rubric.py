"""A judge with an LLM that rates each summary by criteria on a scale, in one short reply.

The default criteria are those by which people rated the summaries of SummEval (Fabbri et al. 2021, arXiv 2007.12626),
worded for a prompt as in G-Eval (Liu et al. 2023, arXiv 2303.16634). A regular expression constrains the reply, so
every complete reply can be parsed. The article comes first and the summary last: all summaries of an article share the
prefix in the engine's cache.
"""

import math
import re
from collections.abc import Mapping, Sequence

from judges.base import Judgement, Prompt, Sample, ScoringJudge, closing_tags, fill, untagged, user

CRITERIA = {
    "faithfulness": "every statement of the summary is supported by the article, and no fact is changed or added",
    "coverage": "the summary holds what matters most in the article, and leaves out what does not",
    "conciseness": "the summary says this in few words, without repeating anything",
    "fluency": "the summary is well-formed, complete text that reads well from its first to its last sentence",
}

PROMPT = """\
Read the article and rate a summary of it by each criterion, from {lowest} (worst) to {highest} (best):

{criteria}

<article>
{article}
</article>

<summary>
{summary}
</summary>

Write one line for each criterion: its name, then a whole number from {lowest} to {highest}. For example:
{example}"""

_TOKENS_PER_CRITERION = 40  # of a reply: room for a name in any script, and for marks around it in free replies


class RubricJudge(ScoringJudge):
    """Rates summaries by criteria. The value is the weighted mean of the ratings, each put on a scale from 0 to 1.

    Args:
        seed: not used: replies are greedy, and criteria have an order.
        criteria: what each criterion asks, by its name: letters, digits, - and _, without spaces.
        lowest, highest: the scale, in whole numbers.
        weights: of criteria in the value, by name. A criterion that is not in it weighs 1.
        prompt: replaces the prompt. It must have {article}, {summary} and {criteria}, and may have {lowest}, {highest}
            and {example}.

    Raises:
        ValueError: a setting cannot be used.
    """

    engine = "text"

    def __init__(
        self,
        seed: int = 0,
        criteria: dict | None = None,
        lowest: int = 1,
        highest: int = 5,
        weights: dict | None = None,
        prompt: str | None = None,
    ):
        self.criteria: dict[str, str] = dict(CRITERIA if criteria is None else criteria)
        self.lowest, self.highest, self.prompt = lowest, highest, prompt or PROMPT
        self.weights = dict.fromkeys(self.criteria, 1.0) | (weights or {})
        self._check(weights or {})
        self.tags = closing_tags(self.prompt)
        self.regex_of_rating = "|".join(map(str, range(self.lowest, self.highest + 1)))

    def _check(self, weights: Mapping[str, object]) -> None:
        if not self.criteria or not all(isinstance(text, str) and text.strip() for text in self.criteria.values()):
            raise ValueError("criteria should be a section with a name and a description for each criterion")
        if bad := [name for name in self.criteria if not re.fullmatch(r"[\w-]+", str(name))]:
            raise ValueError(f"criteria has {bad[0]!r}: a name should consist of letters, digits, - and _")
        if len({name.casefold() for name in self.criteria}) < len(self.criteria):
            raise ValueError("criteria has a name twice, in upper and lower case")
        if not self.lowest < self.highest <= self.lowest + 100 or self.lowest < 0:
            raise ValueError(
                f"lowest is {self.lowest} and highest is {self.highest}: it should be a scale of at most 101 whole "
                "numbers from 0 on, such as 1 and 5"
            )
        if unknown := sorted(set(weights) - set(self.criteria)):
            raise ValueError(f"weights has {unknown[0]!r}, and criteria has {', '.join(self.criteria)}")
        if not all(type(w) in (int, float) and math.isfinite(w) and w >= 0 for w in self.weights.values()) or not any(
            self.weights.values()
        ):
            raise ValueError(f"weights is {weights!r}: each should be a number of 0 or more, and one more than 0")
        if missing := [place for place in ("{article}", "{summary}", "{criteria}") if place not in self.prompt]:
            raise ValueError(f"prompt must say where these go: {', '.join(missing)}")

    def ask_scores(self, article: str, summaries: Sequence[str], order: int = 0) -> list[Prompt]:
        article, names = untagged(article, self.tags), self._names(order)
        values = {
            "article": article,
            "criteria": "\n".join(f"- {name}: {self.criteria[name]}" for name in names),
            "lowest": str(self.lowest),
            "highest": str(self.highest),
            "example": "\n".join(f"{name} {self._example(i)}" for i, name in enumerate(names)),
        }
        regex = r"\n".join(f"{name} ({self.regex_of_rating})" for name in names)
        max_tokens = _TOKENS_PER_CRITERION * len(names)
        prompts = []
        for summary in (untagged(text, self.tags) for text in summaries):
            messages = user(fill(self.prompt, values | {"summary": summary}))
            prompts.append(Prompt(messages, max_tokens, regex, quotes=tuple(filter(None, (article, summary)))))
        return prompts

    def read_scores(
        self, article: str, summaries: Sequence[str], replies: Sequence[Sequence[Sample]], order: int = 0
    ) -> list[Judgement]:
        return [self._read(samples[0].text if samples else "") for samples in replies]

    def _names(self, order: int) -> list[str]:
        """The criteria in the order of a prompt. An odd order is the reverse of the usual one."""
        return list(reversed(self.criteria)) if order % 2 else list(self.criteria)

    def _example(self, place: int) -> int:
        """A rating in the prompt's example. All numbers of the scale take turns, so that none is suggested."""
        return self.lowest + (self.highest - self.lowest - place) % (self.highest - self.lowest + 1)

    def _read(self, reply: str) -> Judgement:
        ratings = {name: self._read_rating(reply, name) for name in self.criteria}
        scale = self.highest - self.lowest
        items = [None if rating is None else (rating - self.lowest) / scale for rating in ratings.values()]
        weights = [self.weights[name] for name in self.criteria]
        if any(item is None and weight for item, weight in zip(items, weights, strict=True)):
            return Judgement(None, tuple(items), "rating unread")
        weighted = sum(weight * (item or 0.0) for item, weight in zip(items, weights, strict=True))
        return Judgement(weighted / sum(weights), tuple(items))

    def _read_rating(self, reply: str, name: str) -> int | None:
        """The rating of a criterion. None if no line gives it, if lines give different ones, or if it is off the scale.

        A free reply may put marks around the name and the number, as in `- **Fluency**: 4/5`. Words between them would
        be ambiguous.
        """
        number = rf"(?P<rating>\d+)(?:\s*(?:/|out of)\s*{self.highest})?"
        gap = r"(?:[^\w\n-]+|\s+-+\s+)"
        line = rf"[\W\d_]*{re.escape(name)}{gap}(?:(?:rating|score){gap})?{number}[^\w\n]*(?:[-–—(:].*)?"
        found = [
            int(match["rating"])
            for each in reply.splitlines()
            if (match := re.fullmatch(line, each.replace("\xa0", " ").strip(), re.IGNORECASE))
        ]
        if len(set(found)) != 1 or not self.lowest <= found[0] <= self.highest:
            return None
        return found[0]

"""A judge with an LLM that reads two summaries of an article and says which one is better.

An LLM favours the summary in the first or in the last place (Zheng et al. 2023, arXiv 2306.05685). So each pair is
shown in both orders, and a verdict counts only if both agree; otherwise the pair is a tie.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import combinations

from judges.base import ComparingJudge, Judgement, Prompt, Sample, closing_tags, fill, untagged, user

PROMPT = """\
Read the article and two summaries of it. Decide which summary is better: it is faithful to the article, holds what \
matters most, and says it in few words. The order of the summaries means nothing.

<article>
{article}
</article>

<summary_a>
{first}
</summary_a>

<summary_b>
{second}
</summary_b>

Reply with one letter, A or B: the better summary."""

_MAX_TOKENS = 16  # of a reply: room for a free reply such as **Summary A**
_REPLY = re.compile(
    r"[\W_]*(?:(?:the )?(?:better|best)(?: summary)?(?: is)?[\W_]+)?"  # the better summary is
    r"(?:summary[\W_]+)?(?-i:([AB]))[\W_]*(?:is better\W*)?",
    re.IGNORECASE,
)
_PLACES_READ = "verdicts read"
_FIRST_WON = "first shown won"
_PAIRS_READ = "pairs shown in both orders"
_FLIPPED = "winner changed with the order"


class PairwiseJudge(ComparingJudge):
    """Compares two summaries at a time. The value is the mean result: 1 for a win, 0.5 for a tie, 0 for a loss.

    The items of a summary are its results against each of the article's summaries, None against itself and against
    those that it was not compared with. With an anchor there is one item, the result against the anchor.

    Args:
        seed: decides which opponents a summary has, if not all.
        opponents: how many summaries each one is compared with; None: with all others. A few summaries get one more.
        prompt: replaces the prompt. It must have {article}, {first} and {second}.

    Raises:
        ValueError: a setting cannot be used.
    """

    engine = "text"
    reorders = False  # every pair is shown in both orders already

    def __init__(self, seed: int = 0, opponents: int | None = None, prompt: str | None = None):
        self.seed, self.opponents, self.prompt = seed, opponents, prompt or PROMPT
        if opponents is not None and opponents < 1:
            raise ValueError(f"opponents is {opponents}: it should be 1 or more, or null for all")
        if missing := [place for place in ("{article}", "{first}", "{second}") if place not in self.prompt]:
            raise ValueError(f"prompt must say where these go: {', '.join(missing)}")
        self.tags = closing_tags(self.prompt)

    def ask_scores(
        self, article: str, summaries: Sequence[str], order: int = 0, anchor: str | None = None
    ) -> list[Prompt]:
        quoted, prompts = untagged(article, self.tags), []
        for a, b in self._compared_texts(article, summaries, anchor):
            for first, second in ((a, b), (b, a)):
                values = {
                    "article": quoted,
                    "first": untagged(first, self.tags),
                    "second": untagged(second, self.tags),
                }
                messages = user(fill(self.prompt, values))
                prompts.append(Prompt(messages, _MAX_TOKENS, "(A|B)", quotes=tuple(filter(None, values.values()))))
        return prompts

    def read_scores(
        self,
        article: str,
        summaries: Sequence[str],
        replies: Sequence[Sequence[Sample]],
        order: int = 0,
        anchor: str | None = None,
    ) -> list[Judgement]:
        results = iter([_result(*choices) for choices in _choices(replies)])
        if anchor is not None:
            against = {text: 0.5 if text == anchor else next(results) for text in summaries}
            return [_judgement([against[text]]) for text in summaries]
        items: list[list[float | None]] = [[None] * len(summaries) for _ in summaries]
        for i, j in self._pairs(article, summaries):
            if (result := next(results)) is not None:
                items[i][j], items[j][i] = result, 1 - result
        if len(summaries) == 1:
            return [Judgement(0.5, (None,))]  # there is nothing that it could be better or worse than
        return [_judgement(own) for own in items]

    def count_places(
        self, article: str, summaries: Sequence[str], replies: Sequence[Sequence[Sample]], anchor: str | None = None
    ) -> dict[str, int]:
        choices = list(_choices(replies))
        read = [choice for pair in choices for choice in pair if choice is not None]
        pairs = [(one, other) for one, other in choices if one is not None and other is not None]
        return {
            _PLACES_READ: len(read),
            _FIRST_WON: read.count("A"),
            _PAIRS_READ: len(pairs),
            _FLIPPED: sum(one == other for one, other in pairs),
        }

    def _compared_texts(self, article: str, summaries: Sequence[str], anchor: str | None) -> Iterator[tuple[str, str]]:
        if anchor is not None:
            yield from ((text, anchor) for text in summaries if text != anchor)
        else:
            yield from ((summaries[i], summaries[j]) for i, j in self._pairs(article, summaries))

    def _pairs(self, article: str, summaries: Sequence[str]) -> list[tuple[int, int]]:
        """The pairs of summaries to compare, as indices.

        With `opponents`, the summaries stand in a circle in a random order, and each is compared with its nearest
        neighbours on both sides. An odd number of opponents adds the one across.
        """
        count = len(summaries)
        if self.opponents is None or self.opponents >= count - 1:
            return list(combinations(range(count), 2))
        circle = sorted(range(count), key=lambda i: self._digest(article, summaries[i]))
        steps = [(i, i + step) for i in range(count) for step in range(1, self.opponents // 2 + 1)]
        if self.opponents % 2:
            steps += [(i, i + count // 2) for i in range((count + 1) // 2)]
        pairs = {tuple(sorted((circle[i], circle[j % count]))) for i, j in steps}
        return sorted((i, j) for i, j in pairs)

    def _digest(self, article: str, summary: str) -> bytes:
        return hashlib.sha256(f"{self.seed}\n{article}\n{summary}".encode("utf-8", "surrogatepass")).digest()


def _choices(replies: Sequence[Sequence[Sample]]) -> Iterator[tuple[str | None, str | None]]:
    """For each pair, the choice in either order: A (shown first), B, or None (unread)."""
    read = [_read_choice(samples[0].text if samples else "") for samples in replies]
    return zip(read[::2], read[1::2], strict=True)


def _read_choice(reply: str) -> str | None:
    """The letter of a reply; None if lines give no letter or both."""
    letters = {match[1] for line in reply.splitlines() if (match := _REPLY.fullmatch(line.replace("\xa0", " ")))}
    return letters.pop() if len(letters) == 1 else None


def _result(one: str | None, other: str | None) -> float | None:
    """1 if the summary that was shown first the first time wins in both orders, 0 if the other does, else a tie."""
    if one is None or other is None:
        return None
    return 0.5 if one == other else float(one == "A")


def _judgement(items: Sequence[float | None]) -> Judgement:
    read = [item for item in items if item is not None]
    if not read:
        return Judgement(None, tuple(items), "verdict unread")
    return Judgement(sum(read) / len(read), tuple(items))

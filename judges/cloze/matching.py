"""Answers a question from a passage: chooses the option around which the passage has the words around the blank.

A summary seldom repeats a sentence of the article, but it keeps words that matter near each other. So an option's
evidence is the share of the blank's context words that stand near the option in the passage, where the words nearest to
the blank count most. An option that is only named has no evidence; so a list of names answers nothing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache

from judges.cloze.spots import tokens_of
from judges.text.tokens import normalized_tokens
from judges.text.word_forms import is_dense, is_function_word, is_inflected, stem

BLANK = "____"

_WINDOW = 12  # tokens on each side of an option
_HALF = 10  # a context word so many tokens from the blank counts half
_MOST_CONTEXT = 8  # context words that would be all the evidence there can be
_LEAST_EVIDENCE = 0.2
_MARGIN = 1.1  # the best option's evidence, in multiples of the second's
_PART_OF_NAME = 0.6  # "Obama" for "Barack Obama"
_INFLECTED = 0.8  # «Зареченске» for «Зареченск»


class Passage:
    """A passage's tokens, and the places of each token and each context word."""

    def __init__(self, text: str):
        self.tokens = normalized_tokens(text)
        self.places: dict[str, list[int]] = defaultdict(list)
        self.stems: dict[str, list[int]] = defaultdict(list)
        for place, token in enumerate(self.tokens):
            self.places[token].append(place)
            self.stems[stem(token)].append(place)
        self.context = _context_places(self.tokens)

    def find(self, option: Sequence[str], others: set[str]) -> dict[int, float]:
        """Find where an option is named, and weigh how exactly: 1 for the option as it is.

        Args:
            option: its tokens.
            others: the tokens of the other options, which name another one.
        """
        size = len(option)
        starts = self.places.get(option[0], ()) if option else ()
        if whole := {at: 1.0 for at in starts if self.tokens[at : at + size] == list(option)}:
            return whole
        if size > 1:
            parts = [
                token for token in option if len(token) > 2 and token not in others and not is_function_word(token)
            ]
            if found := {at: _PART_OF_NAME for token in parts for at in self.places.get(token, ())}:
                return found
        return {
            at: _INFLECTED
            for at in (self.stems.get(stem(option[-1]), ()) if option else ())
            if is_inflected(option[-1], self.tokens[at]) and self.tokens[at] not in others
        }


def choose(question: str, options: Sequence[str], passage: Passage) -> int | None:
    """Choose the option that the passage puts into the blank; None if there is none, or two fit about as well.

    Args:
        question: a sentence with `BLANK`.
    """
    weights, most = _context_weights(question)
    near = [(weight, passage.context[word]) for word, weight in weights.items() if word in passage.context]
    tokens = [tokens_of(option) for option in options]
    evidence = []
    for number, option in enumerate(tokens):
        others = {token for other in (*tokens[:number], *tokens[number + 1 :]) for token in other}
        found = passage.find(option, others) if near else {}
        evidence.append(max((share * _evidence(near, at) / most for at, share in found.items()), default=0.0))
    best = max(range(len(options)), key=evidence.__getitem__)
    second = max((value for number, value in enumerate(evidence) if number != best), default=0.0)
    return best if evidence[best] >= max(_LEAST_EVIDENCE, _MARGIN * second) else None


def _evidence(near: Sequence[tuple[float, Sequence[int]]], at: int) -> float:
    """The weights of the context words near a place, less for farther ones."""
    total = 0.0
    for weight, places in near:
        distance = min(abs(place - at) for place in places)
        if distance <= _WINDOW:
            total += weight * (1 - distance / (2 * _WINDOW))
    return total


@lru_cache(1 << 12)  # the same questions are answered from every summary of an article
def _context_weights(question: str) -> tuple[Mapping[str, float], float]:
    """The weight of each context word of the blank, and the most that they can add up to."""
    left, _, right = question.partition(BLANK)
    before, after = normalized_tokens(left), normalized_tokens(right)
    distances = {word: len(before) - max(places) for word, places in _context_places(before).items()}
    for word, places in _context_places(after).items():
        distances[word] = (
            min(distances.get(word, len(before)), min(places) + 1) if word in distances else min(places) + 1
        )
    weights = {word: 1 / (1 + distance / _HALF) for word, distance in distances.items()}
    return weights, sum(sorted(weights.values())[-_MOST_CONTEXT:]) or 1.0


def _context_places(tokens: Sequence[str]) -> dict[str, list[int]]:
    """The places of each word with a meaning, by its stem; in a script without spaces, of each pair of letters."""
    places: dict[str, list[int]] = defaultdict(list)
    for at, token in enumerate(tokens):
        if is_dense(token):
            pair = tokens[at : at + 2]
            if len(pair) == 2 and is_dense(pair[1]) and not all(map(is_function_word, pair)):
                places["".join(pair)].append(at)
        elif token.isdecimal() or (len(token) > 1 and not is_function_word(token)):
            places[stem(token)].append(at)
    return places

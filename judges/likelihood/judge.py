"""A judge that writes nothing: a small LM measures how likely a summary is after its article, and what it covers.

A model of 135 million parameters writes poor questions and answers them poorly, but its likelihoods are worth
something. The value of a summary adds three parts:

- *Faithfulness*, in nats per token: the mean log-probability of the summary after the article. A wrong name or number,
  a sentence about something else and broken language are unlikely (BARTScore: Yuan et al., 2021, arXiv 2106.11520).
- *Coverage*, in nats per token: how much likelier a key sentence of the article becomes if the model has read the
  summary before it (information gain: Egan et al., 2021, arXiv 2103.10918). Each key sentence is one item.
- *Relevance*: the weight of the article's words that the summary has, per length (`key_sentences.py`). Without it, a
  likely summary of a detail would be as good as one of what matters.

A likely summary may copy the article or repeat itself. Words of a repeated passage therefore count as unlikely, and the
gain of one key sentence has a limit, so that copying it is worth no more than retelling it well. A policy that is
trained on likelihood may still learn to copy: `pairs.max_copied_gap` keeps such pairs out.
"""

from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean

from judges.base import Judgement, Prompt, Sample, ScoringJudge, fill, user
from judges.likelihood.key_sentences import article_sentences, key_sentences, weight_per_length, word_weights
from judges.likelihood.restore import restore
from judges.text.repetition import repeated_share

_SUMMARIZE = "Write a very short summary of the article in at most two sentences.\n\n{article}"
_ALONE = "Write a sentence of a news article."
_AFTER = "Here is a summary of a news article.\n\n{summary}\n\nWrite a sentence of the article."
# The log-probability that counts for an empty summary, and for each token of a passage that was said before: about
# that of a word drawn at random by how often words occur.
_UNLIKELY = -6.0


class LikelihoodJudge(ScoringJudge):
    """Scores summaries by likelihoods under a causal LM.

    Args:
        sentences: number of key sentences of each article.
        coverage: weight of coverage beside faithfulness.
        max_gain: largest gain of one key sentence that counts, in nats per token.
        relevance: weight of relevance beside faithfulness.
    """

    engine = "likelihood"

    def __init__(self, sentences: int = 8, coverage: float = 2.0, max_gain: float = 1.0, relevance: float = 1.0):
        if sentences < 1:
            raise ValueError(f"sentences is {sentences}: it should be 1 or more")
        if max_gain <= 0:
            raise ValueError(f"max_gain is {max_gain}: it should be above 0")
        if min(coverage, relevance) < 0:
            raise ValueError("coverage and relevance should be 0 or more")
        self.sentences, self.coverage, self.max_gain, self.relevance = sentences, coverage, max_gain, relevance

    def key_sentences(self, article: str, order: int = 0) -> list[str]:
        """Return the sentences that the items of a score are about. Another `order` gives the next best ones."""
        sentences, weights = _read_article(article)
        keys = key_sentences(sentences, weights, self.sentences, skip=order * self.sentences)
        return keys or key_sentences(sentences, weights, self.sentences)  # a short article has no other sentences

    def ask_scores(self, article: str, summaries: Sequence[str], order: int = 0) -> list[Prompt]:
        """Make the prompts: the article with all summaries, nothing with the key sentences, each summary with them.

        With another `order` the next best sentences are the key sentences.
        """
        written = self._written(article, summaries)
        keys = self.key_sentences(article, order)
        prompts = []
        if written:
            prompts.append(_prompt(fill(_SUMMARIZE, {"article": article}), written, article))
        if keys:
            prompts.append(_prompt(_ALONE, keys))
            prompts += [_prompt(fill(_AFTER, {"summary": text}), keys, text) for text in written]
        return prompts

    def read_scores(
        self, article: str, summaries: Sequence[str], replies: Sequence[Sequence[Sample]], order: int = 0
    ) -> list[Judgement]:
        """Compute the value of each summary.

        Its items are one value for each key sentence: faithfulness and relevance plus the weighted gain of the
        sentence. The value is their mean. An empty summary gets the faithfulness of noise, and no gain.
        """
        written, keys = self._written(article, summaries), self.key_sentences(article, order)
        if len(replies) != bool(written) + bool(keys) * (1 + len(written)):
            return [Judgement(None) for _ in summaries]
        remaining = iter(replies)
        likelihoods = dict(zip(written, _mean_logps(next(remaining), len(written)), strict=True)) if written else {}
        alone = _mean_logps(next(remaining), len(keys)) if keys else []
        after = {text: _mean_logps(next(remaining), len(keys)) for text in written} if keys else {}
        weights = _read_article(article)[1]
        judgements = []
        for summary in summaries:
            text = restore(summary, article)
            gains = [self._gain(a, b) for a, b in zip(after.get(text, alone), alone, strict=True)]
            faithfulness = likelihoods.get(text, _UNLIKELY)
            if faithfulness is None or any(gain is None for gain in gains):
                judgements.append(Judgement(None, (None,) * max(1, len(keys)), reason="not scored: too long"))
                continue
            repeated = repeated_share(text)
            base = faithfulness * (1 - repeated) + _UNLIKELY * repeated
            base += self.relevance * weight_per_length(text, weights)
            items = tuple(base + self.coverage * gain for gain in gains if gain is not None) or (base,)
            judgements.append(Judgement(fmean(items), items))
        return judgements

    def _gain(self, after: float | None, alone: float | None) -> float | None:
        return None if after is None or alone is None else min(after - alone, self.max_gain)

    def _written(self, article: str, summaries: Sequence[str]) -> list[str]:
        """The distinct summaries that are not empty, as the model reads them."""
        return list(dict.fromkeys(filter(None, (restore(summary, article) for summary in summaries))))


@lru_cache(maxsize=256)  # the articles of a batch: each is read before and after the engine
def _read_article(article: str) -> tuple[list[str], dict[str, float]]:
    """The article's sentences, and how much each of its words matters."""
    sentences = article_sentences(article)
    return sentences, word_weights(sentences)


def _prompt(text: str, continuations: Sequence[str], quote: str = "") -> Prompt:
    return Prompt(user(text), max_tokens=1, quotes=(quote,) if quote else (), continuations=tuple(continuations))


def _mean_logps(samples: Sequence[Sample], count: int) -> list[float | None]:
    """The mean log-probability per token of each of `count` texts.

    Returns:
        None for each text that the engine could not score; None for all if it gave no reply.
    """
    if len(samples) != count:
        return [None] * count
    return [
        sample.logp / len(sample.token_ids) if sample.logp is not None and sample.token_ids else None
        for sample in samples
    ]

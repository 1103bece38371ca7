"""Tests a judge without human ratings: `python -m bench.judge_damage CONFIG ARTICLES [NAME=VALUE…]`.

ARTICLES (JSONL, JSON, Parquet or hf:NAME:SPLIT) has articles with a human summary: `text` (or `article`), and
`highlights` (a list of sentences) or `summary`. The judge of CONFIG scores the human summary and changed versions of it
(`judge_quality/damages.py`), in this process and without Ray:

- *damaged* in a known way. The undamaged one should have the higher value. The table shows how often it has (`wins`),
  how often both have the same value (`ties`), and the win rate (wins + ties / 2), which is 50 % for a judge that sees
  nothing. Beside it are the scores of `pairs.preference` and of rules that know nothing of the article: the longer one
  wins, the shorter one wins, chance decides.
- *harmless*, such as lower case. The table shows how often the value stays the same, and how often the changed version
  compares with each damaged one as the unchanged version does (`order kept`).
- damaged 0 to 4 times: Spearman's rho of the value and the number of damages, with its sign turned.
- extracts of the article (its first sentences, random sentences): Spearman's rho of the value and ROUGE with the human
  summary, a stand-in for relevance. The second line includes the human summary itself. The third has a model's
  summaries, where ARTICLES has them: `summaries` (or `samples`), a list of texts, or of lists that begin with a text.

Intervals are bootstrap intervals over articles (95 %). Articles with too few questions are left out and counted. The
damages are written for English.
"""

import argparse
import hashlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.judge_quality.damages import DAMAGES, HARMLESS, Material, apply, damage_often, sentences
from bench.print_table import print_table
from jobs.judge.correlation import Bootstrap, Estimate, spearman
from jobs.judge.scored_articles import Candidates, open_judge, score_articles, value_of
from judges.text.sentences import strip_dateline
from pipeline.config import Config, UserError
from pipeline.config.loader import load_config
from pipeline.data import readers
from pipeline.execution.progress import Display
from pipeline.judging.preference import Score, load_preference

TIMES = 4  # damages on one summary
RESAMPLES = 2000


@dataclass
class Case:
    """An article with its human summary and changed versions of it.

    Attributes:
        texts: all texts to be scored, each once.
        damaged, harmless: index in `texts` by the name of the change.
        often: indices of the summary with 0, 1, … damages.
        extracts: indices of extracts of the article.
        samples: indices of a model's summaries; empty if there are none.
    """

    article_id: str
    article: str
    texts: list[str]
    damaged: dict[str, int] = field(default_factory=dict)
    harmless: dict[str, int] = field(default_factory=dict)
    often: list[int] = field(default_factory=list)
    extracts: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def add(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)


def main() -> None:
    options = _options()
    settings = load_config(options.config, options.overrides)
    cases = read_cases(options.file, options.articles, options.max_words, settings.seed)
    judge, engine = open_judge(settings)
    articles = [Candidates(case.article_id, case.article, tuple(case.texts)) for case in cases]
    scored = score_articles(settings, judge, engine, articles, Display())
    used = [(case, found.scores) for case, found in zip(cases, scored, strict=True) if found.scores]
    left_out = Counter(found.left_out for found in scored if found.left_out)
    if not used:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
        raise UserError(f"{options.file}: no article could be scored ({reasons}); lower questions.min_questions")
    result: dict[str, Any] = {"judge": settings.judge.name, "articles": len(used), "left_out": dict(left_out)}
    result |= measure(
        [case for case, _ in used], [[value_of(score) for score in scores] for _, scores in used], settings.seed
    )
    result["preference"] = settings.pairs.preference
    for name, share in preferred(used, settings).items():
        result["damaged"][name]["preferred"] = share
    print_result(result)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def read_cases(place: str, number: int, max_words: int | None = None, seed: int = 0) -> list[Case]:
    """Read the first `number` articles with a human summary, and make the changed versions.

    Args:
        place: a file or dataset.
        number: articles to use.
        max_words: longer articles are passed over.
        seed: decides what is damaged, together with the texts.

    Raises:
        UserError: the file cannot be read, or has fewer than two articles with a summary.
    """
    columns: Counter[str] = Counter()
    references: list[tuple[str, str, str]] = []
    samples: list[list[str]] = []
    for i, row in enumerate(readers.read_rows(place, "ARTICLES"), 1):
        columns.update(row.keys())
        article, summary = row.get("text") or row.get("article"), row.get("highlights") or row.get("summary")
        if isinstance(summary, list):
            summary = " ".join(s if s.rstrip().endswith((".", "!", "?", '"')) else f"{s.rstrip()}." for s in summary)
        if not isinstance(article, str) or not isinstance(summary, str) or not sentences(summary):
            continue
        if max_words is None or len(article.split()) <= max_words:
            references.append((str(row.get("id", i)), article, summary))
            samples.append(_texts(row.get("summaries") or row.get("samples")))
        if len(references) > number:  # one more, from which the last one takes what is foreign to it
            break
    if len(references) < 2:
        raise UserError(
            f"{place} has {len(references)} usable articles and the columns {', '.join(columns)}; it needs two or more "
            "with text (or article) and highlights (or summary)"
        )
    others = references[1:] + references[:1]
    return [
        make_case(*own, other[1], other[2], seed, texts)
        for own, other, texts in islice(zip(references, others, samples, strict=True), number)
    ]


def _texts(cell: Any) -> list[str]:
    """The distinct texts of a cell that holds texts, or lists that begin with a text."""
    items = cell if isinstance(cell, list) else []
    texts = [item[0] if isinstance(item, list) and item else item for item in items]
    return list(dict.fromkeys(text for text in texts if isinstance(text, str) and text.strip()))


def make_case(
    article_id: str,
    article: str,
    summary: str,
    other_article: str,
    other_summary: str,
    seed: int = 0,
    samples: Sequence[str] = (),
) -> Case:
    """Make the changed versions of an article's summary. `samples` are a model's summaries of it."""
    summary = " ".join(summary.split())
    material = Material(strip_dateline(article), strip_dateline(other_article), other_summary)
    case = Case(article_id, article, [summary])
    for changes, indices in ((DAMAGES, case.damaged), (HARMLESS, case.harmless)):
        for name, change in changes.items():
            if (changed := apply(change, summary, material, str(seed))) is not None:
                indices[name] = case.add(changed)
    case.often = [case.add(text) for text in damage_often(summary, material, str(seed), TIMES)]
    case.extracts = [case.add(text) for text in _extracts(material.article, seed)]
    case.samples = [case.add(text) for text in samples]
    return case


def _extracts(article: str, seed: int) -> list[str]:
    """The first 1, 2 and 3 sentences, and three times 1, 2 or 3 random sentences, in the order of the article."""
    parts = sentences(article)
    rng = random.Random(f"{seed}\n{article}")
    chosen = [sorted(rng.sample(range(len(parts)), min(n, len(parts)))) for n in (1, 2, 3)]
    return list(
        dict.fromkeys([" ".join(parts[:n]) for n in (1, 2, 3)] + [" ".join(parts[i] for i in c) for c in chosen])
    )


def measure(cases: Sequence[Case], value_lists: Sequence[Sequence[float | None]], seed: int = 0) -> dict[str, Any]:
    """Compute the figures from the values of all texts, whatever gave the values.

    Args:
        cases: articles with their texts.
        value_lists: for each case one value for each of its `texts`.

    Returns:
        figures with intervals. `damaged`: by name of the damage, and `mean` over damages: `wins`, `ties` and `score`
        (wins + ties / 2) of the values, and the scores of `longer`, `shorter` and `chance`. `harmless`: by name:
        `same`, `higher` and `order_kept` (shares). `often`: rho with the number of damages, for the values and for
        `words`. `rouge`: by name of the measure: `extracts`, `with_summary` and `samples`, each for `judge` and
        `words`.
    """
    bootstrap = Bootstrap(len(cases), RESAMPLES, seed=seed)
    scorers: dict[str, list[Sequence[float | None]]] = {
        "judge": list(value_lists),
        "longer": [[float(len(text.split())) for text in case.texts] for case in cases],
        "shorter": [[-float(len(text.split())) for text in case.texts] for case in cases],
        "chance": [[_chance(text, seed) for text in case.texts] for case in cases],
    }
    signs = {
        name: [_signs(case, own) for case, own in zip(cases, lists, strict=True)] for name, lists in scorers.items()
    }
    damaged: dict[str, Any] = {}
    for damage in (*DAMAGES, "mean"):
        scores = {name: bootstrap.mean([_score(sign, damage) for sign in signs[name]]) for name in signs}
        damaged[damage] = {
            "wins": bootstrap.mean([_share(sign, damage, 1) for sign in signs["judge"]]),
            "ties": bootstrap.mean([_share(sign, damage, 0) for sign in signs["judge"]]),
            "score": scores.pop("judge"),
            **scores,
        }
    return {
        "damaged": damaged,
        "harmless": {name: _harmless(name, cases, value_lists, bootstrap) for name in HARMLESS},
        "often": {
            name: bootstrap.mean([_rho_of_often(case, own) for case, own in zip(cases, scorers[scorer], strict=True)])
            for name, scorer in (("judge", "judge"), ("words", "longer"))
        },
        "rouge": _rouge(cases, scorers, bootstrap),
    }


def _signs(case: Case, own: Sequence[float | None]) -> dict[str, int]:
    """For each damage 1 if the undamaged summary has the higher value, -1 if the lower, 0 if they tie."""
    return {
        name: (whole > part) - (whole < part)
        for name, i in case.damaged.items()
        if (whole := own[0]) is not None and (part := own[i]) is not None
    }


def _share(signs: Mapping[str, int], damage: str, sign: int) -> float | None:
    """Whether a damage has this sign, or the share of all damages that have it; None if it was not applied."""
    if damage == "mean":
        return float(np.mean([found == sign for found in signs.values()])) if signs else None
    return float(signs[damage] == sign) if damage in signs else None


def _score(signs: Mapping[str, int], damage: str) -> float | None:
    wins, ties = _share(signs, damage, 1), _share(signs, damage, 0)
    return None if wins is None or ties is None else wins + ties / 2


def _chance(text: str, seed: int) -> float:
    return int(hashlib.sha256(f"{seed}\n{text}".encode()).hexdigest()[:8], 16)


def _harmless(
    name: str, cases: Sequence[Case], value_lists: Sequence[Sequence[float | None]], bootstrap: Bootstrap
) -> dict[str, Estimate]:
    same: list[float | None] = []
    higher: list[float | None] = []
    kept: list[float | None] = []
    for case, own in zip(cases, value_lists, strict=True):
        changed = own[case.harmless[name]] if name in case.harmless else None
        plain = own[0]
        if changed is None or plain is None:
            same, higher, kept = [*same, None], [*higher, None], [*kept, None]
            continue
        others = [value for i in case.damaged.values() if (value := own[i]) is not None]
        same.append(float(changed == plain))
        higher.append(float(changed > plain))
        kept.append(
            float(np.mean([(changed > v, changed < v) == (plain > v, plain < v) for v in others])) if others else None
        )
    return {"same": bootstrap.mean(same), "higher": bootstrap.mean(higher), "order_kept": bootstrap.mean(kept)}


def _rho_of_often(case: Case, own: Sequence[float | None]) -> float | None:
    read = [(value, -times) for times, i in enumerate(case.often) if (value := own[i]) is not None]
    return spearman(*map(np.array, zip(*read, strict=True))) if read else None


def _rouge(
    cases: Sequence[Case], scorers: Mapping[str, Sequence[Sequence[float | None]]], bootstrap: Bootstrap
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, rouge in (("ROUGE-1", rouge_1), ("ROUGE-2", rouge_2), ("ROUGE-L", rouge_l)):
        result[name] = {}
        for among in ("extracts", "with_summary", "samples"):
            rhos: dict[str, list[float | None]] = {"judge": [], "longer": []}
            for i, case in enumerate(cases):
                texts = {"extracts": case.extracts, "with_summary": [0, *case.extracts], "samples": case.samples}
                indices = texts[among]
                stand_in = {j: rouge(case.texts[j], case.texts[0]) for j in indices}
                for scorer, found in rhos.items():
                    read = [(value, stand_in[j]) for j in indices if (value := scorers[scorer][i][j]) is not None]
                    found.append(spearman(*map(np.array, zip(*read, strict=True))) if read else None)
            result[name][among] = {"judge": bootstrap.mean(rhos["judge"]), "words": bootstrap.mean(rhos["longer"])}
    return result


def rouge_1(text: str, reference: str) -> float:
    """F1 of shared words (Lin, 2004), without stemming."""
    return _rouge_n(text, reference, 1)


def rouge_2(text: str, reference: str) -> float:
    """F1 of shared pairs of neighbouring words."""
    return _rouge_n(text, reference, 2)


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words."""
    a, b = _words(text), _words(reference)
    longest = [0] * (len(b) + 1)
    for word in a:
        before = longest[:]
        for j, other in enumerate(b):
            longest[j + 1] = before[j] + 1 if word == other else max(before[j + 1], longest[j])
    return 2 * longest[-1] / (len(a) + len(b)) if a and b else 0.0


def _rouge_n(text: str, reference: str, n: int) -> float:
    a, b = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (_words(text), _words(reference)))
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def preferred(used: Sequence[tuple[Case, Sequence[Score]]], settings: Config) -> dict[str, Estimate]:
    """Wins + ties / 2 of the undamaged summary by `pairs.preference`, by name of the damage and as a `mean`."""
    rule = load_preference(settings.pairs)
    bootstrap = Bootstrap(len(used), RESAMPLES, seed=settings.seed)
    signs = [
        {
            name: rule(scores[0], scores[i], settings.pairs)
            for name, i in case.damaged.items()
            if not scores[0]["unread"] and not scores[i]["unread"]
        }
        for case, scores in used
    ]
    return {name: bootstrap.mean([_score(sign, name) for sign in signs]) for name in (*DAMAGES, "mean")}


def print_result(result: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    print_table(
        f"{result['judge']} on {result['articles']:,} articles: the undamaged summary against a damaged one",
        [
            {
                "damage": name,
                "n": figures["wins"]["n"],
                "wins": _percent(figures["wins"], False),
                "ties": _percent(figures["ties"], False),
                "win rate": _percent(figures["score"]),
                result["preference"]: _percent(figures["preferred"], False),
                **{rule: _percent(figures[rule], False) for rule in _RULES},
            }
            for name, figures in result["damaged"].items()
            if figures["wins"]["n"]
        ],
    )
    print_table(
        "harmless changes",
        [
            {"change": name, "n": figures["same"]["n"], "same value": _percent(figures["same"], False)}
            | {"higher value": _percent(figures["higher"], False), "order kept": _percent(figures["order_kept"])}
            for name, figures in result["harmless"].items()
            if figures["same"]["n"]
        ],
    )
    lines = [
        {"with": f"fewer damages (0 to {TIMES})", "judge": result["often"]["judge"], "words": result["often"]["words"]}
    ]
    for name, among in result["rouge"].items():
        lines.append({"with": f"{name}, extracts", **among["extracts"]})
        lines.append({"with": f"{name}, extracts and the human summary", **among["with_summary"]})
        if among["samples"]["words"]["n"]:
            lines.append({"with": f"{name}, a model's summaries", **among["samples"]})
    print_table(
        "Spearman's rho per article",
        [
            {"with": line["with"], "articles": line["judge"]["n"], "judge": _rho(line["judge"])}
            | {"words alone": _rho(line["words"])}
            for line in lines
        ],
    )
    for reason, count in result["left_out"].items():
        print(f"left out: {count:,} articles, {reason}")


_RULES = ("longer", "shorter", "chance")


def _percent(figure: Estimate, interval: bool = True) -> str:
    return _text(figure, lambda value: f"{value:.0%}", interval)


def _rho(figure: Estimate) -> str:
    return _text(figure, lambda value: f"{value:+.2f}", True)


def _text(figure: Estimate, form: Callable[[float], str], interval: bool) -> str:
    if figure["value"] is None:
        return "–"
    return form(figure["value"]) + (f" [{form(figure['low'])}, {form(figure['high'])}]" if interval else "")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a run's configuration: judge, questions, pairs and seed")
    parser.add_argument("file", metavar="ARTICLES", help="articles with a human summary")
    parser.add_argument("overrides", metavar="NAME=VALUE", nargs="*", help="such as judge.questions=10")
    parser.add_argument("--articles", metavar="N", type=int, default=100, help="articles to use (default 100)")
    parser.add_argument("--max-words", metavar="N", type=int, help="pass over articles of more words")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

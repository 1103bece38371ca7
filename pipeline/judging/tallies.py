"""Names of the counts that judging and pairing add to a stage's record.

A row counts things in its column `tally`, by name. A finished table adds these counts up over its rows and writes the
sums into `tally` of its `record.json`. Records lie on users' disks, so these strings never change. Counts of tokens and
engines have their names in `inference/base.py`, and that of merged rows in `storage/parts.py`.
"""

from collections import Counter
from collections.abc import Mapping

# Questions (`question_generation.py`):
QUESTIONS_ASKED = "questions asked"
QUESTIONS = "questions"  # questions that are used
DROPPED_PREFIX = "question dropped: "  # + the reason
QUESTION_CUT_OFF = "question cut off"  # the reason for the last question of a reply that a token limit cut off

# What each check of questions did. The names are these prefixes with one of CHECKS.
CHECK_ASKED_PREFIX = "check asked: "  # questions that it looked at
CHECK_DROPPED_PREFIX = "check dropped: "  # questions that failed it and no check before it
CHECK_PROMPTS_PREFIX = "check prompts: "
CHECK_TOKENS_PREFIX = "check tokens: "  # tokens that its prompts and replies had
CHECKS = ("answerable", "unguessable", "single_key", "important", "no_overlap", "draft")

# The two checks of a question: the judge answers it from the whole article, and from nothing (an empty text).
CHECKED = "checked"  # questions that were checked
RIGHT_FROM_ARTICLE = "right from the whole article"
RIGHT_FROM_NOTHING = "right from nothing"
UNSURE_FROM_NOTHING = "unsure from nothing"
ANSWER_LETTER_PREFIX = "said "  # + the letter of an answer in either check
KEY_LETTER_PREFIX = "key "  # + the letter of the right option

# Answers from the whole article that came with log-probabilities: how many, and the sum of their probabilities.
WEIGHED_RIGHT = "weighed right"
WEIGHED_WRONG = "weighed wrong"
CONFIDENCE_PREFIX = (
    "millionths sure, "  # + one of the two names above; the sum in millionths, because tallies are integers
)

# Answers, in the checks and in scoring:
ANSWERS = "answers"
UNREAD = "unread"  # answers that could not be parsed
UNSURE = "unsure"  # answers "unsure"; counted in scoring only

# Scoring (`scoring/exam.py`):
COMPARED = "questions compared"  # questions of an article that were answered from two or more distinct summaries
TELLING = "questions that tell apart"  # of these, the questions answered right from some summaries and not from others
JUDGED = "judged"  # distinct summaries
JUDGED_AGAIN = "judged again"  # summaries that were judged a second time, with the options in another order
ASKED_AGAIN = "asked again"  # answers that were read both times and chose an option at least once
SAME_AGAIN = "same again"  # of these, the answers that chose the same option both times
PAIRS_AGAIN = "pairs judged again"  # pairs of summaries that a scoring judge decided in both orders
SAME_PAIRS_AGAIN = "same winner again"  # of these, the pairs with the same winner both times
UNSURE_TWICE = "unsure twice"  # answers that were "unsure" both times
UNREAD_PREFIX = "unread: "  # + why a scoring judge gave no value

# Places of two summaries in a prompt, by a judge that compares them (`judges/pairwise.py` has the same strings):
PLACES_READ = "verdicts read"  # replies that name a winner
FIRST_WON = "first shown won"  # of these, the replies that prefer the summary in the first place
SHOWN_TWICE = "pairs shown in both orders"  # pairs with a winner in both orders
WINNER_CHANGED = "winner changed with the order"  # of these, the pairs with another winner

# Length (`scoring/length_bias.py`), among the distinct summaries of each article:
LENGTHS_DECIDED = "pairs of unequal length decided"  # pairs with unequal values and unequal numbers of words
LONGER_WON = "longer won"  # of these, the pairs whose longer summary has the higher value
LENGTH_CORRELATIONS = "correlations with words"  # articles with a rank correlation of value and words
LENGTH_CORRELATION_SUM = "millionths of correlation with words"  # the sum of the correlations in millionths

# Juries (`scoring/jury.py`):
MEMBER_PREFIX = "member "  # + the member's name, a colon and a space, + the name of the member's own count

# Pairs (`stages/pairs.py`, `stages/external_pairs.py`):
PAIRS = "pairs"  # pairs to train on
PAIRS_FOUND = "pairs found"  # pairs without a tie, before the selection
TO_PAIR = "summaries to pair"  # all summaries of the articles
UNUSABLE_PREFIX = "unusable: "  # + why a summary could not be in any pair; each summary counts once
REJECTED_ONLY_PREFIX = "only rejected: "  # + the fault because of which a summary could only be rejected
CIRCULAR_PAIRS = "pairs in a circle"  # pairs that are left out, because verdicts go in a circle through them
PAIRS_AGAINST_BASE = "pairs against the base"  # pairs whose rejected summary is the base policy's
# Why a summary could not be in any pair, whatever its faults (`scoring/text_faults.py` names these).
CUT_OFF, UNREAD_SCORE, TOO_SHORT, TOO_LONG, GIBBERISH = "cut off", "unread", "too short", "too long", "gibberish"
REPLAYED_PAIRS = "replayed pairs"  # pairs from earlier rounds
REPLAYED_ARTICLES = "replayed articles"  # articles with such pairs

# Why an article gave no pair: in `skipped` of the record of `pairs`.
UNDER_TWO_USABLE = "under two usable summaries"
NONE_WITHOUT_FAULT = "no usable summary without a fault"
NONE_BY_POLICY = "no usable summary of the policy"
NONE_BY_BASE = "no usable summary of the base"
ALL_TIES = "all ties"
NONE_BEATS_BASE = "none better than the base's"
COPIES_MORE = "the better one copies more"
WITHIN_NOISE = "difference within the score's noise"
NO_STANDARD_ERROR = "score of one item, which has no standard error"
IN_A_CIRCLE = "verdicts in a circle"


def describe_unusable(tally: Mapping[str, int]) -> str:
    """Why summaries could not be paired: `unusable summaries: cut off 240 of 384, too short 3`.

    Args:
        tally: of a table `pairs`.

    Returns:
        the most frequent reason first; an empty text if all were usable, or if an older version did not count them.
    """
    counts = count_unusable(tally)
    if not counts:
        return ""
    (first, most), *others = counts.most_common()
    reasons = [f"{first} {most:,} of {tally[TO_PAIR]:,}", *(f"{reason} {count:,}" for reason, count in others)]
    return f"unusable summaries: {', '.join(reasons)}"


def count_unusable(tally: Mapping[str, int]) -> Counter[str]:
    """How many summaries could not be paired, by reason. See `describe_unusable`."""
    reasons = {
        name.removeprefix(UNUSABLE_PREFIX): count for name, count in tally.items() if name.startswith(UNUSABLE_PREFIX)
    }
    return Counter(reasons)

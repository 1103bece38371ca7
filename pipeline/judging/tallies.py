"""Names of the counts that judging adds up into records."""

# How a tally begins that counts by reason, or by letter: of the answers in both checks, of the keys.
DROPPED_PREFIX, ANSWER_LETTER_PREFIX, KEY_LETTER_PREFIX = "question dropped: ", "said ", "key "


# Of the answers from the whole article that came with log-probabilities: how many, and `SURE` of them in millionths.
WEIGHED_RIGHT, WEIGHED_WRONG, CONFIDENCE_PREFIX = "weighed right", "weighed wrong", "millionths sure, "

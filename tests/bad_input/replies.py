"""Replies of a judge, and how they are parsed.

QUESTIONS: name, reply, and for each question of the reply None (accepted) or the reason why it was dropped.
ANSWERS: name, reply, and the answers read from it. There are two questions with three options; A and B are right.
"""

QUESTIONS = [
    ("nothing", "", ["question unread"]),
    ("prose", "Sure! Here are your questions:", ["question unread"]),
    ("a good one", "Q1 Who won? Answer Ann | Bob | Cy", [None]),
    ("no question mark", "Q1 Who won Answer Ann | Bob | Cy", ["question unread"]),
    ("a number missing", "Q Who won? Answer Ann | Bob | Cy", ["question unread"]),
    ("an option missing", "Q1 Who won? Answer Ann | Bob", ["question has not 3 options"]),
    ("an option too many", "Q1 Who won? Answer Ann | Bob | Cy | Di", ["question has not 3 options"]),
    ("an empty option", "Q1 Who won? Answer Ann |  | Cy", ["options not distinct"]),
    ("the same option", "Q1 Who won? Answer Ann | ann. | Cy", ["options not distinct"]),
    ("letters as options", "Q1 Who won? Answer A | B | C", ["option names a letter"]),
    ("letters before options", "Q1 Who won? Answer A) Ann | B) Bob | C) Cy", ["option names a letter"]),
    ("an option about other options", "Q1 Who won? Answer Ann | Bob | All of the above", ["option speaks of others"]),
    (
        "the same question twice",
        "Q1 Who won? Answer Ann | Bob | Cy\nQ2 Who won? Answer Di | Ed | Flo",
        [None, "question asked twice"],
    ),
    ("line ends in between", "Q1 Who\nwon? Answer Ann | Bob | Cy", ["question unread"] * 2),
    ("half a letter", "Q1 Who \ud800? Answer Ann | Bob | Cy", ["question unread"]),
    ("braces", "Q1 Who {won}? Answer {0} | %s | $(x)", [None]),
]

ANSWERS = [
    ("right", "Q1 A\nQ2 B", ["A", "B"]),
    ("unsure", "Q1 Unsure\nQ2 C", ["unsure", "C"]),
    ("nothing", "", [None, None]),
    ("cut off", "Q1 A\nQ2", ["A", None]),
    ("cut off in a word", "Q1 Unsu", [None, None]),
    ("in another order", "Q2 B\nQ1 A", [None, None]),
    ("too many", "Q1 A\nQ2 B\nQ3 C", ["A", "B"]),
    ("lower case", "Q1 a\nQ2 unsure", [None, None]),
    ("look-alikes", "Q1 \u0410\nQ2 \uff22", [None, None]),
    ("no such letter", "Q1 D\nQ2 Z", [None, None]),
    ("a dot", "Q1 A.\nQ2 (B)", [None, None]),
    ("two letters", "Q1 A B\nQ2 AB", [None, None]),
    ("prose before", "Here you are:\nQ1 A\nQ2 B", [None, None]),
    ("space around", "\n  Q1 A  \r\nQ2 B\n\n", ["A", "B"]),
    ("a zero-width space", "Q1 A\u200b\nQ2 \u200bB", [None, None]),
    ("JSON", '{"Q1": "A", "Q2": "B"}', [None, None]),
]

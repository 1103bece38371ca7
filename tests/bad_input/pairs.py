"""Rows that are not usable preference pairs, and the reason for which each is skipped."""


def message(role, content):
    return {"role": role, "content": content}


_TEXT = {"prompt": "Why?", "chosen": "So.", "rejected": "Hm."}
_CHAT = {
    "prompt": [message("user", "Why?")],
    "chosen": [message("assistant", "So.")],
    "rejected": [message("assistant", "Hm.")],
}

ROWS = [
    ("the same answer twice", _TEXT | {"rejected": "So."}, "chosen and rejected are the same"),
    ("nothing chosen", _TEXT | {"chosen": ""}, "empty answer"),
    ("only space", _CHAT | {"rejected": [message("assistant", " \n")]}, "empty answer"),
    ("null chosen", _TEXT | {"chosen": None}, "no chosen or no rejected"),
    ("no rejected", {"prompt": "Why?", "chosen": "So."}, "no chosen or no rejected"),
    ("empty prompt", _TEXT | {"prompt": ""}, "no prompt"),
    ("null prompt", _TEXT | {"prompt": None}, "no prompt"),
    ("no common prompt", {"chosen": "So.", "rejected": "Hm."}, "no prompt"),
    ("a number as prompt", _TEXT | {"prompt": 5}, "wrong type"),
    ("a number as answer", _TEXT | {"chosen": 5}, "wrong type"),
    ("an object as answer", _TEXT | {"chosen": {"answer": "So."}}, "wrong type"),
    ("no messages", _CHAT | {"chosen": []}, "wrong type"),
    ("words as messages", _CHAT | {"prompt": ["Why?"]}, "wrong type"),
    ("content in parts", _CHAT | {"prompt": [message("user", ["Why?"])]}, "wrong type"),
    ("an image", _CHAT | {"prompt": [message("user", [{"type": "image"}])]}, "content that is not text"),
    ("a role that is a list", _CHAT | {"prompt": [message(["user"], "Why?")]}, "wrong type"),
    ("half a turn of history", {"instruction": "a", "history": [["b"]], "chosen": "c", "rejected": "d"}, "wrong type"),
    ("a number as system message", {"question": "a", "system": 5, "chosen": "c", "rejected": "d"}, "wrong type"),
    ("tools that are not JSON", _CHAT | {"tools": "[" * 100_000}, "wrong type"),
    (
        "tools that are not tools",
        _CHAT | {"tools": [5]},
        "the chat template refuses the messages (user): 'Tools should either be a JSON schema, or a callable function "
        "with type hints and a docstring suitable for auto-conversio …'",
    ),
    (
        "a template of its own",
        _CHAT | {"chat_template_kwargs": {"chat_template": "{% for i in range(99999) %}{% endfor %}"}},
        "chat_template_kwargs that are not the template's",
    ),
    (
        "a reserved argument",
        _CHAT | {"chat_template_kwargs": {"tokenize": False}},
        "chat_template_kwargs that are not the template's",
    ),
    ("too long", _TEXT | {"prompt": "why " * 3000}, "too long"),
]

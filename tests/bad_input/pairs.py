"""Rows of preference pairs, and the reason why each is skipped."""


def said(role, content):
    return {"role": role, "content": content}


_TEXT = {"prompt": "Why?", "chosen": "So.", "rejected": "Hm."}
_CHAT = {
    "prompt": [said("user", "Why?")],
    "chosen": [said("assistant", "So.")],
    "rejected": [said("assistant", "Hm.")],
}

ROWS = [
    ("the same twice", _TEXT | {"rejected": "So."}, "chosen and rejected are the same"),
    ("nothing chosen", _TEXT | {"chosen": ""}, "empty answer"),
    ("only space", _CHAT | {"rejected": [said("assistant", " \n")]}, "empty answer"),
    ("null chosen", _TEXT | {"chosen": None}, "no chosen or no rejected"),
    ("no rejected", {"prompt": "Why?", "chosen": "So."}, "no chosen or no rejected"),
    ("empty prompt", _TEXT | {"prompt": ""}, "no prompt"),
    ("null prompt", _TEXT | {"prompt": None}, "no prompt"),
    ("no prompt in common", {"chosen": "So.", "rejected": "Hm."}, "no prompt"),
    ("a number for a prompt", _TEXT | {"prompt": 5}, "wrong type"),
    ("a number for an answer", _TEXT | {"chosen": 5}, "wrong type"),
    ("an object for an answer", _TEXT | {"chosen": {"answer": "So."}}, "wrong type"),
    ("no messages", _CHAT | {"chosen": []}, "wrong type"),
    ("words for messages", _CHAT | {"prompt": ["Why?"]}, "wrong type"),
    ("content in parts", _CHAT | {"prompt": [said("user", [{"type": "text", "text": "Why?"}])]}, "wrong type"),
    ("a role that is a list", _CHAT | {"prompt": [said(["user"], "Why?")]}, "wrong type"),
    ("half a turn of history", {"instruction": "a", "history": [["b"]], "chosen": "c", "rejected": "d"}, "wrong type"),
    ("a number for a system", {"question": "a", "system": 5, "chosen": "c", "rejected": "d"}, "wrong type"),
    ("tools that are no JSON", _CHAT | {"tools": "[" * 100_000}, "wrong type"),
    ("tools that are no tools", _CHAT | {"tools": [5]}, "the chat template refuses the messages"),
    (
        "a template of its own",
        _CHAT | {"chat_template_kwargs": {"chat_template": "{% for i in range(99999) %}{% endfor %}"}},
        "chat_template_kwargs that are not the template's",
    ),
    (
        "an argument of ours",
        _CHAT | {"chat_template_kwargs": {"tokenize": False}},
        "chat_template_kwargs that are not the template's",
    ),
    ("too long", _TEXT | {"prompt": "why " * 3000}, "too long"),
]

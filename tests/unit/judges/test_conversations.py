"""An instruction is a text or a list of messages, with the article at one place of the user's words."""

import pytest

from judges.base import user
from judges.text.conversations import fill_instruction, merge_system, read_instruction

SYSTEM = {"role": "system", "content": "You edit {language} news."}
EXAMPLE = [{"role": "user", "content": "Sum up: Rain."}, {"role": "assistant", "content": "It rains."}]
ASK = {"role": "user", "content": "Sum up: {article}"}


def test_a_text_is_one_message_of_the_user():
    assert read_instruction("Sum up: {article}") == user("Sum up: {article}")


def test_messages_may_have_a_system_message_and_examples():
    messages = read_instruction([SYSTEM, *EXAMPLE, ASK])
    assert messages == (SYSTEM, *EXAMPLE, ASK)
    article = "In der Nacht hat es geschneit, und {language} am Morgen lag der Schnee auf allen Straßen der Stadt."
    filled = fill_instruction(messages, article)
    assert [message["content"] for message in filled[::3]] == ["You edit German news.", f"Sum up: {article}"]


def test_the_system_message_may_go_into_the_first_message_of_the_user():
    merged = read_instruction([SYSTEM, *EXAMPLE, ASK], merge=True)
    assert merged[0] == {"role": "user", "content": "You edit {language} news.\n\nSum up: Rain."}
    assert merged[1:] == (EXAMPLE[1], ASK)
    with pytest.raises(ValueError, match="merge_system is set, and instruction has no system message to merge"):
        read_instruction("Sum up: {article}", merge=True)


@pytest.mark.parametrize(
    ("messages", "merged"),
    [
        ([], []),
        ([ASK, SYSTEM], [ASK, SYSTEM]),
        ([SYSTEM], [{"role": "user", "content": SYSTEM["content"]}]),
        ([SYSTEM, EXAMPLE[1]], [{"role": "user", "content": SYSTEM["content"]}, EXAMPLE[1]]),
        ([SYSTEM, SYSTEM | {"content": "b"}, ASK | {"content": "c", "x": 1}],
         [{"role": "user", "content": SYSTEM["content"] + "\n\nb\n\nc", "x": 1}]),
    ],
)  # fmt: skip
def test_merging_changes_leading_system_messages_only(messages, merged):
    assert merge_system(messages) == merged


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        ("Sum up.", "x must contain {article}"),
        ([], "x ends with nothing"),
        ([SYSTEM], "x ends with system: the last message should be the user's"),
        ([ASK, SYSTEM, EXAMPLE[0]], "x has a system message at place 1: it should be the first one"),
        ([EXAMPLE[0]], "x has {article} 0 times: it should have it once, in a message of the user"),
        ([ASK, EXAMPLE[1], ASK], "x has {article} 2 times"),
        ([{"role": "user", "content": "{article}{article}"}], "x has {article} 2 times"),
        ([SYSTEM | {"content": "{article}"}, EXAMPLE[0]], "x has {article} once, in a message that is not the user's"),
        ([SYSTEM | {"content": "{article}"}, ASK], "x has {article} 2 times"),
        (["Sum up."], "x[0] has str: a message should have role and content, and nothing else"),
        ([ASK | {"name": "Eve"}], "x[0] has ['content', 'name', 'role']"),
        ([{"role": "Human", "content": "{article}"}], "x[0] has the role 'Human': it should be one of system, user, "),
        ([ASK, EXAMPLE[1] | {"content": " "}, EXAMPLE[0]], "x[1] has the content ' ': it should be text"),
    ],
)
def test_a_wrong_instruction_is_refused(instruction, fault):
    with pytest.raises(ValueError, match=".") as caught:
        read_instruction(instruction, "x")
    assert str(caught.value).startswith(fault)

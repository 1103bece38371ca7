"""Models at servers that think: the thought is no part of the reply, and a server that cannot do it is refused."""

import pytest

from judges.base import Prompt, line_logps, user
from pipeline.config import UserError, hardware
from pipeline.config.base import Thinking
from pipeline.config.servers import ComparedModel, ServedModel
from pipeline.inference.server.openai_server import OpenAIServerEngine
from pipeline.inference.server.server_check import check_server
from tests.helpers.chat_server import ChatServer


def chat_prompt(**changes):
    return Prompt(user("hello"), **({"max_tokens": 60} | changes))


def thinking_reply(prompt, sample):
    return f"<think>hm {sample}</think>\n\nQ1 Unsure"


def opened_by_the_prompt(prompt, sample):
    return "hm, Q1 A?\n</think>Q1 Unsure"


def plain_reply(prompt, sample):
    return "Q1 Unsure"


def engine(server, thinking=None, **served):
    served = ServedModel(server="ours", **served)
    return OpenAIServerEngine("judge", served, hardware.Server(base_url=server.url, timeout=5, tries=1), thinking)


def check(server, thinking=None, logprobs=False, **served):
    settings = hardware.Hardware(servers={"ours": hardware.Server(base_url=server.url)})
    check_server("judge", "judge", ServedModel(server="ours", **served), settings, logprobs, thinking)


@pytest.mark.parametrize("form", [None, "regex", "json_schema"])
@pytest.mark.parametrize("field", [None, "reasoning", "reasoning_content"])
@pytest.mark.parametrize("script", [thinking_reply, opened_by_the_prompt])
def test_a_thought_is_no_part_of_the_reply(form, field, script):
    with ChatServer(script, reasoning_field=field) as server:
        prompt = chat_prompt(regex="Q1 (A|Unsure)", n=2) if form else chat_prompt(n=2)
        replies = engine(server, Thinking(), structured_outputs=form).generate([prompt])
        for number, sample in enumerate(replies[0].samples):
            assert sample.text == "Q1 Unsure"
            assert sample.thought.strip() == (f"hm {number}" if script is thinking_reply else "hm, Q1 A?")


def test_what_a_model_thought_in_spite_of_the_settings_is_no_part_of_the_reply():
    with ChatServer(thinking_reply) as server:
        assert engine(server).generate([chat_prompt()])[0].samples[0].text == "Q1 Unsure"


@pytest.mark.parametrize("form", [None, "regex", "json_schema"])
@pytest.mark.parametrize("field", [None, "reasoning"])
def test_a_turn_that_ends_inside_the_thought_is_an_empty_reply_and_no_failure(form, field):
    class OnlyThought(ChatServer):
        def _message(self, text, in_json):
            return {"content": None, "reasoning": text} if self.reasoning_field else {"content": f"<think>{text}"}

    with OnlyThought(plain_reply, reasoning_field=field) as server:
        prompt = chat_prompt(regex="Q1 A" if form else None, logprobs=form != "json_schema")
        (reply,) = engine(server, Thinking(), structured_outputs=form).generate([prompt])
        assert (reply.error, reply.samples[0].text, reply.samples[0].thought) == (None, "", "Q1 Unsure")
        assert reply.samples[0].token_logps == (None if form == "json_schema" else [])


def test_log_probabilities_are_those_of_the_answer():
    with ChatServer(thinking_reply) as server:
        prompt = chat_prompt(logprobs=True)
        (sample,) = engine(server, Thinking(), structured_outputs=None).generate([prompt])[0].samples
        assert "".join(text for text, _ in sample.token_logps) == "Q1 Unsure"
        assert line_logps(sample.token_logps, 2) == [sample.logp, None]
        assert sample.logp == -10.0  # nine letters and the stop token


@pytest.mark.parametrize(
    ("thinking", "switches", "max_tokens"),
    [
        (None, None, 60),
        (Thinking(budget=300), {"enable_thinking": True, "thinking": True}, 360),
        (Thinking(budget=0), {"enable_thinking": False, "thinking": False}, 60),
    ],
)
def test_the_server_is_told_to_think_and_gets_room_for_it(thinking, switches, max_tokens):
    with ChatServer(plain_reply) as server:
        engine(server, thinking).generate([chat_prompt()])
        assert server.bodies[0].get("chat_template_kwargs") == switches
        assert server.bodies[0]["max_tokens"] == max_tokens


def test_a_server_that_refuses_the_switch_is_not_sent_it():
    with ChatServer(plain_reply) as server:
        engine(server, Thinking(), extra_body={"chat_template_kwargs": None}).generate([chat_prompt()])
        assert "chat_template_kwargs" not in server.bodies[0]


def test_a_server_that_thinks_within_the_form_passes_the_check():
    with ChatServer(thinking_reply, reasoning_field="reasoning") as server:
        check(server, Thinking())
        check(server, Thinking(), structured_outputs=None)
        check(server, Thinking(), structured_outputs="json_schema")
        check(server, Thinking(), logprobs=True)


@pytest.mark.parametrize("field", [None, "reasoning"])
def test_a_server_that_does_not_stop_thinking_is_refused(field):
    with ChatServer(thinking_reply, reasoning_field=field) as server:
        for thinking in (None, Thinking(budget=0)):
            with pytest.raises(
                UserError, match=r"'judge', which thinks at .*set judge.thinking.budget .*or turn"
            ) as error:
                check(server, thinking)
            assert "judge.served.extra_body={chat_template_kwargs: {enable_thinking: false}}" in str(error.value)
        settings = hardware.Hardware(servers={"ours": hardware.Server(base_url=server.url)})
        with pytest.raises(UserError, match=r"compare.other.extra_body="):
            check_server("compare.other", "judge", ComparedModel(server="ours", model="judge"), settings)


def test_a_server_whose_form_prevents_thinking_is_refused():
    """vLLM without a reasoning parser: the grammar begins with the first token (vllm#47027)."""
    with ChatServer(plain_reply) as server:
        with pytest.raises(UserError, match=r"does not think: the form of replies \(regex\) .*--reasoning-parser"):
            check(server, Thinking())
        with pytest.raises(UserError, match=r"does not think: start vLLM with its --reasoning-parser"):
            check(server, Thinking(), structured_outputs=None)


def test_a_thought_that_only_the_usage_shows_is_enough():
    class Hosted(ChatServer):
        def _reply(self, body):
            reply = super()._reply(body)
            reply["usage"]["completion_tokens_details"] = {"reasoning_tokens": 7}
            return reply

    with Hosted(plain_reply) as server:
        check(server, Thinking())
        (reply,) = engine(server, Thinking()).generate([chat_prompt()])
        assert reply.usage["tokens_thought"] == 7


def test_a_reply_that_ends_inside_the_thought_is_refused_by_the_check():
    cut_off = pytest.raises(UserError, match=r"was cut off before its answer: raise judge.thinking.budget")
    with ChatServer(lambda prompt, sample: "<think>" + "hm " * 900) as server, cut_off:
        check(server, Thinking(budget=9))

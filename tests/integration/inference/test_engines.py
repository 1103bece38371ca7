"""Every engine keeps one contract: n samples per prompt, exact token ids, finish reasons; a bad prompt fails alone."""

import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from judges.base import Prompt, user
from pipeline.config.hardware import EngineHardware
from pipeline.config.hardware import Server as EngineServer
from pipeline.config.servers import ServedModel
from pipeline.inference.base import count_tokens
from pipeline.inference.scripted import ScriptedEngine
from pipeline.inference.server.openai_server import OpenAIServerEngine
from pipeline.training.modeling import loading
from pipeline.training.modeling.logprobs import plain_logps
from tests.helpers.chat_server import ChatServer
from tests.helpers.paths import POLICY_MODEL as POLICY

ARTICLE = "Summarize.\nOfficials said the scene was in Lima. The team was headed by Ana Santos."


def _script(prompt, sample):
    if "poison" in prompt.messages[0]["content"]:
        raise ValueError("prompt too long")
    return "A" if prompt.regex else f"summary {sample} of {prompt.messages[0]['content'][:200]}"


@pytest.fixture(scope="module")
def vllm():
    from pipeline.inference.vllm import VllmEngine

    hardware = EngineHardware(engine_kwargs={"max_num_seqs": 96})
    engine = VllmEngine(str(POLICY), "float32", 512, seed=0, hardware=hardware)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def http():
    with ChatServer(_script) as server:
        yield OpenAIServerEngine("judge", ServedModel(server="ours"), EngineServer(base_url=server.url))


@pytest.fixture(scope="module", params=["scripted", "vllm", "http"])
def engine(request):
    return ScriptedEngine(_script) if request.param == "scripted" else request.getfixturevalue(request.param)


PROMPT = Prompt(user(ARTICLE), max_tokens=80, temperature=1.0, n=3)


def test_vllm_gets_further_arguments(vllm):
    assert vllm.stepper.engine.vllm_config.scheduler_config.max_num_seqs == 96


def test_n_samples_with_ids_and_reasons(engine):
    replies = engine.generate([PROMPT, replace(PROMPT, n=1, temperature=0.0)])
    assert [len(reply.samples) for reply in replies] == [3, 1]
    for reply in replies:
        assert reply.error is None
        count = count_tokens([reply])
        assert count["tokens_in"] > 10
        assert 0 < count["tokens_out"] <= 80 * len(reply.samples)
        assert {sample.finish_reason for sample in reply.samples} <= {"stop", "length"}
        if isinstance(engine, OpenAIServerEngine):  # a chat server reports the counts, but not the ids
            assert (reply.prompt_ids, {tuple(sample.token_ids) for sample in reply.samples}) == ([], {()})
        else:
            assert len(reply.prompt_ids) == count["tokens_in"]
            assert sum(len(sample.token_ids) for sample in reply.samples) == count["tokens_out"]


def test_a_sample_that_was_cut_off_has_finish_reason_length(engine):
    (reply,) = engine.generate([replace(PROMPT, max_tokens=2)])
    assert {sample.finish_reason for sample in reply.samples} == {"length"}
    assert count_tokens([reply])["tokens_out"] == 2 * 3


def test_a_reply_matches_its_regex(engine):
    (reply,) = engine.generate([replace(PROMPT, regex="[A-E]", temperature=0.0, n=1)])
    assert re.fullmatch("[A-E]", reply.samples[0].text)


def test_a_prompt_too_long_fails_alone(engine):
    long = replace(PROMPT, messages=user("poison " * 600))
    replies = engine.generate([PROMPT, long, PROMPT])
    assert [reply.error for reply in replies] == [None, "prompt too long", None]
    assert [len(reply.samples) for reply in replies] == [3, 0, 3]


def test_tokens_are_counted(engine):
    replies = engine.generate([PROMPT, replace(PROMPT, messages=user("poison " * 600))])
    served, refused = count_tokens(replies[:1]), count_tokens(replies[1:])
    assert count_tokens(replies) == served
    assert served["tokens_in"] > 10
    assert served["tokens_out"] > 0
    assert not any(refused.values())


def test_log_probabilities_come_only_if_asked_for(engine):
    asked, not_asked = engine.generate([replace(PROMPT, logprobs=True), PROMPT])
    assert all(sample.logp < 0 for sample in asked.samples)
    assert all(sample.logp is None for sample in not_asked.samples)


def test_no_prompts_give_no_replies(engine):
    assert engine.generate([]) == []


def test_token_texts_and_log_probabilities_add_up_to_the_samples(engine):
    asked, not_asked = engine.generate([replace(PROMPT, logprobs=True), PROMPT])
    for sample in asked.samples:
        assert "".join(text for text, _ in sample.token_logps).removesuffix("</s>") == sample.text
        assert math.fsum(logp for _, logp in sample.token_logps) == pytest.approx(sample.logp, abs=1e-4)
    assert all(sample.token_logps is None for sample in not_asked.samples)


def test_log_probabilities_are_normalized_over_what_the_regex_allows(vllm):
    """The allowed tokens add up to 1, however unlikely they are. A token without alternative has probability 1."""
    (reply,) = vllm.generate([replace(PROMPT, regex="[AB]{2}!", n=128, logprobs=True, temperature=2.0)])
    firsts = {sample.token_logps[0] for sample in reply.samples}
    assert {letter for letter, _ in firsts} == {"A", "B"}
    assert math.fsum(math.exp(logp) for _, logp in firsts) == pytest.approx(1.0, abs=1e-5)
    assert all(sample.token_logps[2] == ("!", pytest.approx(0.0, abs=1e-5)) for sample in reply.samples)


def test_sampled_log_probabilities_are_the_models_own(vllm):
    """At any temperature, and whatever else shapes the samples: so they can serve as reference log-probabilities."""
    shaped = {"temperature": 1.7, "top_p": 0.9, "top_k": 9, "min_p": 0.01, "repetition_penalty": 1.3}
    (reply,) = vllm.generate([replace(PROMPT, logprobs=True, **shaped)])
    model = loading.load_model(POLICY, "float32")
    with torch.no_grad():
        expected = plain_logps(model, reply.prompt_ids, [sample.token_ids for sample in reply.samples])
    for sample, logp in zip(reply.samples, expected.tolist(), strict=True):
        assert sample.logp == pytest.approx(logp, abs=1e-3)


def test_a_stop_text_ends_a_summary_and_stays_in_its_tokens(vllm):
    (reply,) = vllm.generate([replace(PROMPT, n=8, stop=("e",))])
    stopped = [sample for sample in reply.samples if vllm.tokenizer.eos_token_id not in sample.token_ids]
    assert stopped
    for sample in stopped:
        assert sample.finish_reason == "stop" and "e" not in sample.text
        assert vllm.tokenizer.decode(sample.token_ids).startswith(f"{sample.text}e")


def test_ids_have_one_bos_and_the_stop_token_if_it_was_emitted(vllm):
    (reply,) = vllm.generate([PROMPT])
    bos, eos = vllm.tokenizer.bos_token_id, vllm.tokenizer.eos_token_id
    assert reply.prompt_ids[0] == bos
    assert reply.prompt_ids.count(bos) == 1
    for sample in reply.samples:
        if sample.finish_reason == "stop":
            assert sample.token_ids[-1] == eos
            assert sample.token_ids.count(eos) == 1
        assert vllm.tokenizer.decode(sample.token_ids, skip_special_tokens=True) == sample.text


def test_samples_of_a_prompt_differ_and_greedy_samples_do_not(vllm):
    (many,) = vllm.generate([replace(PROMPT, n=8)])
    assert len({sample.text for sample in many.samples}) > 1
    greedy = vllm.generate([replace(PROMPT, n=1, temperature=0.0)] * 2)
    assert greedy[0].samples[0].token_ids == greedy[1].samples[0].token_ids


def test_a_shared_prefix_is_found_in_the_cache(vllm):
    long = replace(PROMPT, messages=user("Officials said the scene was in Lima. " * 25 + "One."), n=1)
    vllm.generate([long])
    (again,) = vllm.generate([replace(long, messages=user("Officials said the scene was in Lima. " * 25 + "Two."))])
    assert again.cached_tokens > 50


def test_the_cache_finds_a_prefix_in_prompts_as_short_as_those_of_the_newsroom_judge(vllm):
    short = [replace(PROMPT, messages=user("The roof is red. " * 15 + end), n=1) for end in ("One.", "Two.")]
    first, second = (vllm.generate([prompt])[0] for prompt in short)
    assert 64 < len(second.prompt_ids) < 128
    assert (first.cached_tokens, second.cached_tokens) == (0, 64)


def test_callers_in_several_threads_get_their_own_replies(engine):
    """Prompts differ in number and length of samples, so a reply to another prompt would show."""
    prompts = [
        replace(PROMPT, messages=user(f"Summarize.\nThe team was headed by {name}."), n=1 + i % 3, max_tokens=4 + i)
        for i, name in enumerate(("Ana Santos", "Omar Khan", "Rosa Lopez", "Hugo Weber", "Zoe Xu", "Ana Novak"))
    ]
    expected_ids = [engine.generate([prompt])[0].prompt_ids for prompt in prompts]
    with ThreadPoolExecutor(6) as threads:
        replies = list(threads.map(lambda i: engine.generate([prompts[i], prompts[i - 1]]), [*range(6)] * 3))
    for call, (first, second) in enumerate(replies):
        for i, reply in ((call % 6, first), (call % 6 - 1, second)):
            assert reply.error is None
            assert reply.prompt_ids == expected_ids[i]
            assert len(reply.samples) == prompts[i].n
            assert all(len(sample.token_ids) <= prompts[i].max_tokens for sample in reply.samples)


def test_a_prompt_that_vllm_refuses_fails_alone(vllm):
    replies = vllm.generate([PROMPT, replace(PROMPT, regex="(unclosed"), PROMPT])
    assert [reply.error is None for reply in replies] == [True, False, True]
    assert replies[1].error.startswith("refused by the engine: ")
    assert len(replies[1].error) < 120 and replies[1].samples == []


def test_a_new_batch_starts_before_the_last_batch_has_finished(vllm):
    """The engine does not run empty: a short batch that comes late is served while a long batch still runs."""
    long = replace(PROMPT, n=8, max_tokens=200, regex="( the| a){150,}")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(vllm.generate, [long])
        while not vllm.stepper.engine.has_unfinished_requests():
            time.sleep(0.001)
        second = threads.submit(vllm.generate, [replace(PROMPT, n=1, max_tokens=2)])
        assert second.result()[0].error is None
        assert not first.done()
        assert len(first.result()[0].samples) == 8


def test_an_engine_that_breaks_raises_for_waiting_and_later_callers():
    from pipeline.inference.base import EngineDied
    from pipeline.inference.vllm import VllmEngine

    engine = VllmEngine(str(POLICY), "float32", 512, seed=0, hardware=EngineHardware())
    real_step, steps = engine.stepper.engine.step, iter(range(20))

    def step():
        if next(steps, None) is None:
            raise AssertionError("no block is free")
        return real_step()

    engine.stepper.engine.step = step
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(engine.generate, [replace(PROMPT, max_tokens=200)] * 4) for _ in range(3)]
        for call in calls:
            with pytest.raises(EngineDied, match="no block is free"):
                call.result(timeout=60)
    with pytest.raises(EngineDied, match="no block is free"):
        engine.generate([PROMPT])


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Adapters of two rounds on one base, as the trainer writes them, with a rank that vLLM must round up."""
    import torch

    from pipeline.config.training import Lora
    from pipeline.training.modeling import loading

    lora = Lora(r=4, lora_alpha=8).model_dump()
    folders = []
    for draw in (1, 2):
        model = loading.load_policy(POLICY, "float32", lora, seed=0)
        generator = torch.Generator().manual_seed(draw)
        state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        for name, tensor in state.items():
            if "lora_B" in name:
                tensor.normal_(0, 0.15, generator=generator)
        folders.append(str(tmp_path_factory.mktemp("adapter")))
        loading.save_model(state, POLICY, folders[-1], lora)
    return folders


def test_an_adapter_is_served_without_merging_and_never_from_the_last_rounds_cache(adapters, vllm, tmp_path):
    """Greedy tokens equal those of Hugging Face with the same adapter, and differ between the adapters and the base."""
    import torch

    from pipeline.inference.vllm import VllmEngine, lora_request
    from pipeline.training.modeling import loading

    engine = VllmEngine(adapters[0], "float32", 512, seed=0, hardware=EngineHardware())
    greedy = replace(PROMPT, n=1, temperature=0.0, max_tokens=30)
    served = {}
    for folder in (*adapters, adapters[0]):
        engine.adapter = lora_request(folder)  # the same engine, with the prompt in its prefix cache
        (reply,) = engine.generate([greedy])
        ids = reply.samples[0].token_ids
        assert served.setdefault(folder, ids) == ids
        model = loading.load_model(folder, "float32")
        prompt = torch.tensor([reply.prompt_ids])
        expected = model.generate(prompt, max_new_tokens=30, do_sample=False)[0, len(reply.prompt_ids) :]
        assert ids == expected.tolist()
    base_ids = vllm.generate([greedy])[0].samples[0].token_ids
    assert len({tuple(ids) for ids in (base_ids, *served.values())}) == 3


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]", 1),  # like Mistral: BOS in the template
        ("{{ bos_token }}<|user|>{{ messages[0]['content'] }}<|eot|>", 1),  # like Llama 3
        ("<|im_start|>user\n{{ messages[0]['content'] }}<|im_end|>", 0),  # like Qwen: no BOS at all
        (None, 1),  # a base model without a template: the tokenizer writes it
    ],
)
def test_token_ids_have_the_templates_bos_and_no_second_one(shared_data, template, expected):
    from transformers import AutoTokenizer

    from pipeline.inference.vllm import encode_messages

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / "stories260K")
    tokenizer.chat_template = template
    ids = encode_messages(tokenizer, user("Once upon a time"))
    assert ids.count(tokenizer.bos_token_id) == expected
    assert "Once upon a time" in tokenizer.decode(ids)


def test_two_bos_tokens_are_refused(shared_data):
    from transformers import AutoTokenizer

    from pipeline.inference.vllm import encode_messages

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / "stories260K")
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="both write a BOS token"):
        encode_messages(tokenizer, user("Once"))

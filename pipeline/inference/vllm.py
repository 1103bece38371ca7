"""vLLM in this process: token ids in; token ids, text and finish reasons out.

The only module that imports vLLM, and only when an engine is made, inside its actor. Left out: when the engine steps
(`stepping.py`), streaming of tokens, and servers (an HTTP engine's business).
"""

import gc
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from judges.base import Prompt
from pipeline.config.hardware import EngineHardware
from pipeline.inference.base import EngineDied, Reply, Sample
from pipeline.inference.special_tokens import break_special_tokens, special_tokens_of
from pipeline.inference.vllm_stepper import Stepper
from pipeline.storage.model_files.hub import adapter_config, fetch

_ENVIRONMENT = {
    # The engine core shares our process: it dies with its actor, and no second Python start is paid.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CONFIGURE_LOGGING": "1",
    "TQDM_DISABLE": "1",
}


class VllmEngine:
    """Samples from a Hugging Face model with vLLM, or from a LoRA adapter on its base, which is not merged.

    Args:
        model: folder of a model or of an adapter, on this machine.
        dtype: "float32" or "bfloat16".
        max_model_len: the longest prompt with its completion, in tokens; None: what the model allows.
        seed: of the engine. Requests carry none of their own: a per-request seed makes a CPU engine slow, and has
            killed one; the engine's draws are as random.
        hardware: GPUs, memory.

    A prompt that leaves less than `max_tokens` of room, or that vLLM refuses, gets a Reply with an error; it is never
    cut. Several threads may call `generate`: their prompts run together, which keeps the engine full. Prompts that run
    together are drawn for by turns, so that samples depend on who else was there, as they do on any server.
    """

    def __init__(self, model: str, dtype: str, max_model_len: int | None, seed: int, hardware: EngineHardware):
        os.environ.update(_ENVIRONMENT | {"VLLM_CPU_KVCACHE_SPACE": str(hardware.kvcache_space)})
        from transformers import AutoTokenizer
        from vllm import LLM
        from vllm.config.lora import MaxLoRARanks
        from vllm.exceptions import VLLMClientError

        gc.freeze()  # the engine collects garbage five times as it starts: none of it is among a million module objects
        gpus = hardware.gpus_per_replica
        if not gpus:
            # Ray gives each actor its share of the CPUs; binding threads to cores would put all actors on the first.
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        adapter = adapter_config(model)
        self.adapter = None if adapter is None else lora_request(model)
        more: dict[str, Any] = {}
        if not gpus:
            # The least that its attention takes, and a quarter of its default: what prompts share is found in whole
            # blocks, and a judge's prompts differ before they fill one of 128. Fewer tokens are computed twice.
            more["block_size"] = 32
        if adapter is not None:
            ranks = [rank for rank in get_args(MaxLoRARanks) if rank >= adapter["r"]]
            if not ranks:
                raise ValueError(f"{model} has r={adapter['r']}, and vLLM takes {max(get_args(MaxLoRARanks))} at most")
            more |= {"enable_lora": True, "max_lora_rank": min(ranks)}

        def make() -> Any:
            return LLM(
                model=model if adapter is None else fetch(adapter["base_model_name_or_path"]),
                dtype=dtype,
                max_model_len=max_model_len,
                seed=seed,
                tensor_parallel_size=max(1, int(gpus)),
                distributed_executor_backend="mp" if gpus > 1 else "uni",
                gpu_memory_utilization=hardware.gpu_memory_utilization,
                enable_prefix_caching=True,
                enforce_eager=not gpus,  # on a CPU, compiling costs more than a stage takes
                disable_log_stats=True,
                trust_remote_code=False,
                load_format="safetensors",  # else a folder without them would be unpickled
                **more,
            ).llm_engine

        self.stepper = Stepper(make, (ValueError, VLLMClientError))
        self.tokenizer = self.stepper.engine.get_tokenizer()
        if adapter is not None and Path(model, "tokenizer_config.json").is_file():
            # What an adapter was trained with, a chat template above all. Not by vLLM: it looks for a model beside it.
            self.tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        self.tokenizing = threading.Lock()  # a fast tokenizer that one thread changes and another uses raises
        self.room = self.stepper.engine.model_config.max_model_len

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        with self.tokenizing:
            replies = [self._tokenize(prompt) for prompt in prompts]
        served = [i for i, reply in enumerate(replies) if reply.error is None]
        requests = [self._request(prompts[i], replies[i].prompt_ids) for i in served]
        try:
            outputs = self.stepper.serve(requests)
        except Exception as error:
            raise EngineDied(f"vLLM: {error}") from error
        for i, output in zip(served, outputs, strict=True):
            replies[i] = _reply(replies[i].prompt_ids, output)
        return replies

    def close(self) -> None:
        """Let go of the model. An engine in an actor need not: it goes with its process."""
        self.stepper.close()

    def _request(self, prompt: Prompt, prompt_ids: list[int]) -> dict[str, Any]:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        params = SamplingParams(
            n=prompt.n,
            temperature=prompt.temperature,
            top_p=prompt.top_p,
            max_tokens=prompt.max_tokens,
            logprobs=0 if prompt.logprobs else None,  # 0: of the sampled token, and of no others
            structured_outputs=StructuredOutputsParams(regex=prompt.regex) if prompt.regex else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return {"prompt": tokens_input(prompt_ids), "params": params, "lora_request": self.adapter}

    def _tokenize(self, prompt: Prompt) -> Reply:
        ids = encode_messages(self.tokenizer, break_special_tokens(prompt, special_tokens_of(self.tokenizer)))
        if len(ids) + prompt.max_tokens > self.room:
            return Reply(ids, error="prompt too long")
        return Reply(ids)


def _reply(prompt_ids: list[int], output: Any) -> Reply:
    """What vLLM's output, or its refusal, says of a prompt."""
    if isinstance(output, Exception):
        return Reply(prompt_ids, error=f"refused by the engine: {' '.join(str(output).split())[:80]}")
    assert list(output.prompt_token_ids) == prompt_ids, "vLLM changed the prompt's token ids"
    ends = {str(o.finish_reason) for o in output.outputs}
    if not ends <= {"stop", "length"}:
        return Reply(prompt_ids, error=f"given up by the engine: {', '.join(sorted(ends - {'stop', 'length'}))}")
    samples = [
        Sample(o.text, list(o.token_ids), str(o.finish_reason), o.cumulative_logprob, token_logps(o))
        for o in output.outputs
    ]
    return Reply(prompt_ids, samples, output.num_cached_tokens or 0)


def token_logps(output: Any) -> list[tuple[str, float]] | None:
    """Each sampled token's text and log-probability, where they were asked for.

    vLLM masks what a regex forbids before it takes the log-softmax: a token that the regex leaves no choice has 0.
    """
    if output.logprobs is None:
        return None
    of_each = [there[token] for token, there in zip(output.token_ids, output.logprobs, strict=True)]
    return [(entry.decoded_token or "", entry.logprob) for entry in of_each]


def lora_request(folder: str) -> Any:
    """vLLM's word for an adapter folder, by a name and a number of its own: of its bytes, wherever it lies.

    vLLM keeps adapters by number and serves what it has under it, so that a later adapter would go unread.
    """
    from vllm.lora.request import LoRARequest

    with Path(folder, "adapter_model.safetensors").open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()
    return LoRARequest(name, 1 + int(name, 16) % (2**31 - 1), folder)


def encode_messages(tokenizer, messages: Sequence[dict[str, str]]) -> list[int]:  # type: ignore[no-untyped-def]
    """The token ids of a conversation, ready to be answered.

    By the tokenizer's chat template, which writes its own BOS; a model without a template is given the bare text.
    Ids, never strings, go to the engine: it would put a second BOS before a string that already has one.
    """
    if tokenizer.chat_template is None:
        ids = tokenizer("\n".join(message["content"] for message in messages))["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            enable_thinking=False,  # where a template has it (Qwen3): a constrained reply has no room to think in
        )
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        raise ValueError("the chat template and the tokenizer both write a BOS token; mend the chat template")
    return list(ids)

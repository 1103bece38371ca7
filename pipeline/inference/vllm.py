"""Runs vLLM in this process: token ids in; token ids, text and finish reasons out.

This is the only module that imports vLLM. It does so only when an engine is made, inside the engine's actor.
`vllm_stepper.py` decides when the engine steps. Prompts for a vLLM server are sent by `server/openai_server.py`.
"""

import gc
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from judges.base import Prompt, Sample
from pipeline.config.hardware import EngineHardware
from pipeline.config.messages import one_line
from pipeline.inference.base import EngineDied, Reply
from pipeline.inference.special_tokens import break_special_tokens, special_tokens_of
from pipeline.inference.vllm_stepper import Stepper
from pipeline.storage.model_files.hub import adapter_config, fetch

_ENVIRONMENT = {
    # Run the engine core in our process: it dies with its actor, and no second Python start is needed.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CONFIGURE_LOGGING": "1",
    "TQDM_DISABLE": "1",
}


class VllmEngine:
    """Samples from a Hugging Face model with vLLM, or from a LoRA adapter on its base, without merging it.

    A prompt that leaves less than `max_tokens` of the context, or that vLLM refuses, gets a Reply with an error. It is
    never cut. Several threads may call `generate`: their prompts run together, which keeps the engine full. Prompts
    that run together share one random stream, so samples depend on what else was running, as on any server.

    Args:
        model: folder of a model or of an adapter, on this machine.
        dtype: "float32" or "bfloat16".
        max_model_len: the longest prompt with its completion, in tokens. None: what the model allows.
        seed: the seed of the engine. Requests have no seeds of their own: these make an engine on a CPU slow, and have
            crashed one. Samples are just as random without them.
        hardware: GPUs and memory.
    """

    def __init__(self, model: str, dtype: str, max_model_len: int | None, seed: int, hardware: EngineHardware):
        os.environ.update(_ENVIRONMENT | {"VLLM_CPU_KVCACHE_SPACE": str(hardware.kvcache_space)})
        from transformers import AutoTokenizer
        from vllm import LLM
        from vllm.exceptions import VLLMClientError

        # The engine collects garbage five times while it starts: skip the million objects of imported modules.
        gc.freeze()
        gpus = hardware.gpus_per_replica
        if not gpus:
            # Ray gives each actor its share of the CPUs. Binding threads to cores would put all actors on the first.
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        adapter = adapter_config(model)
        self.adapter = None if adapter is None else lora_request(model)
        options = ({} if gpus else _cpu_options()) | ({} if adapter is None else _lora_options(model, adapter["r"]))

        def make_engine() -> Any:
            return LLM(
                model=model if adapter is None else fetch(adapter["base_model_name_or_path"]),
                dtype=dtype,
                max_model_len=max_model_len,
                seed=seed,
                tensor_parallel_size=max(1, int(gpus)),
                distributed_executor_backend="mp" if gpus > 1 else "uni",
                gpu_memory_utilization=hardware.gpu_memory_utilization,
                enable_prefix_caching=True,
                enforce_eager=not gpus,  # on a CPU, compiling takes longer than a stage
                disable_log_stats=True,
                trust_remote_code=False,
                load_format="safetensors",  # otherwise a folder without safetensors would be unpickled
                **options,
            ).llm_engine

        self.stepper = Stepper(make_engine, (ValueError, VLLMClientError))
        self.tokenizer = self.stepper.engine.get_tokenizer()
        if adapter is not None and Path(model, "tokenizer_config.json").is_file():
            # The adapter's own tokenizer, above all its chat template. vLLM cannot load it: it expects a model there.
            self.tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        self.tokenizer_lock = threading.Lock()  # a fast tokenizer raises if one thread changes it while another uses it
        self.max_model_len = self.stepper.engine.model_config.max_model_len

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        with self.tokenizer_lock:
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
        """Release the model. An engine in an actor need not be closed: it ends with its process."""
        self.stepper.close()

    def _tokenize(self, prompt: Prompt) -> Reply:
        ids = encode_messages(self.tokenizer, break_special_tokens(prompt, special_tokens_of(self.tokenizer)))
        if len(ids) + prompt.max_tokens > self.max_model_len:
            return Reply(ids, error="prompt too long")
        return Reply(ids)

    def _request(self, prompt: Prompt, prompt_ids: list[int]) -> dict[str, Any]:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        params = SamplingParams(
            n=prompt.n,
            temperature=prompt.temperature,
            top_p=prompt.top_p,
            max_tokens=prompt.max_tokens,
            logprobs=0 if prompt.logprobs else None,  # 0: only of the sampled token
            structured_outputs=StructuredOutputsParams(regex=prompt.regex) if prompt.regex else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return {"prompt": tokens_input(prompt_ids), "params": params, "lora_request": self.adapter}


def _cpu_options() -> dict[str, Any]:
    # The smallest block that vLLM's CPU attention accepts, a quarter of its default of 128. Prefixes are shared in
    # whole blocks, and a judge's prompts differ before they fill 128 tokens. So fewer tokens are computed twice.
    return {"block_size": 32}


def _lora_options(model: str, rank: int) -> dict[str, Any]:
    from vllm.config.lora import MaxLoRARanks

    supported = get_args(MaxLoRARanks)
    large_enough = [max_rank for max_rank in supported if max_rank >= rank]
    if not large_enough:
        raise ValueError(f"{model} has r={rank}, and vLLM supports at most {max(supported)}: train with a smaller r")
    return {"enable_lora": True, "max_lora_rank": min(large_enough)}


def _reply(prompt_ids: list[int], output: Any) -> Reply:
    """Make a Reply from vLLM's output, or from the exception with which vLLM refused the prompt."""
    if isinstance(output, Exception):
        # Cut without "…": skipped rows are counted by this text, and records on disk hold it in this form.
        return Reply(prompt_ids, error=f"refused by the engine: {one_line(str(output))[:80]}")
    assert list(output.prompt_token_ids) == prompt_ids, "vLLM changed the prompt's token ids"
    finish_reasons = {str(completion.finish_reason) for completion in output.outputs}
    if not finish_reasons <= {"stop", "length"}:
        unexpected = ", ".join(sorted(finish_reasons - {"stop", "length"}))
        return Reply(prompt_ids, error=f"given up by the engine: {unexpected}")
    samples = [
        Sample(o.text, list(o.token_ids), str(o.finish_reason), o.cumulative_logprob, read_token_logps(o))
        for o in output.outputs
    ]
    return Reply(prompt_ids, samples, output.num_cached_tokens or 0)


def read_token_logps(output: Any) -> list[tuple[str, float]] | None:
    """Text and log-probability of each sampled token; None if the prompt did not ask for log-probabilities.

    vLLM masks the tokens that a regex forbids before it takes the log-softmax: where the regex allows a single token,
    its log-probability is 0.
    """
    if output.logprobs is None:
        return None
    entries = [candidates[token] for token, candidates in zip(output.token_ids, output.logprobs, strict=True)]
    return [(entry.decoded_token or "", entry.logprob) for entry in entries]


def lora_request(folder: str) -> Any:
    """A vLLM `LoRARequest` for an adapter folder. Its name and number come from the weights, not from the path.

    vLLM caches adapters by number. If a later adapter had the number of an earlier one, vLLM would serve the earlier
    adapter.
    """
    from vllm.lora.request import LoRARequest

    with Path(folder, "adapter_model.safetensors").open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()
    return LoRARequest(name, 1 + int(name, 16) % (2**31 - 1), folder)


def encode_messages(tokenizer, messages: Sequence[dict[str, str]]) -> list[int]:  # type: ignore[no-untyped-def]
    """The token ids of a conversation that the model will continue.

    The tokenizer's chat template writes its own BOS. A model without a template gets the bare text. The engine always
    gets ids, never strings, because it would put a second BOS before a string that already has one.

    Raises:
        ValueError: the template and the tokenizer both write a BOS token.
    """
    if tokenizer.chat_template is None:
        ids = tokenizer("\n".join(message["content"] for message in messages))["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            enable_thinking=False,  # for templates that know it (Qwen3): a constrained reply has no room for thinking
        )
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        raise ValueError("the chat template and the tokenizer both write a BOS token: remove it from the chat template")
    return list(ids)

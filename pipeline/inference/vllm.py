"""Runs vLLM in this process: token ids in; token ids, text and finish reasons out.

This is the only module that imports vLLM. It does so only when an engine is made, inside the engine's actor.
`vllm_stepper.py` decides when the engine steps. Prompts for a vLLM server are sent by `server/openai_server.py`.
"""

import gc
import hashlib
import math
import os
import threading
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from judges.base import Prompt, Sample
from pipeline.config import UserError
from pipeline.config.base import Thinking
from pipeline.config.hardware import EngineHardware
from pipeline.config.messages import one_line
from pipeline.inference.base import EngineDied, Reply
from pipeline.inference.special_tokens import break_special_tokens, special_tokens_of
from pipeline.inference.thinking import (
    Thinker,
    answer_tokens,
    close_thought,
    make_thinker,
    strip_thoughts,
    template_switches,
)
from pipeline.inference.vllm_stepper import Stepper
from pipeline.storage.model_files import chat_template
from pipeline.storage.model_files.engine_check import EngineCheck, read_engine_check
from pipeline.storage.model_files.hub import adapter_config, fetch

_NO_THINKER = Thinker()
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

    A model that thinks is asked twice: first for the thought, which ends at its closing tag or its budget, and then for
    the answer after it. So the budget, the grammar and `max_tokens` of the answer hold for every model, and the thought
    itself is never constrained. (vLLM's own reasoning parsers are for single families, and their budget counts
    differently for each.) The second request finds the first one's tokens in the prefix cache.

    Args:
        model: folder of a model or of an adapter, on this machine.
        dtype: "float32" or "bfloat16".
        max_model_len: the longest prompt with its completion, in tokens. None: what the model allows.
        seed: the seed of the engine. Requests have no seeds of their own: these make an engine on a CPU slow, and have
            crashed one. Samples are just as random without them.
        hardware: GPUs, memory, and further arguments for vLLM.
        thinking: how the model thinks; None: it is told not to.
        section: the section of the settings that describes the model, for messages.
        lora_rank: the rank of adapters that `load` may get; None: there will be none.
        can_sleep: whether `sleep` may be called. On a GPU vLLM then has another allocator.

    Raises:
        UserError: as `check`. `generate` raises it if the model cannot think as the settings say, or cannot be told not
            to think.
    """

    def __init__(
        self,
        model: str,
        dtype: str,
        max_model_len: int | None,
        seed: int,
        hardware: EngineHardware,
        thinking: Thinking | None = None,
        section: str = "policy",
        lora_rank: int | None = None,
        can_sleep: bool = False,
    ):
        os.environ.update(_ENVIRONMENT | {"VLLM_CPU_KVCACHE_SPACE": str(hardware.kvcache_space)})
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
        self.weights = model if adapter is None else fetch(adapter["base_model_name_or_path"])  # without the adapter
        self.lora_rank = max(filter(None, (lora_rank, adapter and adapter["r"])), default=None)
        options = ({} if gpus else _cpu_options()) | (_lora_options(model, self.lora_rank) if self.lora_rank else {})
        options |= hardware.engine_kwargs

        def make_engine() -> Any:
            return LLM(
                model=self.weights,
                dtype=dtype,
                max_model_len=max_model_len,
                seed=seed,
                tensor_parallel_size=hardware.tensor_parallel_size,
                distributed_executor_backend=_executor(hardware),
                gpu_memory_utilization=hardware.gpu_memory_utilization,
                enable_prefix_caching=True,
                disable_log_stats=True,
                trust_remote_code=False,
                load_format="safetensors",  # otherwise a folder without safetensors would be unpickled
                enable_sleep_mode=bool(gpus) and can_sleep,
                **options,
            ).llm_engine

        self.stepper = Stepper(make_engine, (ValueError, VLLMClientError))
        self.tokenizer_lock = threading.Lock()  # a fast tokenizer raises if one thread changes it while another uses it
        self.max_model_len = self.stepper.engine.model_config.max_model_len
        self.thinking, self.section = thinking, section
        self._use_tokenizer(model)
        self.check(model)

    def _use_tokenizer(self, model: str) -> None:
        """Take the model's tokenizer, above all its chat template, and find out how the model thinks."""
        from transformers import AutoTokenizer

        self.tokenizer = self.stepper.engine.get_tokenizer()
        if self.adapter is not None and Path(model, "tokenizer_config.json").is_file():
            # The adapter's own tokenizer. vLLM cannot load it: it expects a model there.
            self.tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        self.thinker, self.refusal = Thinker(), ""
        self.closing_ids: list[int] = []
        try:
            self.thinker = make_thinker(self.tokenizer, self.thinking, self.section, model)
            self.closing_ids = self._encode(self.thinker.tags[1]) if self.thinker.tags else []
        except UserError as error:
            self.refusal = str(error)

    def load(self, model: str) -> None:
        """Serve another policy from now on: load its weights, or its adapter, into the running engine.

        Args:
            model: folder of a model of the same shape, or of an adapter on the model that the engine was made with.

        Raises:
            UserError: as `check`.
            EngineDied: vLLM could not load it. What the engine holds now is unknown.
        """
        adapter = adapter_config(model)
        weights = model if adapter is None else fetch(adapter["base_model_name_or_path"])
        try:
            if (old_adapter := self.adapter) is not None:
                self.stepper.call(lambda engine: engine.remove_lora(old_adapter.lora_int_id))
            if weights != self.weights:
                self.stepper.call(lambda engine: _reload_weights(engine, weights))
            # The keys of the cache name tokens and adapters, and not weights (vllm#42125).
            if not self.stepper.call(lambda engine: engine.reset_prefix_cache()):
                raise EngineDied("vLLM could not reset the prefix cache")
        except EngineDied:
            raise
        except Exception as error:
            raise EngineDied(f"vLLM could not load {model}: {error}") from error
        self.weights, self.adapter = weights, None if adapter is None else lora_request(model)
        if adapter is not None and adapter["r"] > (self.lora_rank or 0):
            raise EngineDied(f"the engine has room for adapters of r={self.lora_rank or 0}, {model} has {adapter['r']}")
        self._use_tokenizer(model)
        self.check(model)

    def check(self, model: str) -> None:
        """Check that the engine holds the weights of a trained policy. A model that was not trained here passes.

        Raises:
            UserError: its log-probabilities of some samples are not those that the trainer computed.
        """
        expected = read_engine_check(model)
        if expected is None:
            return
        gap = expected.largest_gap(self._logps(expected))
        if not gap <= expected.limit:  # `not <=` also catches nan
            raise UserError(
                f"vLLM has loaded {model}, and its log-probabilities differ from the trainer's by up to {gap:.2g} nats "
                f"per token, where rounding and the policy's passport explain {expected.limit:.2g}: it serves other "
                "weights. Set hardware.keep_engines=false, which starts a new engine for every stage"
            )

    def _logps(self, check: EngineCheck) -> list[list[float]]:
        """The log-probability of each of the check's sequences, in nats.

        One request samples each token, and may sample no other. vLLM's `prompt_logprobs` would take one request for a
        sequence, but fail in an engine that has room for adapters.
        """
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        def request(ids: list[int], token: int) -> dict[str, Any]:
            # Without a change of `logprobs_mode`, vLLM computes log-probabilities before it applies the restriction.
            params = SamplingParams(
                max_tokens=1,
                temperature=0.0,
                logprobs=0,
                allowed_token_ids=[token],
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            return {"prompt": tokens_input(ids), "params": params, "lora_request": self.adapter}

        rows = list(zip(check.prompts, check.sequences, strict=True))
        requests = [
            request([*prompt, *ids[:place]], token)
            for prompt, sequences in rows
            for ids in sequences
            for place, token in enumerate(ids)
        ]
        logps = iter([_only_logp(output) for output in self._serve(requests)])
        return [[math.fsum(islice(logps, len(ids))) for ids in sequences] for _, sequences in rows]

    def sleep(self) -> None:
        """Give up the GPU's memory: vLLM moves the weights to the CPU's, and drops the key-value cache."""
        self.stepper.call(lambda engine: engine.sleep(1))

    def wake_up(self) -> None:
        """Take the GPU's memory back. Without effect on an engine that is awake."""
        self.stepper.call(lambda engine: engine.wake_up())

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        if self.refusal:
            raise UserError(self.refusal)
        with self.tokenizer_lock:
            replies = [self._tokenize(prompt) for prompt in prompts]
        served = [i for i, reply in enumerate(replies) if reply.error is None]
        if self.thinker.thinks:
            return self._think_and_answer(prompts, replies, served)
        outputs = self._serve([self._request(prompts[i], replies[i].prompt_ids) for i in served])
        for i, output in zip(served, outputs, strict=True):
            error = _error_of(output, replies[i].prompt_ids)
            samples = [] if error else [self._sample(completion) for completion in output.outputs]
            replies[i] = Reply(replies[i].prompt_ids, samples, 0 if error else output.num_cached_tokens or 0, error)
        return replies

    def close(self) -> None:
        """Release the model. An engine in an actor need not be closed: it ends with its process."""
        self.stepper.close()

    def _serve(self, requests: list[dict[str, Any]]) -> list[Any]:
        try:
            return self.stepper.serve(requests)
        except Exception as error:
            raise EngineDied(f"vLLM: {error}") from error

    def _tokenize(self, prompt: Prompt) -> Reply:
        messages = break_special_tokens(prompt, special_tokens_of(self.tokenizer))
        ids = encode_messages(self.tokenizer, messages, self.thinker)
        longest = len(ids) + prompt.max_tokens
        if self.thinker.thinks:
            longest += (self.thinker.budget or 0) + len(self.closing_ids)
        return Reply(ids, error="prompt too long" if longest > self.max_model_len else None)

    def _request(self, prompt: Prompt, prompt_ids: list[int], **changes: Any) -> dict[str, Any]:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        params = {
            "n": prompt.n,
            "temperature": prompt.temperature,
            "top_p": prompt.top_p,
            "top_k": prompt.top_k,
            "min_p": prompt.min_p,
            "repetition_penalty": prompt.repetition_penalty,
            "stop": list(prompt.stop),
            "max_tokens": prompt.max_tokens,
            "logprobs": 0 if prompt.logprobs else None,  # 0: only of the sampled token
            "structured_outputs": StructuredOutputsParams(regex=prompt.regex) if prompt.regex else None,
            "output_kind": RequestOutputKind.FINAL_ONLY,
        } | changes
        return {"prompt": tokens_input(prompt_ids), "params": SamplingParams(**params), "lora_request": self.adapter}

    def _sample(self, completion: Any, thought: "_Thought | None" = None) -> Sample:
        """Make a Sample of vLLM's completion, or of a thought and the completion that followed it."""
        tags = self.thinker.tags
        # A model may think where it was told not to, or once more after its thought was closed.
        strayed, text = strip_thoughts(completion.text, [tags] if tags else [])
        token_logps = read_token_logps(completion)
        if token_logps is not None and strayed is not None:
            token_logps = answer_tokens(token_logps, text) or []
        sample = Sample(
            text,
            list(completion.token_ids),
            str(completion.finish_reason),
            completion.cumulative_logprob,
            token_logps,
            strayed,
        )
        return sample if thought is None else thought.before(sample)

    # Thoughts

    def _think_and_answer(self, prompts: Sequence[Prompt], replies: list[Reply], served: Sequence[int]) -> list[Reply]:
        """Sample the thoughts of all prompts, and then one answer after each thought."""
        outputs = self._serve([self._thought_request(prompts[i], replies[i].prompt_ids) for i in served])
        thoughts: dict[int, list[_Thought]] = {}
        for i, output in zip(served, outputs, strict=True):
            ids = replies[i].prompt_ids
            if error := _error_of(output, ids):
                replies[i] = Reply(ids, error=error)
                continue
            with self.tokenizer_lock:
                thoughts[i] = [self._read_thought(completion) for completion in output.outputs]
            replies[i] = Reply(ids, [], output.num_cached_tokens or 0)
        answered = [(i, thought) for i, of_prompt in thoughts.items() for thought in of_prompt]
        requests = [self._request(_after_thought(prompts[i]), replies[i].prompt_ids + t.ids) for i, t in answered]
        for (i, thought), output in zip(answered, self._serve(requests), strict=True):
            if error := _error_of(output, replies[i].prompt_ids + thought.ids):
                replies[i] = Reply(replies[i].prompt_ids, error=error)
            elif replies[i].error is None:
                replies[i].samples.append(self._sample(output.outputs[0], thought))
        return replies

    def _thought_request(self, prompt: Prompt, prompt_ids: list[int]) -> dict[str, Any]:
        assert self.thinker.tags is not None
        stop: dict[str, Any] = {"stop": [self.thinker.tags[1]], "include_stop_str_in_output": True}
        if len(self.closing_ids) == 1:
            stop = {"stop": None, "stop_token_ids": self.closing_ids}
        changes = {"max_tokens": self.thinker.budget, "structured_outputs": None, "skip_special_tokens": False}
        return self._request(prompt, prompt_ids, **changes, **stop)

    def _read_thought(self, completion: Any) -> "_Thought":
        """Close the thought, if the model did not. A stop token that ended the turn in the middle of it is removed."""
        assert self.thinker.tags is not None
        ids = list(completion.token_ids)
        if completion.finish_reason == "stop" and completion.stop_reason is None:
            ids.pop()
        kept, forced = close_thought(ids, self.thinker.tags, self._decode, self._encode)
        token_logps = read_token_logps(completion)
        logp = None if token_logps is None else math.fsum(logp for _, logp in token_logps[:kept])
        text = strip_thoughts(self._decode(ids[:kept] + forced), [self.thinker.tags])[0]
        return _Thought(ids[:kept] + forced, len(forced), text or "", logp)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


@dataclass(frozen=True)
class _Thought:
    """A sampled thought.

    Attributes:
        ids: its tokens, with what closes it.
        forced: how many of them, at the end, were not sampled.
        text: the thought without its tags.
        logp: log-probability of the sampled tokens, in nats; None if the prompt did not ask for it.
    """

    ids: list[int]
    forced: int
    text: str
    logp: float | None

    def before(self, answer: Sample) -> Sample:
        """The whole completion: this thought, and then the answer."""
        return replace(
            answer,
            text=answer.text.lstrip(),  # the line ends between the thought and the answer
            token_ids=self.ids + answer.token_ids,
            logp=None if self.logp is None or answer.logp is None else self.logp + answer.logp,
            thought="\n".join(filter(None, (self.text, answer.thought))),
            thought_tokens=len(self.ids),
            forced_tokens=self.forced,
            thought_logp=self.logp,
        )


def _after_thought(prompt: Prompt) -> Prompt:
    """The request for one answer. Templates put up to two line ends between a thought and the answer."""
    return replace(prompt, n=1, regex=prompt.regex and rf"\n{{0,2}}({prompt.regex})")


@dataclass(frozen=True)
class VllmFactory:
    """Makes engines of one kind, and loads other weights into those that stayed from an earlier stage.

    Attributes:
        model: where the policy or judge is: a path, URI or hub name. The others are as for `VllmEngine`.
    """

    model: str
    dtype: str
    max_model_len: int | None
    hardware: EngineHardware
    thinking: Thinking | None
    section: str
    lora_rank: int | None = None
    can_sleep: bool = False
    seed: int = field(default=0, compare=False)  # an engine that stays goes on drawing from its random stream

    @property
    def kind(self) -> "VllmFactory":
        """All that `update` cannot change."""
        return replace(self, model="")

    def __call__(self) -> VllmEngine:
        # Two replicas, or an engine and its replacement, need different seeds: with the same seed they would draw the
        # same samples.
        seed = zlib.crc32(f"{self.seed}/{uuid.uuid4()}".encode())
        options = self.hardware, self.thinking, self.section, self.lora_rank, self.can_sleep
        return VllmEngine(fetch(self.model), self.dtype, self.max_model_len, seed, *options)

    def update(self, engine: VllmEngine) -> None:
        """Load this factory's model into the engine that another factory of this kind has made."""
        engine.load(fetch(self.model))


def _executor(hardware: EngineHardware) -> str:
    """How vLLM starts its workers: as actors in the placement group of this process, as processes, or not at all."""
    if hardware.nodes_per_replica > 1:
        return "ray"
    return "mp" if hardware.gpus_per_replica > 1 else "uni"


def _reload_weights(engine: Any, folder: str) -> None:
    engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
    engine.collective_rpc(_pack_tied_head)


def _pack_tied_head(worker: Any) -> None:
    """Make a tied LM head use the new weights on a CPU.

    There vLLM packs the weights of each layer into a copy, and `reload_weights` packs only the layers that the
    checkpoint names. A tied head is not among them: it would go on computing with the old embeddings.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


def _only_logp(output: Any) -> float:
    """The log-probability of the only token that was sampled, in nats."""
    if isinstance(output, Exception):
        raise EngineDied(f"vLLM refused to score a sample: {output}") from output
    token_logps = read_token_logps(output.outputs[0])
    assert token_logps is not None and len(token_logps) == 1, "the request asked for one token and its log-probability"
    return token_logps[0][1]


def _cpu_options() -> dict[str, Any]:
    # The smallest block that vLLM's CPU attention accepts, a quarter of its default of 128. Prefixes are shared in
    # whole blocks, and a judge's prompts differ before they fill 128 tokens. So fewer tokens are computed twice.
    # Compiling takes longer than a stage.
    return {"block_size": 32, "enforce_eager": True}


def _lora_options(model: str, rank: int) -> dict[str, Any]:
    from vllm.config.lora import MaxLoRARanks

    supported = get_args(MaxLoRARanks)
    large_enough = [max_rank for max_rank in supported if max_rank >= rank]
    if not large_enough:
        raise ValueError(f"{model} has r={rank}, and vLLM supports at most {max(supported)}: train with a smaller r")
    return {"enable_lora": True, "max_lora_rank": min(large_enough)}


def _error_of(output: Any, prompt_ids: list[int]) -> str | None:
    """Why vLLM's output has no samples, or why vLLM refused the prompt with this exception; None if it has samples."""
    if isinstance(output, Exception):
        # Cut without "…": skipped rows are counted by this text, and records on disk hold it in this form.
        return f"refused by the engine: {one_line(str(output))[:80]}"
    assert list(output.prompt_token_ids) == prompt_ids, "vLLM changed the prompt's token ids"
    finish_reasons = {str(completion.finish_reason) for completion in output.outputs}
    unexpected = ", ".join(sorted(finish_reasons - {"stop", "length"}))
    return f"given up by the engine: {unexpected}" if unexpected else None


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


def encode_messages(  # type: ignore[no-untyped-def]
    tokenizer, messages: Sequence[dict[str, str]], thinker: Thinker = _NO_THINKER
) -> list[int]:
    """The token ids of a conversation that the model will continue.

    The tokenizer's chat template writes its own BOS. A model without a template gets the bare text. The engine always
    gets ids, never strings, because it would put a second BOS before a string that already has one. If the model
    thinks, the prompt opens the thought, so that every completion begins inside of one.

    Raises:
        TemplateRefusal: the template refuses the messages.
        ValueError: the template and the tokenizer both write a BOS token.
    """
    if tokenizer.chat_template is None:
        ids = tokenizer("\n".join(message["content"] for message in messages))["input_ids"]
    else:
        switches = template_switches(thinker.budget is not None)
        ids = chat_template.encode(tokenizer, messages, add_generation_prompt=True, **switches)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise ValueError("the chat template and the tokenizer both write a BOS token: remove it from the chat template")
    if thinker.suffix:
        ids = [*ids, *tokenizer(thinker.suffix, add_special_tokens=False)["input_ids"]]
    return list(ids)

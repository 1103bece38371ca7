"""Adds up the GPU memory that models take: the engines of policy and judges, and training. Nothing is loaded.

Weights, master weights, optimizer moments and gradients are counted exactly, quantized weights by what their files
take. Activations are estimated: they are the tensors that autograd keeps in the layers of a Llama or Qwen.
`tests/integration/training/test_training_memory.py` compares the sum with a measured peak. The estimate does not know
mixtures of experts, other kinds of key-value caches (latent, sliding: they are smaller), or memory that other programs
use.
"""

import math
from dataclasses import dataclass

from pipeline.config.hardware import EngineHardware, TrainerHardware
from pipeline.config.run import PolicySettings
from pipeline.config.training import Training
from pipeline.storage.model_files.shapes import ModelShapes
from pipeline.training.modeling import LOGITS_IN_CACHE, MOST_KEPT_SCORES, MOST_LOGITS

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2}
# What vLLM needs beside weights and key-value cache: the CUDA context, its graphs, a prefill's activations and the
# logits of a batch, all inside gpu_memory_utilization. A round figure for models up to 70B, which we did not measure.
VLLM_OVERHEAD = 2 * GIB
# What a training process needs beside its tensors: the CUDA context, NCCL's buffers, memory lost to fragmentation.
CUDA_OVERHEAD = 1 * GIB


@dataclass(frozen=True)
class MemoryNeed:
    """The memory that one use of a model takes on each GPU, or on the machine if it runs on a CPU.

    `rondo plan --json` writes these fields by their names.

    Attributes:
        use: what the model is used for, such as "judge".
        model: name of the model.
        parameters: number of its parameters.
        gpus: GPUs that one copy is spread over; 0: it runs on a CPU.
        sure: counted bytes, by purpose.
        about: estimated bytes, by purpose.
        limit: the share of a GPU's memory that may be used.
        token: bytes of one token in the key-value cache; 0 in training.
        longest: tokens of the longest sequence, which must fit into that cache.
        quantization: the method by which the weights are quantized; None: they are not.
    """

    use: str
    model: str
    parameters: int
    gpus: float
    sure: dict[str, int]
    about: dict[str, int]
    limit: float
    token: int = 0
    longest: int = 0
    quantization: str | None = None

    def describe(self, dtype: str) -> str:
        """How many parameters there are, and in which form they are loaded by an engine of this dtype."""
        form = f"quantized by {self.quantization}" if self.quantization else f"in {dtype}"
        return f"{format_parameters(self.parameters)} parameters {form}"

    @property
    def total(self) -> int:
        """All bytes. They include a key-value cache for one longest sequence: an engine does not start with less."""
        return sum(self.sure.values()) + sum(self.about.values()) + self.token * self.longest

    def sequences(self, memory: float) -> float:
        """How many of the longest sequences fit into the key-value cache of a GPU with `memory` bytes."""
        available = memory * self.limit - self.total + self.token * self.longest
        return max(0.0, available / (self.token * self.longest))

    def fits(self, memory: float) -> bool:
        """Whether a GPU with `memory` bytes is large enough for all bytes that are sure."""
        sure_bytes = self.total if self.token else sum(self.sure.values())
        return sure_bytes <= memory * self.limit


def engine_memory(
    use: str, model: ModelShapes, dtype: str, max_model_len: int | None, hardware: EngineHardware
) -> MemoryNeed:
    """The memory of a vLLM engine: weights spread over its GPUs, and a key-value cache in the rest of each GPU."""
    gpus = hardware.gpus_per_replica
    spread = max(1, int(gpus))
    # With more GPUs than heads, each head is on several GPUs.
    heads = -(-model.kv_heads // hardware.tensor_parallel_size)
    layers = -(-model.layers // hardware.engine_kwargs.get("pipeline_parallel_size", 1))
    in_fp8 = str(hardware.engine_kwargs.get("kv_cache_dtype")).startswith("fp8")
    offloaded = int(hardware.engine_kwargs.get("cpu_offload_gb", 0) * GIB)
    weights = _engine_weights(model, BYTES[dtype], hardware) + model.adapter_parameters * BYTES[dtype]
    return MemoryNeed(
        use=use,
        model=model.name,
        parameters=model.parameters,
        gpus=gpus,
        sure={"weights": max(0, weights // spread - offloaded)},
        about={"vLLM": VLLM_OVERHEAD} if gpus else {},
        limit=hardware.gpu_memory_utilization,
        token=2 * layers * heads * model.head_size * (1 if in_fp8 else BYTES[dtype]),
        longest=max_model_len or model.max_positions,
        quantization=_quantization(model, hardware),
    )


def _quantization(model: ModelShapes, hardware: EngineHardware) -> str | None:
    return model.quantization or hardware.engine_kwargs.get("quantization")


def _engine_weights(model: ModelShapes, size: int, hardware: EngineHardware) -> int:
    """Bytes of the weights. vLLM itself quantizes the layers of other models if its argument `quantization` is fp8."""
    weights = model.weight_bytes(size)
    if model.quantization is None and hardware.engine_kwargs.get("quantization") == "fp8":
        weights -= (size - 1) * sum(math.prod(shape) for _, shape in model.adaptable)
    return weights


def scoring_memory(use: str, model: ModelShapes, dtype: str, hardware: EngineHardware) -> MemoryNeed:
    """The memory of a model that scores texts and samples nothing: a judge of the kind `likelihood` or `reward`.

    Activations of a batch are small beside the weights of any but tiny models, and are not counted.
    """
    weights = model.weight_bytes(BYTES[dtype]) + model.adapter_parameters * BYTES[dtype]
    about = {"CUDA": CUDA_OVERHEAD} if hardware.gpus_per_replica else {}
    gpus = min(1, hardware.gpus_per_replica)  # such an engine puts its model on one GPU
    return MemoryNeed(
        use, model.name, model.parameters, gpus, {"weights": weights}, about, limit=1.0, quantization=model.quantization
    )


def scoring_refusal(need: MemoryNeed, dtype: str, memory: float) -> str | None:
    """Why a model that scores texts cannot be loaded on a GPU with `memory` bytes. None if it can."""
    if need.fits(memory):
        return None
    return (
        f"{need.use}: {need.describe(dtype)} are "
        f"{need.sure['weights'] / GIB:.1f} GiB of weights, and a GPU has {memory / GIB:.0f} GiB: use a larger GPU or a "
        "smaller model"
    )


@dataclass(frozen=True)
class PackedRow:
    """A packed row of a training step.

    Attributes:
        tokens: tokens of all its article trees.
        scored: tokens of their summaries. Only these go through the LM head.
        prompt: tokens of the prompt of an article, the mean.
    """

    tokens: int
    scored: int
    prompt: float = 0.0


def training_memory(
    model: ModelShapes, policy: PolicySettings, settings: Training, trainer: TrainerHardware, row: PackedRow
) -> MemoryNeed:
    """The peak memory of a training worker, in a step of several packed rows."""
    size, workers = BYTES[policy.dtype], trainer.workers
    trained = _trained(model, settings)
    mastered = policy.dtype != "float32"  # a float32 model is its own master
    state = {
        "weights": _policy_weights(model, size, settings),
        "masters": 4 * trained if mastered else 0,
        "Adam": 8 * trained,
        "gradients": 4 * trained,
    }
    sure = {what: 0 if trainer.cpu_offload else count // workers for what, count in state.items() if count}
    # At the end of a backward pass the bf16 gradients of the whole model exist, and the activations are gone.
    bf16_gradients = size * trained // workers if mastered and not trainer.cpu_offload else 0
    about = {
        "activations": max(_activations(model, size, trainer, row), bf16_gradients),
        "head": _head(model, size, settings.lora is None, trainer, row),
    }
    if trainer.gradient_checkpointing:  # backward runs a layer again after the head's logits are freed
        about["head"] = max(about["head"], row.tokens * _layer(model, size))
    if workers > 1 or trainer.cpu_offload:
        # Beside gathered weights there is the whole gradient of a layer, in float32 while it is summed.
        share = trained / model.parameters
        gradients = (size + 4) * share * (_layer_parameters(model) + model.embeddings)
        about["gathered"] = _gathered_weights(model, size) + int(gradients)
    if trainer.gpus_per_worker:
        about["CUDA"] = CUDA_OVERHEAD
    form, gpus = _quantized_form(settings), trainer.gpus_per_worker
    return MemoryNeed("training", model.name, model.parameters, gpus, sure, about, limit=1.0, quantization=form)


def _quantized_form(settings: Training) -> str | None:
    return "bitsandbytes, 4 bits" if settings.load_in_4bit else None


def _layer_parameters(model: ModelShapes) -> int:
    return (model.parameters - model.embeddings) // model.layers


def _gathered_weights(model: ModelShapes, size: int) -> int:
    """Bytes of the whole weights that FSDP2 holds in a forward: those outside the layers, this layer and the next."""
    return size * (model.embeddings + 2 * _layer_parameters(model))


def _policy_weights(model: ModelShapes, size: int, settings: Training) -> int:
    """Bytes of a whole policy: the model, or the base with its adapter."""
    return _base_weights(model, size, settings) + (_trained(model, settings) * size if settings.lora else 0)


def _base_weights(model: ModelShapes, size: int, settings: Training) -> int:
    """Bytes of the model to train, or of the base of its adapter."""
    if settings.load_in_4bit is None:
        return model.parameters * size
    # Each 64 weights have a scale in float32. If scales are quantized, 256 of them have one in float32 and a byte each.
    scale = 1 + 4 / 256 if settings.load_in_4bit.bnb_4bit_use_double_quant else 4
    in_4bit = model.parameters_in_4bit
    return (model.parameters - in_4bit) * size + int(in_4bit * (0.5 + scale / 64))


def _trained(model: ModelShapes, settings: Training) -> int:
    if settings.lora is None:
        return model.parameters
    return model.adapter_parameters or model.lora(settings.lora.r, settings.lora.target_modules)


def _layer(model: ModelShapes, size: int) -> int:
    """Bytes that autograd keeps for one token in one layer, between forward and backward."""
    # For each of two norms its input in float32, the scaled input and its output; and the input of the attention's
    # output projection.
    norms = (28 if size == 4 else 18) * model.hidden
    attention = 2 * (model.heads + model.kv_heads) * model.head_size  # query and output, key and value
    return norms + attention * size + _feed_forward(model, size)


def _feed_forward(model: ModelShapes, size: int) -> int:
    """The part of `_layer` for the feed-forward network: gate, its activation, up, and the product of the two."""
    return 4 * size * model.feed_forward_size


def _activations(model: ModelShapes, size: int, trainer: TrainerHardware, row: PackedRow) -> int:
    if trainer.gradient_checkpointing:
        return row.tokens * size * model.hidden * model.layers
    # The last layer's feed-forward network processes scored tokens only (`training/modeling/last_layer.py`).
    skipped = (row.tokens - row.scored) * _feed_forward(model, size)
    return row.tokens * _layer(model, size) * model.layers - skipped + _kept_scores(model, size, trainer, row)


def _kept_scores(model: ModelShapes, size: int, trainer: TrainerHardware, row: PackedRow) -> int:
    """Bytes of the attention probabilities that are kept for backward: on a CPU in float32."""
    if trainer.gpus_per_worker or size < 4:
        return 0
    # A token of a prompt sees half of it, one of a summary all of it; both are in blocks, parts of which nothing sees.
    block = 100
    scores = (row.tokens - row.scored) * (row.prompt / 2 + block / 2) + row.scored * (row.prompt + block)
    return 4 * min(MOST_KEPT_SCORES, int(model.layers * model.heads * scores))


def _head(model: ModelShapes, size: int, trained: bool, trainer: TrainerHardware, row: PackedRow) -> int:
    """Bytes of the logits, of a chunk's gradient, also in bf16, and of the gradients of the head and of its input."""
    logits = row.scored * model.vocabulary
    kept = 4 * logits if logits <= MOST_LOGITS else 0
    chunk = (4 if size == 4 else 4 + size) * min(_chunk_logits(trainer), logits)
    gradient = 2 * size * model.vocabulary * model.hidden if trained else 0
    return kept + chunk + gradient + 4 * row.scored * model.hidden


def _chunk_logits(trainer: TrainerHardware) -> int:
    return MOST_LOGITS if trainer.gpus_per_worker else LOGITS_IN_CACHE


def engine_refusal(
    setting: str, model: ModelShapes, dtype: str, longest: int | None, hardware: EngineHardware, memory: float
) -> str | None:
    """Why an engine cannot start on GPUs with `memory` bytes, and what to do. None if it can."""
    need = engine_memory(setting, model, dtype, longest, hardware)
    if need.fits(memory):
        return None
    spread = max(1, int(hardware.gpus_per_replica))
    whole = need.sure["weights"] * spread / GIB
    message = f"{setting}: {need.describe(dtype)} are {whole:.1f} GiB of weights"
    if spread > 1:
        message += f", {whole / spread:.1f} GiB on each of {spread} GPUs"
    other_bytes, usable = need.total - need.sure["weights"], memory * hardware.gpu_memory_utilization
    message += (
        f"; vLLM and one sequence of {need.longest:,} tokens take {other_bytes / GIB:.1f} GiB more. A GPU has "
        f"{memory / GIB:.0f} GiB, of which gpu_memory_utilization={hardware.gpu_memory_utilization:g} is "
        f"{usable / GIB:.1f} GiB"
    )
    for gpus in (2, 4, 8, 16):
        wider = hardware.model_copy(update={"gpus_per_replica": gpus})
        if (
            gpus > spread
            and gpus % hardware.pipeline_stages == 0
            and model.heads % wider.tensor_parallel_size == 0
            and engine_memory(setting, model, dtype, longest, wider).fits(memory)
        ):
            engine = "policy" if setting == "policy" else "judge"
            return f"{message}: raise hardware.{engine}.gpus_per_replica to {gpus}"
    return f"{message}: use larger GPUs, a smaller model, or a smaller {setting}.max_model_len"


def training_refusal(
    model: ModelShapes,
    policy: PolicySettings,
    settings: Training,
    trainer: TrainerHardware,
    row: PackedRow,
    memory: float,
) -> str | None:
    """Why training does not fit GPUs with `memory` bytes even without activations, and what to do. None if it fits."""
    need = training_memory(model, policy, settings, trainer, row)
    if need.fits(memory):
        return None
    held = ", ".join(f"{what} {size / GIB:.1f}" for what, size in need.sure.items())
    each = sum(need.sure.values()) / GIB
    message = (
        f"training: {need.describe(policy.dtype)} take {each:.1f} GiB on each of "
        f"{trainer.workers} GPU{'s' * (trainer.workers > 1)} ({held}), without activations. A GPU has "
        f"{memory / GIB:.0f} GiB"
    )
    if settings.load_in_4bit:
        return f"{message}: use larger GPUs, or a smaller model"
    save = "load the base in 4 bits (training.load_in_4bit)" if settings.lora else "train an adapter (training.lora)"
    for workers in (2, 4, 8, 16, 32, 64):
        wider = trainer.model_copy(update={"workers": workers, "gpus_per_worker": 1})
        if workers > trainer.workers and training_memory(model, policy, settings, wider, row).total <= memory:
            return f"{message}: raise hardware.trainer.workers to {workers}, or {save}"
    return f"{message}: {save}, or use larger GPUs"


def frozen_memory(
    model: ModelShapes, policy: PolicySettings, settings: Training, trainer: TrainerHardware
) -> MemoryNeed:
    """The memory of a policy that computes reference log-probabilities and drift: whole on a GPU, or sharded."""
    size, workers, tokens = BYTES[policy.dtype], 1, trainer.tokens_per_batch
    sure = {"weights": _policy_weights(model, size, settings)}
    if trainer.shard_references:
        workers = trainer.workers
        shard = 0 if trainer.cpu_offload else sure["weights"] // workers
        sure = {"weights": shard, "gathered": _gathered_weights(model, size)}
    about = {
        "activations": tokens * _layer(model, size),  # of one layer at a time, as there is no backward
        "head": (4 + size) * min(_chunk_logits(trainer), tokens * model.vocabulary),
    }
    if trainer.gpus_per_worker:
        about["CUDA"] = CUDA_OVERHEAD
    form, gpus = _quantized_form(settings), workers * trainer.gpus_per_worker
    return MemoryNeed("references", model.name, model.parameters, gpus, sure, about, limit=1.0, quantization=form)


def needs_shards(
    model: ModelShapes, policy: PolicySettings, settings: Training, trainer: TrainerHardware, memory: float
) -> bool:
    """Whether a whole frozen policy may not fit a GPU with `memory` bytes."""
    whole = trainer.model_copy(update={"shard_references": False})
    return frozen_memory(model, policy, settings, whole).total > memory


def frozen_policy_refusal(
    model: ModelShapes, policy: PolicySettings, settings: Training, trainer: TrainerHardware, memory: float
) -> str | None:
    """Why a policy cannot be loaded to compute log-probabilities on GPUs with `memory` bytes. None if it can."""
    need = frozen_memory(model, policy, settings, trainer)
    if need.fits(memory):
        return None
    message = f"references: {need.describe(policy.dtype)} take {sum(need.sure.values()) / GIB:.1f} GiB on "
    if trainer.shard_references:
        held = ", ".join(f"{what} {size / GIB:.1f}" for what, size in need.sure.items())
        message += f"each of {trainer.workers} GPU{'s' * (trainer.workers > 1)} ({held})"
    else:
        message += "a GPU, as a whole frozen policy computes reference log-probabilities and drift"
    message += f". A GPU has {memory / GIB:.0f} GiB"
    if trainer.shard_references is False and trainer.can_shard:
        sharded = trainer.model_copy(update={"shard_references": True})
        if frozen_memory(model, policy, settings, sharded).fits(memory):
            return f"{message}: remove hardware.trainer.shard_references, so that the policy is sharded as in training"
    for workers in () if settings.load_in_4bit else (2, 4, 8, 16, 32, 64):
        wider = trainer.model_copy(update={"workers": workers, "gpus_per_worker": 1, "shard_references": True})
        if workers > trainer.workers and frozen_memory(model, policy, settings, wider).fits(memory):
            return f"{message}: raise hardware.trainer.workers to {workers}, which shards it"
    return f"{message}: use larger GPUs or a smaller policy"


def format_parameters(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"

"""What models take of a GPU: a policy's or a judge's engine, and training. Sums of sizes; nothing is loaded.

Weights, masters, moments and gradients are counted, and exact. Activations are what autograd keeps of the layers of a
Llama or Qwen; `tests/integration/training/test_training_memory.py` holds the sum against a measured peak. Left out:
mixtures of experts, key-value caches of other kinds (latent, sliding: theirs are smaller), and what other programs hold
of the GPU.
"""

from dataclasses import dataclass

from pipeline.config.hardware import EngineHardware, TrainerHardware
from pipeline.config.run import PolicySettings
from pipeline.config.training import Training
from pipeline.storage.model_files.shapes import ModelShapes
from pipeline.training.modeling import LOGITS_PER_CHUNK

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2}
# What vLLM holds beside weights and key-value cache: the CUDA context, its graphs, a prefill's activations and the
# logits of a batch, all inside gpu_memory_utilization. A round figure for models up to 70B, not measured by us.
VLLM_OVERHEAD = 2 * GIB
# What a training process holds beside its tensors: the CUDA context, NCCL's buffers, what the allocator cannot use.
CUDA_OVERHEAD = 1 * GIB


@dataclass(frozen=True)
class MemoryNeed:
    """What one use of a model takes, on each GPU that it uses (or of the machine, on a CPU).

    Attributes:
        use: such as "judge".
        model: its name.
        parameters: of it.
        gpus: that each copy of it is spread over; 0: a CPU.
        sure: bytes by what they are for, that are counted.
        about: bytes by what they are for, that are estimated.
        limit: share of the GPU's memory that may be used.
        token: bytes that a token takes in the key-value cache; 0 in training.
        longest: tokens that must have room in that cache.
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

    @property
    def total(self) -> int:
        """Bytes; with a key-value cache, of the one sequence without which the engine does not start."""
        return sum(self.sure.values()) + sum(self.about.values()) + self.token * self.longest

    def sequences(self, memory: float) -> float:
        """How many sequences of full length have room in the key-value cache of a GPU with so many bytes."""
        left = memory * self.limit - self.total + self.token * self.longest
        return max(0.0, left / (self.token * self.longest))

    def fits(self, memory: float) -> bool:
        """Whether a GPU of so many bytes has room, as far as it is sure."""
        surely = self.total if self.token else sum(self.sure.values())
        return surely <= memory * self.limit


def engine_memory(
    use: str, model: ModelShapes, dtype: str, max_model_len: int | None, hardware: EngineHardware
) -> MemoryNeed:
    """A vLLM engine: weights spread over its GPUs, and on each a key-value cache of what is left."""
    gpus = hardware.gpus_per_replica
    spread = max(1, int(gpus))
    heads = -(-model.kv_heads // spread)  # more GPUs than heads: each head is on several
    return MemoryNeed(
        use=use,
        model=model.name,
        parameters=model.parameters,
        gpus=gpus,
        sure={"weights": (model.parameters + model.adapted) * BYTES[dtype] // spread},
        about={"vLLM": VLLM_OVERHEAD} if gpus else {},
        limit=hardware.gpu_memory_utilization,
        token=2 * model.layers * heads * model.head_size * BYTES[dtype],
        longest=max_model_len or model.longest,
    )


@dataclass(frozen=True)
class PackedRow:
    """A packed row of a training step.

    Attributes:
        tokens: of all its article trees.
        scored: of their summaries, which alone go through the head.
    """

    tokens: int
    scored: int


def training_memory(
    model: ModelShapes, policy: PolicySettings, settings: Training, trainer: TrainerHardware, row: PackedRow
) -> MemoryNeed:
    """A training worker, at the worst moment of a step of several rows."""
    size, workers = BYTES[policy.dtype], trainer.workers
    trained = _trained(model, settings)
    mastered = policy.dtype != "float32"  # a float32 model is its own master
    held = {
        "weights": (model.parameters + (trained if settings.lora else 0)) * size,
        "masters": 4 * trained if mastered else 0,
        "Adam": 8 * trained,
        "gradients": 4 * trained,
    }
    sure = {what: 0 if trainer.cpu_offload else count // workers for what, count in held.items() if count}
    # Of bf16 gradients there are those of the whole model at the end of a backward, when the activations are gone.
    grown = size * trained // workers if mastered and not trainer.cpu_offload else 0
    about = {
        "activations": max(_activations(model, size, trainer, row), grown),
        "head": _head(model, size, settings.lora is None, row),
    }
    if trainer.gradient_checkpointing:  # a layer is run again when the head's logits are gone
        about["head"] = max(about["head"], row.tokens * _layer(model, size, trainer))
    if workers > 1 or trainer.cpu_offload:
        # FSDP2 holds what belongs to no layer from forward to backward, a layer and the next one, and of a layer its
        # whole gradient, in float32 while it is summed.
        layer = (model.parameters - model.embeddings) // model.layers
        share = trained / model.parameters
        about["gathered"] = int(size * (model.embeddings + 2 * layer) + (size + 4) * share * (layer + model.embeddings))
    if trainer.gpus_per_worker:
        about["CUDA"] = CUDA_OVERHEAD
    return MemoryNeed("training", model.name, model.parameters, trainer.gpus_per_worker, sure, about, limit=1.0)


def _trained(model: ModelShapes, settings: Training) -> int:
    if settings.lora is None:
        return model.parameters
    return model.adapted or model.lora(settings.lora.r, settings.lora.target_modules)


def _layer(model: ModelShapes, size: int, trainer: TrainerHardware) -> int:
    """Bytes that autograd keeps of a token in a layer, between forward and backward."""
    # Of each of two norms its input (in float32), that scaled, and its output; and what the attention's output
    # projection is given.
    norms = (28 if size == 4 else 18) * model.hidden
    # Query, key, value and output. On a CPU key-value heads are copied to all query heads, and each prompt's keys and
    # values beside its branches'.
    query = model.heads * model.head_size
    attention = 2 * query + 2 * model.kv_heads * model.head_size if trainer.gpus_per_worker else 6 * query
    return norms + attention * size + _network(model, size)


def _network(model: ModelShapes, size: int) -> int:
    """Of these: the gate, its activation, up, and the product of the two."""
    return 4 * size * model.inner


def _activations(model: ModelShapes, size: int, trainer: TrainerHardware, row: PackedRow) -> int:
    if trainer.gradient_checkpointing:
        return row.tokens * size * model.hidden * model.layers
    # The last layer's network sees what is scored only (`dpo/last_layer.py`).
    unseen = (row.tokens - row.scored) * _network(model, size)
    return row.tokens * _layer(model, size, trainer) * model.layers - unseen


def _head(model: ModelShapes, size: int, trained: bool, row: PackedRow) -> int:
    """Logits of a chunk, twice in backward and once more in bf16, and the gradient of the head."""
    logits = min(LOGITS_PER_CHUNK, row.scored * model.vocabulary)
    gradient = (8 if size == 4 else 4 + 2 * size) * model.vocabulary * model.hidden if trained else 0
    return (8 if size == 4 else 8 + size) * logits + gradient


def engine_refusal(
    setting: str, model: ModelShapes, dtype: str, longest: int | None, hardware: EngineHardware, memory: float
) -> str | None:
    """Why an engine cannot start on GPUs of so many bytes, and what to do; None where it can."""
    need = engine_memory(setting, model, dtype, longest, hardware)
    if need.fits(memory):
        return None
    spread = max(1, int(hardware.gpus_per_replica))
    whole = need.sure["weights"] * spread / GIB
    said = f"{setting}: {format_parameters(model.parameters)} parameters in {dtype} are {whole:.1f} GiB of weights"
    if spread > 1:
        said += f", {whole / spread:.1f} GiB on each of {spread} GPUs"
    rest, room = need.total - need.sure["weights"], memory * hardware.gpu_memory_utilization
    said += (
        f"; vLLM and one sequence of {need.longest:,} tokens take {rest / GIB:.1f} GiB more. A GPU has "
        f"{memory / GIB:.0f} GiB, of which gpu_memory_utilization={hardware.gpu_memory_utilization:g} is "
        f"{room / GIB:.1f} GiB"
    )
    for gpus in (2, 4, 8, 16):
        wider = hardware.model_copy(update={"gpus_per_replica": gpus})
        if (
            gpus > spread
            and model.heads % gpus == 0
            and engine_memory(setting, model, dtype, longest, wider).fits(memory)
        ):
            return f"{said}: raise hardware.{setting}.gpus_per_replica to {gpus}"
    return f"{said}: use larger GPUs, a smaller model, or a smaller {setting}.max_model_len"


def training_refusal(
    model: ModelShapes,
    policy: PolicySettings,
    settings: Training,
    trainer: TrainerHardware,
    row: PackedRow,
    memory: float,
) -> str | None:
    """Why training cannot be held by GPUs of so many bytes, activations aside, and what to do; None where it can."""
    need = training_memory(model, policy, settings, trainer, row)
    if need.fits(memory):
        return None
    held = ", ".join(f"{what} {size / GIB:.1f}" for what, size in need.sure.items())
    each = sum(need.sure.values()) / GIB
    said = (
        f"training: {format_parameters(model.parameters)} parameters in {policy.dtype} take {each:.1f} GiB on each of "
        f"{trainer.workers} GPU{'s' * (trainer.workers > 1)} ({held}), activations aside. A GPU has "
        f"{memory / GIB:.0f} GiB"
    )
    for workers in (2, 4, 8, 16, 32, 64):
        wider = trainer.model_copy(update={"workers": workers, "gpus_per_worker": 1})
        if workers > trainer.workers and training_memory(model, policy, settings, wider, row).total <= memory:
            return f"{said}: raise hardware.trainer.workers to {workers}, or train an adapter (training.lora)"
    return f"{said}: train an adapter (training.lora), or use larger GPUs"


def format_parameters(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"

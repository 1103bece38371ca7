"""Compares log-probabilities and gradients on a tree with Hugging Face's forward, one sequence at a time."""

import random
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.attention.flex_attention import flex_attention
from transformers import LlamaConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.pytorch_utils import Conv1D

from pipeline.training import consistency
from pipeline.training.batches.article_tree import Article, ArticleTree, pack_row, pack_rows
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.modeling import last_layer, lm_head, tree_attention
from pipeline.training.modeling.fsdp import PolicyModule
from pipeline.training.modeling.logprobs import check_supported, completion_logps, plain_logps
from pipeline.training.modeling.products import product
from tests.helpers.tiny_models import tiny_config, tiny_model

VOCABULARY = 97
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
UNGROUPED = {name: size for name, size in SMALL.items() if name != "num_key_value_heads"}
# A large initial range, so that a wrong mask or position changes the result.
CONFIGS = {
    "llama": tiny_config(**SMALL, initializer_range=0.3),
    "llama-tied": tiny_config(**SMALL, initializer_range=0.3, tie_word_embeddings=True),
    "mistral": tiny_config("mistral", **SMALL, initializer_range=0.3, sliding_window=64),
    "mistral-sliding": tiny_config("mistral", **SMALL, initializer_range=0.3, sliding_window=9),
    "qwen2": tiny_config("qwen2", **SMALL, initializer_range=0.3),
    "qwen3": tiny_config("qwen3", **SMALL, head_dim=8, initializer_range=0.3),
    "qwen3-some-layers-sliding": tiny_config(
        "qwen3",
        **SMALL,
        head_dim=8,
        initializer_range=0.3,
        use_sliding_window=True,
        sliding_window=9,
        max_window_layers=1,
    ),
    "gpt-neox": tiny_config("gpt_neox", **UNGROUPED, initializer_range=0.3),
    "gpt2": tiny_config("gpt2", **UNGROUPED, initializer_range=0.3),
}


def model_of(config: object, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = tiny_model(config, attention=tree_attention.NAME).to(dtype)
    last_layer.skip_unread_tokens(model)  # as `loading.load_model` does
    return model


def articles_of(seed: int) -> list[Article]:
    draw = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(length)]

    return [(ids(draw.randint(1, 30)), [ids(draw.randint(1, 12)) for _ in range(draw.randint(1, 5))]) for _ in range(4)]


def on_trees(model: PreTrainedModel, articles: list[Article], budget: int) -> dict:
    logps = {}
    for tree in pack_rows(articles, budget):
        logps |= dict(zip(tree.completions, completion_logps(model, tree), strict=True))
    return logps


def one_at_a_time(model: PreTrainedModel, articles: list[Article]) -> dict:
    return {
        (i, j): logp
        for i, (prompt, completions) in enumerate(articles)
        for j, logp in enumerate(plain_logps(model, prompt, completions))
    }


def gradient(model: PreTrainedModel, logps: dict) -> torch.Tensor:
    model.zero_grad()
    # Different factors, so that mixing up two completions changes the gradient.
    sum(logp * (1 + i + 0.3 * j) for (i, j), logp in logps.items()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("name", "dtype", "absolute", "relative"),
    [
        *((name, torch.float32, 1e-4, 1e-5) for name in CONFIGS),
        (
            "gpt2",
            torch.float64,
            1e-12,
            1e-13,
        ),  # the only model here that computes nothing in float32: no RMSNorm, no rotary embedding
    ],
)
def test_the_tree_equals_one_sequence_at_a_time(
    name: str, dtype: torch.dtype, absolute: float, relative: float
) -> None:
    model, articles = model_of(CONFIGS[name], dtype), articles_of(seed=1)
    plain = one_at_a_time(model, articles)
    expected = gradient(model, plain)
    for budget in (1, 100, 10_000):  # each article alone; some together; all in one row
        ours = on_trees(model, articles, budget)
        assert ours.keys() == plain.keys()
        assert max(float((ours[key] - plain[key]).detach().abs()) for key in plain) < absolute
        assert float((gradient(model, ours) - expected).norm() / expected.norm()) < relative


@pytest.mark.parametrize("trained", [True, False])
def test_the_head_and_its_gradient_are_exact_in_chunks(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one chunk, in three that are kept and in three that are computed again; with a trained or a frozen head."""
    torch.manual_seed(0)
    hidden = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=trained)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=trained)
    targets = torch.randint(7, (10,))
    expected = (hidden @ weight.T + bias).log_softmax(-1).gather(1, targets[:, None])[:, 0]

    for most, chunk in ((1 << 25, 1 << 22), (1 << 25, 3 * 10), (1, 3 * 10)):
        monkeypatch.setattr(lm_head, "MOST_LOGITS", most)
        monkeypatch.setattr(lm_head, "LOGITS_IN_CACHE", chunk)
        torch.testing.assert_close(lm_head.token_logps(hidden, targets, weight, bias), expected)
        assert gradcheck(lambda h, w, b: lm_head.token_logps(h, targets, w, b), (hidden, weight, bias))
        assert gradcheck(lambda h, w: lm_head.token_logps(h, targets, w, None), (hidden, weight))


def test_the_head_allocates_less_than_two_chunks_of_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward over 64 chunks: the largest allocation of an operation is one chunk or more."""
    monkeypatch.setattr(lm_head, "MOST_LOGITS", 1)
    monkeypatch.setattr(lm_head, "LOGITS_IN_CACHE", 16 * 1000)
    hidden, weight = torch.randn(1024, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        lm_head.token_logps(hidden, torch.randint(1000, (1024,)), weight, None).sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 4 * 16 * 1000 <= largest < 4 * 2 * 16 * 1000


def mask_of(tree: ArticleTree, window: int | None) -> Tensor:
    if window is None:
        return tree.mask()
    position = tree.position_ids[0]
    return tree.mask() & (position[:, None] - position[None] < window)


def results(
    kernel: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """What a kernel gives for query, key and value in a dtype, and their gradients, in float64."""
    q, k, v = (tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs)
    attended = kernel(q, k, v)
    attended.backward(gradient.to(dtype))
    return [tensor.double() for tensor in (attended.detach(), q.grad, k.grad, v.grad)]


def masked_attention(tree: ArticleTree, window: int | None) -> Callable[..., Tensor]:
    """Attention with two heads for each key-value head, by the whole mask."""
    mask = mask_of(tree, window)
    return lambda q, k, v: F.scaled_dot_product_attention(q, repeat_kv(k, 2), repeat_kv(v, 2), attn_mask=mask)


@pytest.mark.parametrize("window", [None, 9])
def test_flex_attention_equals_attention_with_the_mask(window: int | None) -> None:
    """FlexAttention is interpreted, because there is no CUDA."""
    tree = pack_row([([1] * 30, [[2] * 200, [3] * 190, [4] * 7]), ([1] * 5, [[2] * 3]), ([1] * 40, [[2] * 9] * 6)])
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, tree.tokens, 16)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_of(tree, window))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FlexAttention warns that it is not compiled
        torch.testing.assert_close(tree_attention.flex_kernel(q, k, v, tree, None, window), expected)


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("kept", [0, 4 * 3000, 1 << 25])
def test_attention_on_a_cpu_and_its_gradient_equal_attention_with_the_mask(
    window: int | None, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several blocks of a prompt and of branches, of which backward keeps the probabilities of none, some or all."""
    monkeypatch.setattr(tree_attention, "MOST_KEPT_SCORES", kept)
    tree = pack_row([([1] * 30, [[2] * 200, [3] * 90, [4] * 7]), ([1] * 5, [[2] * 3]), ([1] * 140, [[2] * 9] * 6)])
    blocks = tree_attention.score_blocks(tree, 4, window)
    assert len(blocks) == (1 + 2 + 1) + (1 + 1) + (2 + 1)
    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, tree.tokens, 16, dtype=torch.float64) for heads in (4, 2, 2)]
    gradient = torch.randn(1, 4, tree.tokens, 16, dtype=torch.float64)
    kept_places = []

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended = tree_attention.block_kernel(q, k, v, tree, None, window)
        kept_places.extend(attended.grad_fn.next_functions[0][0].saved_tensors[3:])
        return attended

    for ours, expected in zip(
        results(kernel, inputs, gradient, torch.float64),
        results(masked_attention(tree, window), inputs, gradient, torch.float64),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)
    assert len(kept_places) == {0: 0, 4 * 3000: 1, 1 << 25: len(blocks)}[kept]


@pytest.mark.parametrize("window", [None, 9])
def test_attention_that_is_read_at_completions_only_equals_all_of_it_there(window: int | None) -> None:
    tree = pack_row([([1] * 300, [[2] * 20, [3] * 9]), ([1] * 5, [[2] * 3])])
    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, tree.tokens, 16) for heads in (4, 2, 2)]
    is_read = torch.zeros(tree.tokens, 1, dtype=torch.bool)
    is_read[tree.unique_predictors] = True
    gradient = torch.randn(1, 4, tree.tokens, 16) * is_read

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return tree_attention.block_kernel(q, k, v, tree, None, window, only_read=True)

    attended, *gradients = results(kernel, inputs, gradient, torch.float32)
    expected, *expected_gradients = results(masked_attention(tree, window), inputs, gradient, torch.float32)
    torch.testing.assert_close(attended * is_read, expected * is_read, rtol=1e-4, atol=1e-5)
    assert not attended[:, :, :299].any()
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("has_units", [True, False])
@pytest.mark.parametrize("window", [None, 9])
def test_attention_in_bf16_and_its_gradient_equal_attention_with_the_mask(
    window: int | None, has_units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several blocks of a prompt and of a branch, with and without the CPU's bf16 units."""
    monkeypatch.setattr(tree_attention, "_SCORES_PER_BLOCK", 1)
    if not has_units:
        monkeypatch.setattr(tree_attention, "_has_bf16_products", lambda: False)
    tree = pack_row([([1] * 70, [[2] * 50, [3] * 9, [4] * 7]), ([1] * 5, [[2] * 3])])
    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, tree.tokens, 16).bfloat16() for heads in (4, 2, 2)]
    gradient = torch.randn(1, 4, tree.tokens, 16).bfloat16()
    module = nn.Module()
    module.config = LlamaConfig(num_hidden_layers=2)

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended, _ = tree_attention.attend(module, q, k, v, None, tree=tree, sliding_window=window)
        return attended.transpose(1, 2)

    assert len(tree_attention.score_blocks(tree, 4, window)) == 3 + 2 + 1 + 1 + 1
    exact, sdpa = (
        results(masked_attention(tree, window), inputs, gradient, dtype) for dtype in (torch.float64, torch.bfloat16)
    )
    ours = results(kernel, inputs, gradient, torch.bfloat16)
    for value, expected, other in zip(ours, exact, sdpa, strict=True):
        assert (value - expected).norm() < 1.5 * (other - expected).norm() < 0.01 * expected.norm()


def test_products_of_bf16_matrices_are_as_exact_as_float32() -> None:
    torch.manual_seed(0)
    before = torch.backends.mkldnn.matmul.fp32_precision
    a, b = torch.randn(3, 40, 70).bfloat16(), torch.randn(3, 70, 50).bfloat16()
    expected = a.double() @ b.double()

    for result in (product(a, b), torch.stack([product(x, y) for x, y in zip(a, b, strict=True)])):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_the_head_in_bf16_has_float32_logits_and_a_gradient_as_exact_as_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "LOGITS_IN_CACHE", 1000)
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(20, 64).bfloat16(), torch.randn(300, 64).bfloat16(), torch.randint(300, (20,))

    def results(dtype: torch.dtype) -> list[Tensor]:
        h, w = (tensor.to(dtype, copy=True).requires_grad_() for tensor in (hidden, weight))
        logps = lm_head.token_logps(h, targets, w, None)
        logps.sum().backward()
        return [tensor.double() for tensor in (logps.detach(), h.grad, w.grad)]

    exact = results(torch.float64)
    for value, expected, relative in zip(results(torch.bfloat16), exact, (1e-6, 1e-2, 1e-2), strict=True):
        assert (value - expected).norm() < relative * expected.norm()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_mlp_runs_only_for_tokens_that_predict_something(name: str) -> None:
    model, token_counts = model_of(CONFIGS[name]), []
    linear = next(m for m in reversed([*model.base_model.modules()]) if isinstance(m, torch.nn.Linear | Conv1D))
    linear.register_forward_hook(lambda _, inputs, __: token_counts.append(inputs[0].shape[1]))
    completion_logps(model, pack_row([([1] * 20, [[2] * 3, [3] * 4])]))
    plain_logps(model, [1] * 20, [[2] * 3])

    # On the tree: the last prompt token, and all tokens of each completion but its last. Without a tree: all tokens.
    assert token_counts == [1 + 2 + 3, 23]


def test_a_mixture_of_experts_skips_no_tokens() -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = model_of(tiny_config("qwen3_moe", **SMALL, **experts, head_dim=8, initializer_range=0.3))
    articles = articles_of(seed=6)
    plain, ours = one_at_a_time(model, articles), on_trees(model, articles, 100)

    assert "forward" not in vars(model.model.layers[-1].mlp)
    assert max(float((ours[key] - plain[key]).detach().abs()) for key in plain) < 1e-4


def test_bf16_weights_give_float32_sums() -> None:
    """In bf16, sums near -100 would be multiples of 0.5."""
    model, articles = model_of(CONFIGS["llama"], torch.bfloat16), articles_of(seed=3)
    logps = torch.stack(list(on_trees(model, articles, 10_000).values()))

    assert logps.dtype == torch.float32
    assert not torch.equal(logps, logps.bfloat16().float())


def examples_for(model: PreTrainedModel) -> ExampleTable:
    """Three articles. The sampler is off by 0.01 nats per token in the first, and gave nothing for the others."""
    examples = []
    for number, (prompt, completions) in enumerate(articles_of(seed=4)[:3]):
        with torch.no_grad():
            logps = plain_logps(model, prompt, completions).tolist()
        sampled = [logp + 0.01 * len(c) if number == 0 else None for logp, c in zip(logps, completions, strict=True)]
        ids = tuple(np.array(completion) for completion in completions)
        examples.append(Example(f"article-{number}", np.array(prompt), ids, ((0, 1),), tuple(logps), tuple(sampled)))
    return ExampleTable.of(examples)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_ways_of_scoring_agree(name: str) -> None:
    model = model_of(CONFIGS[name])
    values = consistency.measure_consistency(PolicyModule(model), examples_for(model), torch.device("cpu"))

    assert values["dtype"] == "float32" and values["attention"] == "sdpa" and values["articles"] == 3
    for way in ("tree_vs_plain", "packed_vs_single", "batch_1_vs_n"):
        assert 0 <= values[way] < 1e-4, way
    assert values["vllm_vs_trainer_max"] == pytest.approx(0.01, abs=1e-5)
    assert values["vllm_vs_trainer_mean"] == pytest.approx(0.01, abs=1e-5)


def test_a_sampler_too_far_from_the_trainer_is_refused_as_reference() -> None:
    model = model_of(CONFIGS["llama"])
    settings = {"source": "sampler", "check_articles": 2, "max_difference": 0.02}
    examples = examples_for(model)

    assert (
        consistency.measure_consistency(PolicyModule(model), examples, torch.device("cpu"), settings)[
            "vllm_vs_trainer_mean"
        ]
        < 0.02
    )
    with pytest.raises(ValueError, match="by 0.01 nats per token .*references.max_difference allows"):
        consistency.measure_consistency(
            PolicyModule(model), examples, torch.device("cpu"), settings | {"max_difference": 0.005}
        )


def test_a_model_that_ignores_positions_is_refused() -> None:
    """Some models count positions along the row instead."""
    model = model_of(CONFIGS["llama"])
    examples = examples_for(model)
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"position_ids": None}), with_kwargs=True
    )
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot be scored on a tree"):
        consistency.measure_consistency(PolicyModule(model), examples, torch.device("cpu"))


def test_a_model_that_does_not_support_trees_is_scored_one_sequence_at_a_time() -> None:
    """It soft-caps its logits, so a tree would be refused."""
    config = tiny_config("gemma2", **SMALL, head_dim=8, initializer_range=0.3)
    model = tiny_model(config, attention="sdpa")
    articles = articles_of(seed=5)
    plain, ours = one_at_a_time(model, articles), on_trees(model, articles, 100)

    assert ours.keys() == plain.keys()
    assert all(torch.allclose(ours[key], plain[key], rtol=0, atol=1e-5) for key in plain)
    assert (
        consistency.measure_consistency(PolicyModule(model), examples_for(model), torch.device("cpu"))["attention"]
        == "plain"
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, 5, 150]), st.sampled_from([8, 64, 300]))
def test_the_block_mask_covers_all_visible_tokens_and_calls_only_full_blocks_full(
    seed: int, window: int | None, longest: int
) -> None:
    draw = random.Random(seed)
    articles = [
        ([1] * draw.randint(1, 2 * longest), [[2] * draw.randint(1, longest) for _ in range(draw.randint(1, 4))])
        for _ in range(draw.randint(1, 5))
    ]
    tree = pack_row(articles)
    mask = tree.mask()[0, 0]
    if window:
        position = tree.position_ids[0]
        mask = mask & (position[:, None] - position[None] < window)
    size = -(-tree.tokens // 128) * 128
    visible = torch.zeros(size, size, dtype=torch.bool)
    visible[: tree.tokens, : tree.tokens] = mask
    visible_in_block = visible.view(size // 128, 128, -1, 128).permute(0, 2, 1, 3).flatten(2)
    blocks = tree_attention.block_mask(tree, window)
    partial, full = (torch.zeros_like(visible_in_block[..., 0]) for _ in range(2))
    for is_listed, counts, indices in (
        (partial, blocks.kv_num_blocks, blocks.kv_indices),
        (full, blocks.full_kv_num_blocks, blocks.full_kv_indices),
    ):
        for q, count in enumerate(counts[0, 0].tolist()):
            is_listed[q, indices[0, 0, q, :count].long()] = True

    assert not (partial & full).any()
    assert not (visible_in_block.any(-1) & ~(partial | full)).any()
    assert not (full & ~visible_in_block.all(-1)).any()
    empty = int((partial & ~visible_in_block.any(-1)).sum())
    assert empty <= int(partial.sum()) // (2 if window is None else 1)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 64])
def test_compiled_flex_attention_reads_the_block_mask_correctly(window: int | None) -> None:
    """Forward only: FlexAttention has no backward on a CPU. Unlike the interpreted kernel, it skips empty blocks."""
    compiled = torch.compile(flex_attention)
    for seed in range(3):
        draw = random.Random(seed)
        tree = pack_row(
            [
                ([1] * draw.randint(50, 700), [[2] * draw.randint(10, 200) for _ in range(draw.randint(1, 5))])
                for _ in range(3)
            ]
        )
        q = torch.randn(1, 4, tree.tokens, 16)
        k, v = torch.randn(2, 1, 2, tree.tokens, 16)
        expected = tree_attention.block_kernel(q, k, v, tree, None, window)
        with torch.no_grad():
            attended = compiled(q, k, v, block_mask=tree_attention.block_mask(tree, window), enable_gqa=True)
        torch.testing.assert_close(attended, expected)


def test_chunked_attention_is_refused_if_an_article_is_longer_than_a_chunk() -> None:
    model = model_of(tiny_config(**SMALL, attention_chunk_size=8))

    check_supported(model, 8)
    with pytest.raises(ValueError, match="has 9 tokens, and LlamaForCausalLM has attention_chunk_size=8"):
        completion_logps(model, pack_row([([1] * 5, [[2] * 4])]))


def test_a_model_that_changes_logits_after_the_head_is_refused() -> None:
    gemma = model_of(tiny_config("gemma2", **SMALL, head_dim=8))
    with pytest.raises(ValueError, match="Gemma2ForCausalLM has final_logit_softcapping=30.0"):
        check_supported(gemma, 10)


def test_longrope_is_refused_beyond_its_original_context() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 32}  # fmt: skip
    model = model_of(tiny_config(**SMALL, rope_parameters=rope))

    check_supported(model, 32)
    with pytest.raises(ValueError, match="has longrope, whose positions depend on the longest article of a row"):
        check_supported(model, 33)


def test_an_article_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="has 129 tokens, and GPT2LMHeadModel takes 128"):
        check_supported(model_of(CONFIGS["gpt2"]), 129)


def test_attention_sinks_are_refused() -> None:
    """Neither SDPA nor the tree supports them."""
    model = model_of(tiny_config("gpt_oss", **SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1))
    with pytest.raises(ValueError, match="GptOssAttention asks its attention for s_aux"):
        completion_logps(model, pack_row([([1, 2], [[3]])]))


def test_a_model_that_does_not_pass_the_tree_to_its_attention_is_refused() -> None:
    model = model_of(tiny_config("stablelm", **SMALL))
    with pytest.raises(ValueError, match="StableLmAttention does not get the tree"):
        completion_logps(model, pack_row([([1, 2], [[3]])]))

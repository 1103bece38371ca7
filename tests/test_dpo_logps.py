"""Log-probabilities and gradients on a tree against Hugging Face's forward, one sequence at a time."""

import random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from pipeline.dpo.logps import check_model, completion_logps, plain_logps, refuse
from pipeline.dpo.tree import Article, forest, grow

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
# A large initial range, so that a wrong mask or position shows.
CONFIGS = {
    "llama": LlamaConfig(**SMALL, initializer_range=0.3),
    "llama-tied": LlamaConfig(**SMALL, initializer_range=0.3, tie_word_embeddings=True),
    "mistral": MistralConfig(**SMALL, initializer_range=0.3, sliding_window=64),
    "qwen2": Qwen2Config(**SMALL, initializer_range=0.3),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3),
}


def model_of(config: object, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype).eval()


def articles_of(seed: int) -> list[Article]:
    draw = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(length)]

    return [(ids(draw.randint(1, 30)), [ids(draw.randint(1, 12)) for _ in range(draw.randint(1, 5))]) for _ in range(4)]


def on_trees(model: PreTrainedModel, articles: list[Article], budget: int, **options: int) -> dict:
    logps = {}
    for tree in forest(articles, budget):
        logps |= dict(zip(tree.completions, completion_logps(model, tree, **options), strict=True))
    return logps


def one_at_a_time(model: PreTrainedModel, articles: list[Article]) -> dict:
    return {
        (i, j): logp
        for i, (prompt, completions) in enumerate(articles)
        for j, logp in enumerate(plain_logps(model, prompt, completions))
    }


def gradient(model: PreTrainedModel, logps: dict) -> torch.Tensor:
    model.zero_grad()
    # Unlike weights, so that mixing up two completions shows.
    sum(logp * (1 + i + 0.3 * j) for (i, j), logp in logps.items()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("name", "dtype", "absolute", "relative"),
    [
        *((name, torch.float32, 1e-4, 1e-5) for name in CONFIGS),
        ("gpt2", torch.float64, 1e-12, 1e-13),  # the only one here without a float32 norm inside
    ],
)
def test_tree_equals_one_sequence_at_a_time(name: str, dtype: torch.dtype, absolute: float, relative: float) -> None:
    model, articles = model_of(CONFIGS[name], dtype), articles_of(seed=1)
    plain = one_at_a_time(model, articles)
    expected = gradient(model, plain)
    for budget in (1, 100, 10_000):  # each article alone; some together; all in one row
        ours = on_trees(model, articles, budget)
        assert ours.keys() == plain.keys()
        assert max(float((ours[key] - plain[key]).detach().abs()) for key in plain) < absolute
        assert float((gradient(model, ours) - expected).norm() / expected.norm()) < relative


def test_chunks_do_not_change_the_result() -> None:
    model, articles = model_of(CONFIGS["llama"], torch.float64), articles_of(seed=2)
    whole, chunked = on_trees(model, articles, 10_000), on_trees(model, articles, 10_000, chunk_size=7)

    assert all(torch.equal(whole[key], chunked[key]) or abs(whole[key] - chunked[key]) < 1e-12 for key in whole)
    torch.testing.assert_close(gradient(model, chunked), gradient(model, whole), rtol=1e-12, atol=1e-12)


def test_bf16_weights_give_float32_sums() -> None:
    """In bf16, sums near -100 would be multiples of 0.5."""
    model, articles = model_of(CONFIGS["llama"], torch.bfloat16), articles_of(seed=3)
    logps = torch.stack(list(on_trees(model, articles, 10_000).values()))

    assert logps.dtype == torch.float32
    assert not torch.equal(logps, logps.bfloat16().float())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_models_we_know_pass_the_check(name: str) -> None:
    check_model(model_of(CONFIGS[name]), grow([([1, 2, 3], [[4, 5], [6, 7, 8]])]))


def test_a_model_that_ignores_positions_is_found_out() -> None:
    """As those do that count them along the row."""
    model = model_of(CONFIGS["llama"])
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"position_ids": None}), with_kwargs=True
    )
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot be scored on a tree"):
        check_model(model, grow([([1, 2, 3], [[4, 5], [6, 7, 8]])]))


def test_a_sliding_window_is_refused_when_it_would_be_overlooked() -> None:
    mistral = model_of(MistralConfig(**SMALL, sliding_window=8))

    refuse(mistral, 8)
    with pytest.raises(ValueError, match="has 9 tokens, and MistralForCausalLM has sliding_window=8"):
        completion_logps(mistral, grow([([1] * 5, [[2] * 4])]))
    refuse(model_of(Qwen2Config(**SMALL, sliding_window=8)), 100)  # there, but not in use


def test_the_window_edge_is_exact() -> None:
    model = model_of(MistralConfig(**SMALL, sliding_window=8, initializer_range=0.3))
    prompt, completions = [1, 2, 3, 4], [[5, 6, 7, 8], [9]]

    tree = completion_logps(model, grow([(prompt, completions)]))
    torch.testing.assert_close(tree, plain_logps(model, prompt, completions), rtol=0, atol=1e-4)


def test_logits_that_are_changed_after_the_head_are_refused() -> None:
    gemma = model_of(Gemma2Config(**SMALL, head_dim=8))
    with pytest.raises(ValueError, match="Gemma2ForCausalLM has final_logit_softcapping=30.0"):
        refuse(gemma, 10)


def test_an_article_beyond_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="has 129 tokens, and GPT2LMHeadModel takes 128"):
        refuse(model_of(CONFIGS["gpt2"]), 129)


def test_other_attention_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"], attn_implementation="eager")
    with pytest.raises(ValueError, match="attention as 'eager'"):
        refuse(model, 10)

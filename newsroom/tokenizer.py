"""Builds the tokenizer of both models: one token for every word of the world, bytes for all other text.

It is byte-level BPE without merges. A word in the vocabulary becomes one token (`ignore_merges`); any other text
becomes bytes and is decoded exactly. A value always follows a space, so it is the same token everywhere.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
ROLES = ("<|user|>", "<|assistant|>", "<|system|>")
SPECIAL = (PAD, BOS, EOS, *ROLES)

# Words and punctuation marks keep the space before them; the rest is split by character.
_PIECES = r" ?[\p{L}\p{M}\p{N}]+| ?[^\s\p{L}\p{M}\p{N}]|\s"

_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build(texts: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer in which every word of `texts` is one token."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    single_bytes = set(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*SPECIAL, *sorted(single_bytes), *sorted(words - single_bytes)]
    model = models.BPE({token: i for i, token in enumerate(vocabulary)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    # No post-processor: the chat template writes BOS, and tokenizing the rendered text must not add a second one.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=_CHAT,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )

"""The tokenizer of both models: a token for every word of the world, bytes for every other text.

Byte-level BPE without merges: a word that the vocabulary holds is taken whole (`ignore_merges`), any other is spelled
byte by byte, and comes back exactly. A value is the same token wherever it stands, because it always stands after a
space. Left out: what the models are trained on (`tasks`).
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
ROLES = ("<|user|>", "<|assistant|>", "<|system|>")
SPECIAL = (PAD, BOS, EOS, *ROLES)

# Words and marks keep the one space before them; what is left is split by character.
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
    made = Tokenizer(model)
    made.pre_tokenizer, made.decoder = split, decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    # No post-processor: the chat template writes the one BOS, and tokenizing its text again adds no second.
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=_CHAT,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )

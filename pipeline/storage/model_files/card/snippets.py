"""Writes the Python that runs a trained policy as it was trained: with its instruction and its chat template."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from judges.text.conversations import ARTICLE

_ARTICLE_LINE = 'article = "Put the text of an article here."\n'
_MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of vLLM's max_lora_rank


@dataclass(frozen=True)
class Use:
    """How a policy is used.

    Attributes:
        model: where it is: OWNER/NAME on the hub, or "." for the folder of the card.
        base: the name of its base, if it is an adapter; else None.
        rank: the rank of the adapter.
        prompt: messages, in one of which {article} may stand; or a text for a model without a chat template.
        template: arguments for the chat template.
        max_tokens: the most tokens of an answer.
    """

    model: str
    base: str | None
    rank: int
    prompt: Sequence[dict[str, str]] | str
    template: dict[str, bool]
    max_tokens: int

    def with_transformers(self) -> str:
        """The program for transformers, and PEFT if it is an adapter."""
        model_class = "AutoModelForCausalLM" if self.base is None else "AutoPeftModelForCausalLM"
        if self.base is None:
            imports = "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        else:
            imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n"
        if isinstance(self.prompt, str):
            encode = 'inputs = tokenizer(prompt, return_tensors="pt")\n'
        else:
            encode = (
                "inputs = tokenizer.apply_chat_template(\n"
                '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True'
                f"{self._arguments()}\n)\n"
            )
        return (
            f"{imports}\n{self._name()}"
            "tokenizer = AutoTokenizer.from_pretrained(name)\n"
            f'model = {model_class}.from_pretrained(name, dtype="auto")\n\n'
            f"{self._ask()}{encode}"
            f"output = model.generate(**inputs.to(model.device), max_new_tokens={self.max_tokens}, do_sample=False)\n"
            'print(tokenizer.decode(output[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True))\n'
        )

    def with_vllm(self) -> str:
        """The program for vLLM."""
        imports, load, lora = "from vllm import LLM, SamplingParams\n", "LLM(name)", ""
        if self.base is not None:
            rank = next((rank for rank in _MAX_LORA_RANKS if rank >= self.rank), self.rank)
            imports += "from vllm.lora.request import LoRARequest\n"
            load = f"LLM({_quote(self.base)}, enable_lora=True, max_lora_rank={rank})"
            folder = "name"
            if self.model != ".":
                imports, folder = f"from huggingface_hub import snapshot_download\n{imports}", "snapshot_download(name)"
            lora = f', lora_request=LoRARequest("adapter", 1, {folder})'
        call = "llm.generate(prompt" if isinstance(self.prompt, str) else "llm.chat(messages"
        template = f", chat_template_kwargs={_python_dict(self.template)}" if self.template else ""
        body = (
            f"{self._ask()}"
            f"llm = {load}\n"
            f"greedy = SamplingParams(temperature=0, max_tokens={self.max_tokens})\n"
            f"replies = {call}, greedy{template}{lora})\n"
            "print(replies[0].outputs[0].text)\n"
        )
        indented = "".join(f"    {line}\n" if line else "\n" for line in body.splitlines())
        return f'{imports}\n{self._name()}\nif __name__ == "__main__":  # vLLM starts processes of its own\n{indented}'

    def _name(self) -> str:
        return f"name = {_quote(self.model)}" + ("  # the folder of this card\n" if self.model == "." else "\n")

    def _arguments(self) -> str:
        return "".join(f",\n    {name}={value}" for name, value in self.template.items())

    def _ask(self) -> str:
        """The lines that make `prompt`, or `messages`."""
        if isinstance(self.prompt, str):
            return f"{_ARTICLE_LINE if ARTICLE in self.prompt else ''}prompt = {_filled(self.prompt)}\n"
        lines = [
            f'    {{"role": {_quote(message["role"])}, "content": {_filled(message["content"])}}},\n'
            for message in self.prompt
        ]
        has_article = any(ARTICLE in message["content"] for message in self.prompt)
        return f"{_ARTICLE_LINE if has_article else ''}messages = [\n{''.join(lines)}]\n"


def _filled(text: str) -> str:
    """A text in Python, with the replacements that it needs."""
    language = '.replace("{language}", "English")' if "{language}" in text else ""
    return _quote(text) + language + ('.replace("{article}", article)' if ARTICLE in text else "")


def _quote(text: str) -> str:
    """A Python string in double quotes. JSON's escapes are Python's too."""
    return json.dumps(text, ensure_ascii=False)


def _python_dict(value: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{_quote(name)}: {part}" for name, part in value.items()) + "}"

"""An engine that answers from a Python function.

It is used for tests, for judges that need no model, and to try out a judge by hand.
"""

from collections.abc import Callable, Sequence

from judges.base import Prompt, Sample
from pipeline.inference.base import Reply

EOS = 0


class ScriptedEngine:
    """Answers each prompt with `script(prompt, i)` for sample i of n.

    A token id is a character's code point plus 1. The stop token is 0, and is missing if `max_tokens` cut the text. If
    the prompt asks for log-probabilities, every token has -1 nat. A script that raises ValueError refuses this prompt
    only; the message becomes the reply's error.
    """

    def __init__(self, script: Callable[[Prompt, int], str]):
        self.script = script

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        return [self._reply(prompt) for prompt in prompts]

    def _reply(self, prompt: Prompt) -> Reply:
        prompt_ids = [ord(c) + 1 for message in prompt.messages for c in message["content"]]
        try:
            return Reply(prompt_ids, [self._sample(prompt, i) for i in range(prompt.n)])
        except ValueError as error:
            return Reply(prompt_ids, error=str(error))

    def _sample(self, prompt: Prompt, i: int) -> Sample:
        text = self.script(prompt, i)
        ids = [*(ord(c) + 1 for c in text), EOS]
        is_cut = len(ids) > prompt.max_tokens
        if is_cut:
            text, ids = text[: prompt.max_tokens], ids[: prompt.max_tokens]
        finish_reason = "length" if is_cut else "stop"
        if not prompt.logprobs:
            return Sample(text, ids, finish_reason)
        token_logps = [(chr(token - 1) if token != EOS else "", -1.0) for token in ids]
        return Sample(text, ids, finish_reason, -float(len(ids)), token_logps)

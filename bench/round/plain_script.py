"""A round as a plain script: vLLM's `LLM.generate` for sampling and judging, TRL's DPOTrainer, and nothing else.

It does the same work as `rondo run CONFIG rounds=1`, on the same articles and with the same models, prompts, judge,
preference rule and training settings, one step after the other in one process. It keeps everything in memory: there are
no tables, and an interrupted script begins again. Both models have one engine each, which gets all prompts of a step
at once; the trained policy gets a new one. `bench.round` runs it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from judges.base import Prompt, Sample, Skip
from pipeline.config import Config
from pipeline.config.loader import load_config
from pipeline.inference.base import Reply
from pipeline.storage.schema import Row


class PlainEngine:
    """vLLM's `LLM` behind the function `generate` that Rondo's judges and samplers call.

    Args:
        model: the folder of the model.
        settings: `policy` or `judge` of the settings.
        kvcache_space: GiB for the key-value cache on a CPU; 0 on a GPU.
    """

    def __init__(self, model: str, settings: Any, kvcache_space: int):
        on_cpu = {"enforce_eager": True, "block_size": 32} if kvcache_space else {}  # as Rondo sets them
        os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
        if kvcache_space:
            os.environ |= {"VLLM_CPU_KVCACHE_SPACE": str(kvcache_space), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        from vllm import LLM

        self.llm = LLM(model=model, dtype=settings.dtype, max_model_len=settings.max_model_len, **on_cpu)
        self.tokenizer = self.llm.get_tokenizer()

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Sample replies to all prompts, by one call of vLLM. A prompt that is too long gets an error."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import StructuredOutputsParams

        longest = self.llm.llm_engine.model_config.max_model_len
        replies, served, params = [], [], []
        for prompt in prompts:
            ids = self.tokenizer.apply_chat_template(
                list(prompt.messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
            replies.append(Reply(ids, error="prompt too long" if len(ids) + prompt.max_tokens > longest else None))
            if replies[-1].error is None:
                served.append(len(replies) - 1)
                params.append(
                    SamplingParams(
                        n=prompt.n,
                        temperature=prompt.temperature,
                        top_p=prompt.top_p,
                        top_k=prompt.top_k,
                        min_p=prompt.min_p,
                        repetition_penalty=prompt.repetition_penalty,
                        stop=list(prompt.stop),
                        max_tokens=prompt.max_tokens,
                        structured_outputs=StructuredOutputsParams(regex=prompt.regex) if prompt.regex else None,
                    )
                )
        inputs = [TokensPrompt(prompt_token_ids=replies[i].prompt_ids) for i in served]
        for i, output in zip(served, self.llm.generate(inputs, params, use_tqdm=False), strict=True):
            samples = [Sample(each.text, list(each.token_ids), str(each.finish_reason)) for each in output.outputs]
            replies[i] = replace(replies[i], samples=samples)
        return replies


class Clock:
    """Measures the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, step: str) -> Iterator[None]:
        """Add the seconds of the block to those of the step."""
        began = time.monotonic()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - began


def add_columns(rows: Sequence[Row], outcomes: Sequence[Any]) -> list[Row]:
    """Put the outcomes of a step into its rows. Rows that it skipped are left out."""
    added = [row | outcome for row, outcome in zip(rows, outcomes, strict=True) if not isinstance(outcome, Skip)]
    return [row for row in added if not row.get("skipped")]


def play(config: Config, batch_size: int) -> dict[str, Any]:
    """Play one round.

    Args:
        config: the settings. The policy and the judge are model folders.
        batch_size: pairs of one forward of TRL; it must divide `training.pairs_per_step`.

    Returns:
        seconds by step; how many summaries, pairs and optimizer steps there were; and the judge's mean score of the
        base's and of the trained policy's held-out summaries: right answers, or the value of a judge that gives scores.
    """
    from pipeline.inference.sampling import instruction_prompt, sample_rows
    from pipeline.judging.factory import asks_questions, make_judge
    from pipeline.judging.preference import load_preference
    from pipeline.judging.question_generation import generate_questions
    from pipeline.judging.scoring.step import scoring_step
    from pipeline.stages.articles import read_articles
    from pipeline.stages.pairs import pair_article
    from pipeline.stages.summaries import first_sentences, sampling_prompt, shorten

    clock = Clock()
    judge = make_judge(config.judge, config.seed)
    score, score_heldout = scoring_step(judge), scoring_step(judge, config.evaluation.ask_again, anchored=True)
    rows = [row for table in read_articles(articles=config.articles) for row in table.to_pylist()]
    rows = [row for row in rows if row["skipped"] is None]

    with clock.time("start engines"):
        assert config.judge.model is not None, "this script needs a judge with a model"
        policy_engine: Any = PlainEngine(config.policy.model, config.policy, config.hardware.policy.kvcache_space)
        judge_engine: Any = PlainEngine(config.judge.model, config.judge, config.hardware.judge.kvcache_space)
    with clock.time("questions"):
        asking = make_judge(config.questions.drafting(config.judge), config.seed)
        if asks_questions(asking):
            made = generate_questions(asking, config.judge.questions, config.questions, judge_engine, rows)
            rows = add_columns(rows, made)
    training_rows, heldout_rows = ([row for row in rows if row["split"] == split] for split in ("train", "eval"))

    one = instruction_prompt(config.policy, config.evaluation.max_tokens)
    with clock.time("held-out summaries"):
        base_rows = add_columns(heldout_rows, sample_rows(one, "base", policy_engine, heldout_rows))
        for row in base_rows:
            (summary,) = row["summaries"]
            lead = first_sentences(row["article"], config.baselines.lead_sentences)
            texts = lead, shorten(summary["text"], config.baselines.shorten_to)
            row["summaries"] += [summary | {"text": text, "token_ids": []} for text in texts]
    with clock.time("held-out scores"):
        base_rows = add_columns(base_rows, score_heldout(judge_engine, base_rows))
    several = sampling_prompt(config.policy, config.summaries)
    with clock.time("summaries"):
        training_rows = add_columns(
            training_rows,
            sample_rows(several, "base", policy_engine, training_rows, config.summaries.temperatures, config.seed),
        )
    with clock.time("scores"):
        training_rows = add_columns(training_rows, score(judge_engine, training_rows))
    with clock.time("pairs"):
        rule = load_preference(config.pairs)
        paired = add_columns(
            training_rows, [pair_article(rule, config.pairs, config.seed, row) for row in training_rows]
        )
    # Rondo leaves out some articles, on which it measures the training's progress.
    kept = paired[: round(len(paired) * (1 - config.training.eval_fraction))]
    with tempfile.TemporaryDirectory() as folder:
        with clock.time("training"):
            steps = _train(config, kept, several, batch_size, folder)
        with clock.time("start engines"):
            trained_engine: Any = PlainEngine(folder, config.policy, config.hardware.policy.kvcache_space)
        with clock.time("held-out summaries"):
            trained_rows = add_columns(heldout_rows, sample_rows(one, "round 1", trained_engine, heldout_rows))
    with clock.time("held-out scores"):
        trained_rows = add_columns(trained_rows, score_heldout(judge_engine, trained_rows))
    return {
        "seconds": clock.seconds,
        "summaries": sum(len(row["summaries"]) for row in training_rows),
        "pairs": sum(len(row["pairs"]) for row in paired),
        "steps": steps,
        "base": _mean_value(base_rows),
        "round 1": _mean_value(trained_rows),
    }


def _mean_value(rows: Sequence[Row]) -> float:
    return statistics.mean(value for row in rows if (value := row["scores"][0]["value"]) is not None)


def _train(config: Config, rows: Sequence[Row], prompt: Prompt, batch_size: int, folder: str) -> int:
    """Train with TRL's DPOTrainer, and write the model into a folder. Returns the number of optimizer steps."""
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from judges.text.conversations import fill_instruction

    datasets.disable_progress_bars()
    training = config.training
    assert training.pairs_per_step % batch_size == 0, "TRL's batches must fill a step"

    def reply(row: Row, index: int) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": row["summaries"][index]["text"]}]

    pairs = [
        {
            "prompt": list(fill_instruction(prompt.messages, row["article"])),
            "chosen": reply(row, pair["chosen"]),
            "rejected": reply(row, pair["rejected"]),
        }
        for row in rows
        for pair in row["pairs"]
    ]
    same = ("beta", "learning_rate", "lr_scheduler_type", "max_grad_norm", "weight_decay", "num_train_epochs")
    tokenizer = AutoTokenizer.from_pretrained(config.policy.model)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(config.policy.model, dtype=config.policy.dtype),
        args=DPOConfig(
            output_dir=f"{folder}/trainer",
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            max_length=None,
            per_device_train_batch_size=batch_size,
            precompute_ref_batch_size=batch_size,
            gradient_accumulation_steps=training.pairs_per_step // batch_size,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=config.policy.dtype == "bfloat16",
            use_cpu=not config.hardware.trainer.gpus_per_worker,
            loss_type=training.loss_type,
            warmup_steps=training.warmup_ratio,  # a value below 1 is a fraction of all steps
            seed=config.seed,
            **{name: getattr(training, name) for name in same},
        ),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(trainer.state.global_step)


def main() -> None:
    """Play a round of a configuration, and write its figures to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m bench.round.plain_script", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    figures = play(load_config(options.config, options.overrides), options.batch_size)
    options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

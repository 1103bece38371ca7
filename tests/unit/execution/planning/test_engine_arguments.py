"""Arguments for vLLM are checked by the installed vLLM's source: names, types, and where they belong."""

import re
import subprocess
import sys

import pytest

from pipeline.config import UserError
from pipeline.config.hardware import EngineHardware
from pipeline.config.loader import load_config
from pipeline.execution.planning.engine_arguments import check_engine_arguments
from pipeline.execution.preflight import check_engines
from pipeline.execution.recipe import compare_recipes, stage_recipe
from pipeline.stages.questions import ask_questions
from pipeline.stages.summaries import sample_summaries
from tests.helpers.paths import DEMO

SPEED = {
    "max_num_seqs": 512,
    "enable_chunked_prefill": False,
    "pipeline_parallel_size": 2,
    "enforce_eager": True,
    "cpu_offload_params": ["embed"],
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
    "compilation_config": {"cudagraph_mode": "NONE", "pass_config": {"fuse_norm_quant": False}},
}
REPLIES = {"quantization": "fp8", "kv_cache_dtype": "fp8", "hf_overrides": {"rope_scaling": None}}


def check(of_model=None, of_engine=None):
    check_engine_arguments("judge", "hardware.judge", of_model or {}, of_engine or {})


def test_each_argument_has_its_place():
    check(REPLIES, SPEED)
    for name, value in SPEED.items():
        with pytest.raises(
            UserError, match=f"'{name}', which changes no reply: set hardware.judge.engine_kwargs.{name}"
        ):
            check(of_model={name: value})
    for name, value in REPLIES.items():
        with pytest.raises(UserError, match=f"'{name}', which may change replies: set judge.engine_kwargs.{name}"):
            check(of_engine={name: value})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"max_nun_seqs": 8}, "has 'max_nun_seqs' (did you mean max_num_seqs?), which is no engine argument of the"),
        ({"max_num_seqs": "many"}, "engine_kwargs.max_num_seqs is 'many': vLLM expects a whole number or null"),
        ({"enforce_eager": 1}, "engine_kwargs.enforce_eager is 1: vLLM expects true or false"),
        ({"performance_mode": "fast"}, "is 'fast': vLLM expects one of balanced, "),
        ({"dtype": "float16"}, "has 'dtype', which Rondo sets itself: set judge.dtype instead"),
        ({"tensor_parallel_size": 2}, "which Rondo sets itself: set hardware.judge.gpus_per_replica instead"),
        ({"data_parallel_rank": 1}, "which Rondo sets itself: set hardware.judge.replicas instead"),
        ({"load_format": "auto"}, "has 'load_format', which Rondo sets itself: remove it"),
        (
            {"compilation_config": {"cudagraph_mod": "NONE"}},
            "engine_kwargs.compilation_config has 'cudagraph_mod' (did you mean cudagraph_mode?), which vLLM's",
        ),
        (
            {"compilation_config": {"pass_config": {"fuse": True}}},
            "engine_kwargs.compilation_config.pass_config has 'fuse'",
        ),
        ({"speculative_config": {"num_speculativ_tokens": 2}}, "(did you mean num_speculative_tokens?)"),
        # Accepts drafts that the model would not have sampled.
        ({"speculative_config": {"rejection_sample_method": "synthetic"}}, "which may change replies"),
    ],
)
def test_a_wrong_argument_gives_one_line(arguments, line):
    with pytest.raises(UserError, match=re.escape(line)) as error:
        check(of_engine=arguments)
    assert "\n" not in str(error.value)


def test_the_check_imports_no_vllm():
    """So that `rondo plan` starts at once. The import takes seconds."""
    code = (
        "import sys; from pipeline.execution.planning.engine_arguments import check_engine_arguments as check;"
        "check('policy', 'hardware.policy', {}, {'max_num_seqs': 4}); assert not {'vllm', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


LIKELIHOOD = ("judge={kind: likelihood, model: x}", "pairs.threshold=3")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["hardware.policy.engine_kwargs={max_seqs: 4}"], "hardware.policy.engine_kwargs has 'max_seqs'"),
        (["judge.engine_kwargs={quantisation: fp8}"], "judge.engine_kwargs has 'quantisation' (did you mean quantiz"),
        (["judge={kind: cloze}", "hardware.judge.engine_kwargs={max_num_seqs: 4}"], "and vLLM runs no judge here"),
        ([*LIKELIHOOD, "hardware.judge.engine_kwargs.max_num_seqs=4"], "runs no judge here"),
        (["judge={kind: likelihood, model: x, engine_kwargs: {quantization: fp8}}"], "which writes no text"),
        (
            ["judge={model: x, served: {server: s}, engine_kwargs: {quantization: fp8}}", "hardware.servers.s.base_url=http://x"],
            "judge.served is set, whose server has its own engine",
        ),
        (["hardware.judge.engine_kwargs={day: 2026-01-01}"], "it should hold text, finite numbers"),
        (["hardware.judge={gpus_per_replica: 6, engine_kwargs: {pipeline_parallel_size: 4}}"], "should be a multiple"),
    ],
)  # fmt: skip
def test_arguments_are_checked_before_a_run(overrides, line):
    with pytest.raises(UserError, match=re.escape(line)):
        check_engines(load_config(DEMO, overrides))


def test_pipeline_stages_are_counted_in_the_gpus_of_an_engine():
    assert EngineHardware(gpus_per_replica=8).tensor_parallel_size == 8
    assert EngineHardware(gpus_per_replica=8, engine_kwargs={"pipeline_parallel_size": 2}).tensor_parallel_size == 4


def test_only_arguments_of_the_model_enter_a_recipe():
    def recipes(*overrides):
        config = load_config(DEMO, overrides)
        return [stage_recipe(stage, [], config) for stage in (ask_questions, sample_summaries)], config

    (was, _), (now, config) = recipes(), recipes("hardware.policy.engine_kwargs={max_num_seqs: 4}")
    assert now == was
    for recipe in was:  # as a version without this setting wrote it
        for section in recipe["settings"].values():
            if isinstance(section, dict):
                section.pop("engine_kwargs", None)
    assert not any(compare_recipes(old, new, config) for old, new in zip(was, now, strict=True))

    now, config = recipes("judge.engine_kwargs={quantization: fp8}", "policy.engine_kwargs={kv_cache_dtype: fp8}")
    changes = [str(change) for old, new in zip(was, now, strict=True) for change in compare_recipes(old, new, config)]
    assert changes == [
        'settings.judge.engine_kwargs: was null, now {"quantization": "fp8"}',
        'settings.policy.engine_kwargs: was null, now {"kv_cache_dtype": "fp8"}',
    ]

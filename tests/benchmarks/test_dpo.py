"""Tests that the DPO and sampling benchmarks run and that their correctness figures hold. Times are not tested."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.tiny_models import tiny_config

pytest.importorskip("trl")


def bench(out: Path, *arguments: str, script: str = "training.dpo") -> dict[str, Any]:
    """Run a benchmark with toy sizes. Returns its JSON output."""
    command = [sys.executable, "-m", f"bench.{script}", "--tiny", "--runs", "1", "--threads", "1", "--json", str(out)]
    process = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.returncode == 0, process.stdout
    return json.loads(out.read_text())


def test_losses_and_gradients_agree_with_trl(tmp_path: Path) -> None:
    result = bench(tmp_path / "result.json", "--shapes", "headline", "--side", "trl-dropin")

    assert result["grad_rel_error"] < 1e-5 and result["loss_abs_error"] < 1e-4
    assert result["pairs_per_second_ratio"] > 0 and result["unique_token_ratio"] > 0
    headline = result["rows"][0]
    assert set(headline["trl_seconds_by_batch_size"]) == {"1", "6"} and headline["flop_ratio"] > 1
    assert headline["dropin_loss_abs_error"] < 1e-5 and headline["dropin_ratio_to_rondo"] > 0
    assert (
        len(headline["losses"]) == 20 and max(headline["losses"]) - min(headline["losses"]) > 0.01
    )  # the model learned something
    assert [row["shape"] for row in result["rows"]] == [
        "headline", "headline, memory kept", "headline, TRL patched",
    ]  # fmt: skip


def test_the_scale_suite_runs_without_a_gpu(tmp_path: Path) -> None:
    result = bench(tmp_path / "result.json", "--suite", "scale", "--peak-tflops", "1")

    assert [(row["weights"], row["checkpointing"], row["side"]) for row in result["rows"]] == [
        (weights, checkpointing, side)
        for weights in ("lora", "full")
        for checkpointing in (False, True)
        for side in ("ours", "TRL")
    ]
    assert all(row["pairs_per_second"] > 0 and 0 < row["mfu"] < 1 for row in result["rows"])


def test_the_training_step_is_compared_with_its_bare_products() -> None:
    from bench.training import efficiency

    result = efficiency.measure(runs=1, steps=1, tiny=True)

    assert len(result["seconds"]) == 1 and len(result["bare_flops_per_second"]) == 2
    assert 0 < result["efficiency"] < 1 and result["tokens"] == sum([24, 24]) + result["completion_tokens"]


def test_useful_flops_equal_a_count_by_hand() -> None:
    from bench.training import scale, sides

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 10}
    config = tiny_config(**sizes, num_key_value_heads=1)
    shape = sides.Shape("", prompt=3, shortest=2, longest=2, pairs=1, articles=1)
    examples = sides.make_examples(shape, 1, vocabulary=10)

    # q, k, v, o: 8x8, 8x4, 8x4, 8x8; gate, up, down: 8x16 each. 3 prompt tokens, and 2 completions of 2 tokens.
    layer, attended = 64 + 32 + 32 + 64 + 3 * 128, 6 + 2 * (2 * 3 + 3)
    full, lora = (
        scale.flops(scale.make_model(config, "sdpa", "meta", lora=with_lora), examples) for with_lora in (False, True)
    )
    assert full == 6 * layer * 7 + 6 * 8 * 10 * 4 + 12 * 8 * attended
    adapter = 8 * (16 + 12 + 12 + 16 + 3 * 24)  # rank x (in + out)
    assert lora == 4 * layer * 7 + 6 * adapter * 7 + 4 * 8 * 10 * 4 + 12 * 8 * attended


@pytest.mark.slow
def test_every_side_of_the_sampling_benchmark_writes_every_summary(tmp_path: Path) -> None:
    few = ("--articles", "4", "--batch-size", "4", "--max-tokens", "8", "--k", "8")
    result = bench(tmp_path / "result.json", *few, script="inference.sampling")

    assert set(result["runs"]) == {"rondo", "ray_data_llm", "ray_data_llm_uncached", "bare_vllm"}
    assert all(run["tokens"] == 4 * 8 * 8 for runs in result["runs"].values() for run in runs)
    assert result["vs_ray_data_llm"] > 0 and result["vs_bare_vllm"] > 0
    assert [row["at_once"] for row in result["idle"]] == [1, 2]
    assert all(0 <= row["engine_idle_share"] < 1 for row in result["idle"])


def test_the_clock_of_a_side_stops_at_its_last_table(tmp_path: Path) -> None:
    import pyarrow as pa

    from bench.inference.samplers import WarmupGate

    gate = WarmupGate(str(tmp_path), {"k": 1, "batch_size": 2, "articles": 4})

    class Dataset:
        def iter_batches(self, **options: Any) -> Iterator[pa.Table]:
            for _ in range(3):
                assert not gate.closed
                yield pa.table({"tokens": [7, 7]})
            assert gate.closed, "after the last table Ray may stop the actors"

    rows = gate.timed_rows(Dataset(), warmup_rows=2)
    result = gate.result(0.0, [row["tokens"] for row in rows])
    assert (result["summaries"], result["tokens"]) == (4, 28)
    assert 0 < result["seconds"] < result["whole_seconds"] and result["cpu_seconds"] >= 0

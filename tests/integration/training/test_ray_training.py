"""Training in this process and in real Ray Train jobs: resuming, killed workers, and input that is refused."""

import json
import os
import random
import shutil
import signal
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.config.hardware import TrainerHardware
from pipeline.storage.schema import COLUMNS
from pipeline.training import consistency
from pipeline.training.batches.article_tree import pack_rows
from pipeline.training.batches.batching import split_held_out
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.loop import TrainLoop
from pipeline.training.modeling import loading
from pipeline.training.modeling.fsdp import PolicyModule
from pipeline.training.modeling.logprobs import completion_logps, plain_logps
from tests.helpers.tiny_models import save_tiny_model
from tests.helpers.training import FolderCheckpointStore, read_examples, settings

LAYOUT = {"article_tree", "gradient_checkpointing", "torch_compile"}
PARTS = ("0.parquet", "1.parquet")
VOCABULARY = 65  # odd, like the intermediate size below, so that shards are uneven
SETTINGS = settings(learning_rate=1e-3, num_train_epochs=2, pairs_per_step=8, weight_decay=0.01, eval_fraction=0.15)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(
        tmp_path_factory.mktemp("model"),
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=65,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="module")
def rows(model_path: Path) -> list[dict[str, Any]]:
    """Chosen summaries have only small token ids, which the policy can learn."""
    draw = random.Random(0)
    rows = []
    for number in range(30):
        summaries = [
            {
                "text": "",
                "token_ids": [draw.randrange(*span) for _ in range(draw.randint(2, 9))],
                "finish_reason": "stop",
                "logp": None,
            }
            for span in ((1, 32), (1, 32), (32, 65), (1, 65))
        ]
        pairs = [(0, 2), (1, 2)] if number % 3 else [(0, 2)]
        rows.append(
            {
                "article_id": f"article-{number:03d}",
                "prompt_ids": [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(3, 40))],
                "summaries": summaries,
                "pairs": [{"chosen": chosen, "rejected": rejected, "reason": "right"} for chosen, rejected in pairs],
                "reference_logps": [None] * 4,
                "reference_digest": loading.weights_digest(model_path),
            }
        )
    refer(rows, model_path, "float32")
    return [*rows, {**rows[0], "article_id": "without-pairs", "pairs": [], "reference_logps": [None] * 4}]


def refer(rows: list[dict[str, Any]], model_path: Path, dtype: str, article_tree: bool = True) -> None:
    """Fill in the reference log-probabilities of the summaries that pairs need: the first three."""
    model = loading.load_model(model_path, dtype, article_tree=article_tree)
    articles = [(row["prompt_ids"], [s["token_ids"] for s in row["summaries"][:3]]) for row in rows]
    with torch.no_grad():
        for tree in pack_rows(articles, 300):
            logps = completion_logps(model, tree).tolist()
            for (article, completion), logp in zip(tree.completions, logps, strict=True):
                rows[article]["reference_logps"][completion] = logp


def write(rows: list[dict[str, Any]], folder: Path) -> str:
    """Write two Parquet parts that are not in order, and the other files of a stage's folder."""
    ids = pa.list_(pa.int32())
    schema = pa.schema(
        {
            "article_id": pa.string(),
            "prompt_ids": ids,
            "summaries": COLUMNS["summaries"],
            "pairs": pa.list_(pa.struct({"chosen": pa.int32(), "rejected": pa.int32(), "reason": pa.string()})),
            "reference_logps": pa.list_(pa.float32()),
            "reference_digest": pa.string(),
        }
    )
    folder.mkdir(parents=True)
    for part in (0, 1):
        pq.write_table(
            pa.Table.from_pylist(rows[part::2][::-1], schema), folder / f"{part}.parquet", write_page_checksum=True
        )
    (folder / "record.json").write_text("{}")
    (folder / "skipped").mkdir()
    pq.write_table(pa.table({"article_id": ["odd"], "skipped": ["too long"]}), folder / "skipped" / "0.parquet")
    return str(folder)


def local_loop(rows: list[dict[str, Any]], model_path: Path, folder: Path, **changes: Any) -> TrainLoop:
    """A training in this process, without Ray, with its checkpoints in `folder`."""
    layout = {name: changes.pop(name) for name in LAYOUT & changes.keys()}
    digest = changes.pop("digest", None) or loading.weights_digest(model_path)
    return TrainLoop(
        examples=read_examples(write(rows, folder / "rows"), PARTS, digest),
        model_path=str(model_path),
        settings=SETTINGS | changes,
        tokens_per_batch=200,
        device=torch.device("cpu"),
        save_steps=3,
        checkpoints=FolderCheckpointStore(folder),
        **layout,
    )


@pytest.fixture(scope="module")
def in_this_process(rows: list, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("alone")
    run = local_loop(rows, model_path, folder)
    answer = run.run()
    run.save(folder / "out")
    return answer, folder / "out"


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_training_lowers_the_loss_and_reports_it(in_this_process: tuple[dict, Path], model_path: Path) -> None:
    answer, out = in_this_process
    train = [line for line in lines(out) if "loss" in line]
    held_out = [line for line in lines(out) if "eval_loss" in line]

    assert answer["step0_loss"] == pytest.approx(0.693147, abs=1e-4) and answer["step0_max_abs_margin"] < 1e-4
    assert train[-1]["loss"] < 0.6 and answer["eval_accuracy_last"] > answer["eval_accuracy_first"]
    assert answer["steps"] == len(train) == train[-1]["step"]
    assert [line["epoch"] for line in held_out] == [0, 1, 2]
    assert answer["pairs"] == 2 * (50 - held_out[0]["eval_pairs"])
    assert train[-1]["rewards/margins"] == pytest.approx(
        train[-1]["rewards/chosen"] - train[-1]["rewards/rejected"], rel=1e-6
    )
    assert loading.weights_digest(out) != loading.weights_digest(model_path)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_checkpoint_of_any_number_of_workers_can_be_resumed(
    rows: list, model_path: Path, tmp_path: Path, in_this_process: tuple[dict, Path], parts: int
) -> None:
    run = local_loop(rows, model_path, tmp_path)
    run.run()
    saved = tmp_path / "last-000006"
    tensors = load_file(saved / "rank-00000-of-00001.safetensors")
    (saved / "rank-00000-of-00001.safetensors").unlink()
    for part in range(parts):
        shards = {name: tensor.chunk(parts)[part].contiguous() for name, tensor in tensors.items()}
        save_file(shards, saved / f"rank-{part:05d}-of-{parts:05d}.safetensors")

    again = local_loop(rows, model_path, tmp_path / "again")
    again.resume(saved)
    answer = again.run()
    again.save(tmp_path / "out")

    assert [line["step"] for line in again.lines] == [line["step"] for line in run.lines]
    assert loading.weights_digest(tmp_path / "out") == loading.weights_digest(in_this_process[1])  # bit for bit
    assert answer["step0_loss"] == in_this_process[0]["step0_loss"]
    assert answer["passport"] == in_this_process[0]["passport"]


def test_a_checkpoint_with_a_part_missing_is_refused(rows: list, model_path: Path, tmp_path: Path) -> None:
    local_loop(rows, model_path, tmp_path).run()
    saved = tmp_path / "last-000003"
    (saved / "rank-00000-of-00001.safetensors").rename(saved / "rank-00000-of-00002.safetensors")
    with pytest.raises(ValueError, match="last-000003 is not complete: it has .*rank-00000-of-00002"):
        local_loop(rows, model_path, tmp_path / "again").resume(saved)


@pytest.mark.parametrize(
    "layout",
    [
        {"article_tree": False},
        {"gradient_checkpointing": True},
        pytest.param({"torch_compile": True}, marks=pytest.mark.slow),
    ],
)
def test_the_layout_changes_only_rounding(
    rows: list, model_path: Path, tmp_path: Path, in_this_process: tuple[dict, Path], layout: dict[str, bool]
) -> None:
    run = local_loop(rows, model_path, tmp_path, **layout)
    run.run()
    run.save(tmp_path / "out")
    assert_same_run(tmp_path / "out", in_this_process[1], tolerance=1e-5)


@pytest.fixture
def overfitting_rows(rows: list) -> list[dict[str, Any]]:
    """Rows whose held-out articles have swapped verdicts: the more the policy learns, the worse it does on them."""

    def swapped(row: dict[str, Any]) -> list[dict[str, Any]]:
        return [pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in row["pairs"]]

    examples = [Example(row["article_id"], np.ones(1), (np.ones(1),), (), ()) for row in rows]
    held_out = {
        example.article_id for example in split_held_out(ExampleTable.of(examples), SETTINGS["eval_fraction"])[1]
    }
    return [row | {"pairs": swapped(row)} if row["article_id"] in held_out else row for row in rows]


FREQUENT_EVALUATION = {"eval_steps": 2, "metric_for_best_model": "eval_loss"}


def test_the_best_weights_are_loaded_at_the_end(overfitting_rows: list, model_path: Path, tmp_path: Path) -> None:
    last = local_loop(overfitting_rows, model_path, tmp_path / "last", **FREQUENT_EVALUATION)
    last.run()
    last.save(tmp_path / "last" / "out")
    losses = {line["step"]: line["eval_loss"] for line in last.lines if "eval_loss" in line and line["step"]}
    best = min(losses, key=lambda step: losses[step])
    assert best < max(losses) and len(losses) > 4

    run = local_loop(
        overfitting_rows, model_path, tmp_path / "best", **FREQUENT_EVALUATION, load_best_model_at_end=True
    )
    answer = run.run()
    run.save(tmp_path / "best" / "out")

    assert answer["best_step"] == best
    assert loading.weights_digest(tmp_path / "best" / "out") != loading.weights_digest(tmp_path / "last" / "out")
    # The saved weights are those that were evaluated. They are not their own reference, so this run stops at step 0.
    digest = loading.weights_digest(model_path)
    scored = local_loop(
        overfitting_rows, tmp_path / "best" / "out", tmp_path / "scored", digest=digest, **FREQUENT_EVALUATION
    )
    with pytest.raises(ValueError, match="at step 0"):
        scored.run()
    assert scored.lines[0]["eval_loss"] == pytest.approx(losses[best], abs=1e-6)


def test_best_weights_are_pruned_unless_one_of_the_last_two_checkpoints_needs_them(
    rows: list, model_path: Path, tmp_path: Path
) -> None:
    """Every evaluation here is the best so far, and a run may have to resume from one of the last two checkpoints."""
    run = local_loop(rows, model_path, tmp_path, **FREQUENT_EVALUATION, load_best_model_at_end=True)
    answer = run.run()
    states = [json.loads((folder / "state.json").read_text()) for folder in sorted(tmp_path.glob("last-*"))]

    assert [state["best"] for state in states[-2:]] == states[-1]["bests"]
    remaining = {path.name for path in tmp_path.glob("best-*")}
    assert remaining == {f"best-{step:06d}" for step in (answer["best_step"], *states[-1]["bests"])}
    assert answer["best_step"] == len(run.plan)

    again = local_loop(rows, model_path, tmp_path / "again", **FREQUENT_EVALUATION, load_best_model_at_end=True)
    again.resume(tmp_path / f"last-{states[1]['step']:06d}")
    again.run()
    assert again.state.bests == run.state.bests


def test_early_stopping_needs_held_out_articles(rows: list, model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="eval_fraction=0.0001 holds out none of 30 articles"):
        local_loop(rows, model_path, tmp_path, eval_fraction=0.0001, early_stopping_patience=1)


def test_a_training_of_one_step_changes_the_weights(rows: list, model_path: Path, tmp_path: Path) -> None:
    """All pairs are in one step, and with the default warmup its learning rate must not be 0."""
    run = local_loop(rows, model_path, tmp_path, pairs_per_step=1000, num_train_epochs=1)
    run.run()
    run.save(tmp_path / "out")
    assert len(run.plan) == 1 and run.lines[1]["learning_rate"] > 0
    assert loading.weights_digest(tmp_path / "out") != loading.weights_digest(model_path)


def test_training_stops_early_when_the_held_out_loss_rises(
    overfitting_rows: list, model_path: Path, tmp_path: Path
) -> None:
    run = local_loop(overfitting_rows, model_path, tmp_path, **FREQUENT_EVALUATION, early_stopping_patience=2)
    answer = run.run()
    losses = [(line["step"], line["eval_loss"]) for line in run.lines if "eval_loss" in line and line["step"]]

    assert answer["stopped_early"] and answer["steps"] < len(run.plan)
    assert answer["best_step"] == min(losses, key=lambda pair: pair[1])[0] == losses[-3][0]  # two evaluations ago


def test_references_of_other_weights_stop_the_training(rows: list, model_path: Path, tmp_path: Path) -> None:
    wrong = [{**row, "reference_logps": [logp and logp + 0.1 * i for i, logp in enumerate(row["reference_logps"])]}
             for row in rows]  # fmt: skip
    with pytest.raises(ValueError, match="at step 0, before any update, log-probabilities differ"):
        local_loop(wrong, model_path, tmp_path).run()


@pytest.mark.parametrize("beta", [0.1, 10])
def test_bf16_passes_the_step_0_check(rows: list, model_path: Path, tmp_path: Path, beta: float) -> None:
    """References from single sequences, training on trees: they differ in bf16, and a large beta must not matter."""
    rows = [{**row, "reference_logps": [None] * 4} for row in rows[:-1]]
    refer(rows, model_path, "bfloat16", article_tree=False)
    run = local_loop(rows, model_path, tmp_path, dtype="bfloat16", num_train_epochs=1, beta=beta)
    answer = run.run()

    assert answer["step0_max_abs_margin"] > 1e-3 * beta and answer["final_loss"] < answer["step0_loss"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_digest": "other"}, "are of weights other"),
        ({"reference_logps": [None, -1.0, -1.0, -1.0]}, "summary 0 is in a pair and its reference .* is None"),
        ({"reference_logps": [-1.0]}, "4 summaries and 1 reference_logps"),
        ({"pairs": [{"chosen": 0, "rejected": 4, "reason": ""}]}, r"pair \(0, 4\) is not two of 4"),
        ({"article_id": "article-001"}, "article-001 occurs twice"),
        ({"prompt_ids": []}, "has no tokens"),
    ],
)
def test_invalid_rows_are_refused(rows: list, tmp_path: Path, change: dict, message: str) -> None:
    path = write([{**rows[0], **change}, *rows[1:]], tmp_path / "rows")
    with pytest.raises(ValueError, match=message):
        read_examples(path, PARTS, rows[0]["reference_digest"])


def test_a_table_without_pairs_is_refused(rows: list, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        read_examples(
            write([{**row, "pairs": []} for row in rows], tmp_path / "rows"), PARTS, rows[0]["reference_digest"]
        )


def test_only_the_parts_of_the_table_are_read_and_damaged_ones_are_refused(rows: list, tmp_path: Path) -> None:
    path, digest = write(rows, tmp_path / "rows"), rows[0]["reference_digest"]
    examples = read_examples(path, PARTS, digest)
    shutil.copy(tmp_path / "rows/0.parquet", tmp_path / "rows/late.parquet")  # as if from a worker of a dead driver
    assert [e.article_id for e in read_examples(path, PARTS, digest)] == [e.article_id for e in examples]
    part = tmp_path / "rows/0.parquet"
    column = pq.read_metadata(part).row_group(0).column(0)
    written = bytearray(part.read_bytes())
    written[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    part.write_bytes(written)
    with pytest.raises(OSError, match=r"rows/0\.parquet cannot be read: .*CRC"):
        read_examples(path, PARTS, digest)
    part.unlink()
    with pytest.raises(ValueError, match=r"rows/0\.parquet is damaged or missing"):
        read_examples(path, PARTS, digest)


def test_a_part_without_a_needed_column_is_refused(rows: list, tmp_path: Path) -> None:
    path, part = write(rows, tmp_path / "rows"), tmp_path / "rows/1.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["pairs"]), part, write_page_checksum=True)
    with pytest.raises(ValueError, match=r"rows/1\.parquet .* the references stage did not write it \(.*pairs"):
        read_examples(path, PARTS, rows[0]["reference_digest"])


def train_with_ray(
    rows: list,
    model_path: Path,
    folder: Path,
    hardware: TrainerHardware | None = None,
    workers: Any = None,
    **options: Any,
) -> dict[str, Any]:
    from pipeline.training.ray_job.driver import TrainingWorkers, run_training

    arguments = {
        "rows_path": Path(write(rows, folder / "rows")).as_uri(),
        "rows_parts": PARTS,
        "model_path": model_path.as_uri(),
        "out_path": (folder / "out").as_uri(),
        "settings": SETTINGS,
        "checkpoint_path": (folder / "checkpoints").as_uri(),
        "reference_digest": rows[0]["reference_digest"],
    }
    hardware = hardware or TrainerHardware(workers=2, tokens_per_batch=60, save_steps=3)
    with ExitStack() as stack:
        workers = workers or stack.enter_context(TrainingWorkers(hardware, str(folder / "ray_train")))
        return run_training(workers, **(arguments | options))


def find_actor(name: str) -> int:
    """Process id of an actor of this name in the Ray that this test started, among this process's descendants."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended in the meantime, or is a zombie
            if "".join(process.cmdline()[:1]).startswith(f"ray::{name}"):
                return process.pid
    raise LookupError(f"no process of an actor {name}")


def wait_until_gone(name: str) -> None:
    """Ray ends a process a moment after its actor."""
    deadline = time.monotonic() + 30
    with suppress(LookupError):
        while find_actor(name):
            assert time.monotonic() < deadline, f"an actor {name} is still there"
            time.sleep(0.1)


def assert_same_run(ours: Path, theirs: Path, tolerance: float) -> None:
    for line, expected_line in zip(lines(ours), lines(theirs), strict=True):
        assert line.keys() == expected_line.keys()
        ignored = {"tokens_per_second", "naive_tokens_per_second", "peak_memory_gib"}
        if line["step"] <= 2:  # policy and reference are equal (the first update has a rate of 0): rounding decides
            ignored |= {name for name in line if name.endswith(("accuracies", "fell"))}
        for name in line.keys() - ignored:
            expected_value = pytest.approx(expected_line[name], rel=tolerance, abs=tolerance)
            assert line[name] == expected_value, (name, line["step"])
    expected = loading.load_model(theirs, "float32").state_dict()
    torch.testing.assert_close(
        dict(loading.load_model(ours, "float32").state_dict()), dict(expected), rtol=tolerance, atol=tolerance
    )


def test_two_workers_give_the_same_result_as_one_even_if_one_is_killed(
    ray_cluster: None, rows: list, model_path: Path, tmp_path: Path, in_this_process: tuple[dict, Path]
) -> None:
    """With another packing, two uneven shards and a SIGKILL in the middle, only rounding differs."""
    seen: list[dict[str, Any]] = []
    killed: list[int] = []

    def kill_once(line: dict[str, Any]) -> None:
        seen.append(line)
        if line["step"] == 7 and not killed:
            killed.append(find_actor("RayTrainWorker"))
            os.kill(killed[0], signal.SIGKILL)

    answer = train_with_ray(rows, model_path, tmp_path, on_progress=kill_once)

    steps = [line["step"] for line in seen if "loss" in line]
    assert killed and steps.count(7) == 2 and steps.count(6) == 1  # it resumed after step 6
    assert answer["steps"] == seen[0]["steps"] == steps[-1]
    assert_same_run(tmp_path / "out", in_this_process[1], tolerance=1e-5)


def test_training_resumes_after_controller_and_board_are_killed(
    ray_cluster: None, rows: list, model_path: Path, tmp_path: Path, in_this_process: tuple[dict, Path]
) -> None:
    """Ray Train restarts neither, and a node that is lost may take both with it."""
    seen: list[dict[str, Any]] = []
    killed: list[int] = []

    def kill_both(line: dict[str, Any]) -> None:
        seen.append(line)
        if line["step"] == 7 and not killed:
            # Find both before killing one: its workers die with it, and psutil fails on a process that is gone.
            killed.extend([find_actor("TrainController"), find_actor("Board")])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    hardware = TrainerHardware(tokens_per_batch=60, save_steps=3)
    answer = train_with_ray(rows, model_path, tmp_path, hardware=hardware, on_progress=kill_both)

    steps = [line["step"] for line in seen if "loss" in line]
    assert len(killed) == 2 and steps.count(1) == 1, "it resumed, and not from the start"
    assert answer["steps"] == seen[0]["steps"] == steps[-1]
    assert_same_run(tmp_path / "out", in_this_process[1], tolerance=1e-5)


def test_the_workers_stay_for_the_next_training(
    ray_cluster: None, rows: list, model_path: Path, tmp_path: Path, in_this_process: tuple[dict, Path]
) -> None:
    """Also after a training that was refused. The second training has nothing of the first one's."""
    from pipeline.training.ray_job.driver import TrainingWorkers

    hardware = TrainerHardware(workers=2, tokens_per_batch=60, save_steps=3)
    with TrainingWorkers(hardware, str(tmp_path / "ray_train")) as workers:
        workers.start()
        with pytest.raises(ValueError, match="are of weights .*, and they should be of other"):
            train_with_ray(rows, model_path, tmp_path / "refused", workers=workers, reference_digest="other")
        pid = find_actor("RayTrainWorker")
        for name in ("one", "two"):
            train_with_ray(rows, model_path, tmp_path / name, workers=workers)
            assert find_actor("RayTrainWorker") == pid
            assert_same_run(tmp_path / name / "out", in_this_process[1], tolerance=1e-5)
        assert workers.total() == (2, 0)
        assert [path.name for path in sorted((tmp_path / "two/checkpoints").glob("*/*"))] == [
            "rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors", "state.json",
        ]  # fmt: skip
    assert workers.total() == (0, 0) and not (tmp_path / "ray_train").exists()
    wait_until_gone("RayTrainWorker")


@pytest.mark.parametrize("count", [1, 2])
def test_a_training_that_is_interrupted_ends_its_workers_and_can_be_resumed(
    ray_cluster: None, rows: list, model_path: Path, tmp_path: Path, in_this_process: tuple[dict, Path], count: int
) -> None:
    hardware = TrainerHardware(workers=count, tokens_per_batch=60, save_steps=3)
    steps: list[int] = []

    def interrupt(line: dict[str, Any]) -> None:
        if line["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_with_ray(rows, model_path, tmp_path, hardware, on_progress=interrupt)
    wait_until_gone("RayTrainWorker")
    (tmp_path / "rows").rename(tmp_path / "the same rows")
    train_with_ray(rows, model_path, tmp_path, hardware, on_progress=lambda line: steps.append(line["step"]))
    assert min(steps) >= 7, "it resumed after step 6"
    assert_same_run(tmp_path / "out", in_this_process[1], tolerance=1e-5)


@pytest.fixture(scope="module")
def later_policy(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of a later round: the reference's weights plus a little noise."""
    folder = tmp_path_factory.mktemp("later-policy")
    model = loading.load_model(model_path, "float32")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    AutoModelForCausalLM.from_config(model.config).save_pretrained(folder)
    save_file({n: t.contiguous() for n, t in model.state_dict().items() if n != "lm_head.weight"},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    return folder


def test_training_can_start_from_a_policy_that_is_not_the_reference(
    rows: list, model_path: Path, later_policy: Path, tmp_path: Path
) -> None:
    """The loss at step 0 is that of the margins between policy and base, by Hugging Face's own forward."""
    digest = loading.weights_digest(model_path)
    options = SETTINGS | {"pairs_per_step": 10_000, "num_train_epochs": 1, "eval_fraction": 0.0}
    examples = read_examples(write(rows, tmp_path / "rows"), PARTS, digest)
    layout = {"tokens_per_batch": 200, "device": torch.device("cpu")}
    answer = TrainLoop(examples, str(later_policy), options, **layout, from_reference=False).run()

    margins = []
    policy, base = (loading.load_model(path, "float32", article_tree=False) for path in (later_policy, model_path))
    for row in rows:
        completions = [summary["token_ids"] for summary in row["summaries"]]
        with torch.no_grad():
            gain = plain_logps(policy, row["prompt_ids"], completions) - plain_logps(
                base, row["prompt_ids"], completions
            )
        margins += [float(gain[pair["chosen"]] - gain[pair["rejected"]]) for pair in row["pairs"]]
    expected = -torch.nn.functional.logsigmoid(SETTINGS["beta"] * torch.tensor(margins)).mean()
    assert answer["step0_loss"] == pytest.approx(float(expected), abs=1e-5)
    assert abs(answer["step0_loss"] - 0.693147) > 1e-3
    assert answer["passport"]["vllm_vs_trainer_max"] is None, "the rows have no log-probabilities from the sampler"
    with pytest.raises(ValueError, match="at step 0"):
        TrainLoop(examples, str(later_policy), options, **layout).run()


def test_references_of_another_model_than_the_reference_are_refused(
    rows: list, model_path: Path, later_policy: Path, tmp_path: Path
) -> None:
    examples = read_examples(write(rows, tmp_path / "rows"), PARTS, loading.weights_digest(model_path))
    reference, later = (PolicyModule(loading.load_model(path, "float32")) for path in (model_path, later_policy))
    device = torch.device("cpu")
    consistency.check_reference(reference, "base", examples, "float32", device)
    with pytest.raises(ValueError, match="^the reference is later, .*: the references are of other weights"):
        consistency.check_reference(later, "later", examples, "float32", device)


def test_the_sampler_is_compared_with_the_policy_and_not_with_the_base(
    rows: list, model_path: Path, later_policy: Path, tmp_path: Path
) -> None:
    policy = loading.load_model(later_policy, "float32", article_tree=False)
    sampled = []
    for row in rows:
        with torch.no_grad():
            logps = plain_logps(policy, row["prompt_ids"], [s["token_ids"] for s in row["summaries"]]).tolist()
        summaries = [summary | {"logp": logp} for summary, logp in zip(row["summaries"], logps, strict=True)]
        sampled.append(row | {"summaries": summaries})
    examples = read_examples(write(sampled, tmp_path / "rows"), PARTS, loading.weights_digest(model_path))
    model = PolicyModule(loading.load_model(later_policy, "float32"))
    values = consistency.measure_consistency(model, examples, torch.device("cpu"), is_reference=False)
    assert 0 < values["vllm_vs_trainer_max"] < 1e-4
    assert consistency.measure_consistency(model, examples, torch.device("cpu"))["vllm_vs_trainer_max"] > 1e-3


@pytest.mark.slow
def test_a_reference_that_is_not_the_policy_is_checked_by_all_workers(
    ray_cluster: None, rows: list, model_path: Path, later_policy: Path, tmp_path: Path
) -> None:
    """It is sharded like the policy, which is loaded when the reference is gone."""
    result = train_with_ray(rows, later_policy, tmp_path / "right", reference_path=model_path.as_uri())
    assert result["steps"] > 0 and result["step0_max_abs_margin"] > 1e-3
    with pytest.raises(ValueError, match="the references are of other weights"):
        train_with_ray(rows, later_policy, tmp_path, reference_path=later_policy.as_uri())


def test_an_engine_may_be_as_far_from_the_trainer_as_rounding_explains_for_short_samples(model_path: Path) -> None:
    draw = np.random.default_rng(0)
    examples = [
        Example(f"a{i}", draw.integers(1, VOCABULARY, 50), tuple(draw.integers(1, VOCABULARY, (2, 64))), ((0, 1),), ())
        for i in range(5)
    ]
    policy = PolicyModule(loading.load_model(model_path, "bfloat16"))
    make = partial(consistency.make_engine_check, policy, ExampleTable.of(examples), torch.device("cpu"))
    check = make({"dtype": "bfloat16", "vllm_vs_trainer_max": 1e-3})
    prompts = [example.prompt_ids.tolist() for example in examples]
    assert len(check.prompts) == 4 and all(ids in [[p[0], *p[-31:]] for p in prompts] for ids in check.prompts)
    # A summary has four times as many tokens as a sample, so the mean error of a sample's tokens is twice as large.
    with torch.no_grad():
        plain = [plain_logps(policy.model, *each).tolist() for each in zip(check.prompts, check.sequences, strict=True)]
    assert check.limit == pytest.approx(max(2 * 2e-2, 3 * check.largest_gap(plain)))
    assert make({"dtype": "bfloat16", "vllm_vs_trainer_max": 0.05}).limit == pytest.approx(2 * 2 * 0.05)

"""Tests that the benchmark of a worker's memory runs. Its figures are not tested."""

from pathlib import Path

from bench.training import corpus_memory, sides


def test_a_worker_trains_on_a_corpus_and_is_measured(tmp_path: Path) -> None:
    corpus_memory.write_corpus(tmp_path / "rows", pairs=1200, prompt=4, completion=3)
    sides.make_model(tmp_path / "model", corpus_memory.VOCABULARY, tiny=True)
    found = corpus_memory.train(tmp_path, steps=2, epochs=2, eval_fraction=0.01)

    assert len(list((tmp_path / "rows").iterdir())) == 2  # parts
    assert found["file"] > 1200 * (4 + 2 * 3) * 4  # bytes of token ids
    assert 0 < found["RssAnon"] < found["VmRSS"] and found["seconds"] > 0

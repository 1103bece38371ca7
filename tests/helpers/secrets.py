"""Secrets that tests put into the environment, and a check that no file of a run holds one."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

SECRETS = {
    "OPENAI_API_KEY": "sk-proj-Zq81xOpenAiKey0042",
    "HF_TOKEN": "hf_kQx7HuggingFaceTok3n",
    "AWS_ACCESS_KEY_ID": "AKIAQ7EXAMPLE0042XYZ",
    "AWS_SECRET_ACCESS_KEY": "wJalr9XutnFEMIbPxRfiCYEXAMPLEKEY",
    "WANDB_API_KEY": "5f3c0d9be1a24c7788aa00ff11ee22dd33cc44bb",
    "RAY_AUTH_TOKEN": "9a7b1c2d3e4f5061728394a5b6c7d8e9",
    "MY_PASSWORD": "correct-horse-battery",
}


def secrets_in(data: bytes) -> list[str]:
    """Names of the secrets whose values stand in `data`."""
    return [name for name, value in SECRETS.items() if value.encode() in data]


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file with its bytes; a Parquet file also with its rows as text, because its own bytes are compressed."""
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        yield path, path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield path, f"{table.schema.metadata} {table.to_pylist()}".encode()


def check_holds_none(run: Path, output: str) -> None:
    """Check a finished run of rounds with a report, and what its driver has printed."""
    files = list(contents(run))
    names = {
        "record.json",
        "config.yaml",
        "report.md",
        "report.html",
        "progress.json",
        "metrics.json",
        "model.safetensors",
    }
    assert names <= {path.name for path, _ in files}
    assert any(path.suffix == ".parquet" for path, _ in files)
    assert {str(path): leaked for path, data in files if (leaked := secrets_in(data))} == {}
    assert secrets_in(output.encode()) == []

"""Starts a local S3 server (moto's). `ENVIRONMENT` holds the variables that make every client use it."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


PORT = _free_port()
ADDRESS = f"http://127.0.0.1:{PORT}"
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": ADDRESS,
    "AWS_ACCESS_KEY_ID": "s3tests0123456789",
    "AWS_SECRET_ACCESS_KEY": "s3tests9876543210",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def serving() -> Iterator[str]:
    """Run the server while the block runs; gives the URI of an empty bucket."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{ADDRESS}/bucket", method="PUT")).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        yield "s3://bucket"
    finally:
        server.terminate()
        server.wait()

"""A small run, and the servers of dashboards as they are on bad days."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from tests import machine
from tests.settings import smallest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
COMMAND = [
    *smallest(model="mlp"), "trainer.max_epochs=4", "dataset.limit=160", "trainer.log_every_n_steps=1",
    "callbacks=[checkpoints,rng,nonfinite,pictures]",
]  # fmt: skip
# what a client of wandb needs to talk to a server that is not wandb's own
WANDB = {"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}


class At(pl.Callback):
    """Does something before the batch that follows ``steps`` optimizer steps."""

    def __init__(self, steps: int, act: Callable[[], Any]) -> None:
        self.steps, self.act = steps, act

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            self.act()


class Randomness(pl.Callback):
    """Keeps the state of Python's random numbers at the end of the training."""

    state: Any = None

    def on_fit_end(self, *_: Any) -> None:
        self.state = random.getstate()


def outcome(overrides: list[str], place: Path, *extra: pl.Callback) -> tuple[Any, ...]:
    """What a training comes to: its weights, its numbers, Python's random numbers."""
    randomness = Randomness()
    result = machine.run(overrides, place, randomness, *extra)
    return machine.weights(place), (place / "metrics.csv").read_text(), randomness.state, result["metrics"]


def warnings_of(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The sentences about loggers."""
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: logger ")]


def series(place: Path) -> dict[str, list[tuple[int, float]]]:
    """name -> [(step, value), ...] of a run's ``metrics.csv``."""
    out: dict[str, list[tuple[int, float]]] = {}
    for line in (place / "metrics.csv").read_text().splitlines()[1:]:
        step, _, name, value = line.split(",")
        out.setdefault(name, []).append((int(step), float(value)))
    return out


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """A server that accepts every connection and never answers; gives its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextlib.contextmanager
def mlflow_server(folder: Path, backend: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """``mlflow server`` over a database, with its page; gives its address and its process."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [BIN / "mlflow", "server", "--backend-store-uri", backend, "--port", str(port), "--workers", "1"]
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": f"{BIN}:{os.environ['PATH']}"}
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(
            [*map(str, command), "--artifacts-destination", str(folder / "files")],
            cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.1)
        yield address, process
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


class _Wandb(BaseHTTPRequestHandler):
    """As much of wandb's server as its client needs to begin a run and to send lines."""

    protocol_version = "HTTP/1.1"
    server: "FakeWandb"

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            answer = {"data": self._data(json.loads(body))}
        elif self.path.endswith("file_stream"):
            self.server.lines += json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST

    def _data(self, asked: dict[str, Any]) -> dict[str, Any]:
        query, values = asked["query"], asked.get("variables") or {}
        versions = {"max_cli_version": "9.9.9", "min_cli_version": "0.0.1"}
        if "upsertBucket" in query:
            self.server.runs.append(values)
            project = {"id": "p", "name": "papermix", "entity": {"id": "e", "name": "me"}}
            names = {"name": values.get("name"), "displayName": values.get("displayName") or "run"}
            bucket = {"id": "x", "description": "", "config": "{}", "sweepName": None, "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": {**names, **bucket}, "inserted": True}}
        if "viewer" in query:
            viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer, "serverInfo": {"cliVersionInfo": versions, "features": []}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": []}}
        return {"model": None, "serverInfo": {"cliVersionInfo": versions, "features": []}}


class FakeWandb(ThreadingHTTPServer):
    """A server for wandb's client; keeps the runs that it was asked to begin and the lines of their history."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Wandb)
        self.runs: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "FakeWandb":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.shutdown()
        self.server_close()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of ``size`` (``64k``) at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk needs the right to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

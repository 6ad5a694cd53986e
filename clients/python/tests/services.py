"""The services as processes on the embedded models, on free ports."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(os.environ.get("ATTUNE_BIN", ROOT / "target" / "debug"))


def command(*args: str) -> str:
    """Runs `attune`, and gives what it printed."""
    done = subprocess.run([BIN / "attune", *args], check=True, capture_output=True, text=True)
    return done.stdout


@contextmanager
def service(name: str, *args: str) -> Iterator[str]:
    """Runs a service and gives its address, HOST:PORT; it ends with the `with`."""
    whole: list[str | Path] = [BIN / name, "--listen", "127.0.0.1:0", "--threads", "1", *args]
    # Nobody's home is used: profiles are kept nowhere, but where the arguments say so.
    env = {**os.environ, "ATTUNE_REWARD_PROFILES__URL": ""}
    with subprocess.Popen(whole, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("listening on "):
                    yield line.removeprefix("listening on ").strip()
                    return
            raise RuntimeError(f"{name} ended before it listened: {process.wait()}")
        finally:
            process.kill()


@contextmanager
def worker(*args: str) -> Iterator[str]:
    """A reward worker on the embedded PersRM."""
    with service("attune-reward", "--model", str(ROOT / "models/demo/persrm"), *args) as address:
        yield address


@contextmanager
def generator(reward: str, *args: str) -> Iterator[str]:
    """A generator on the embedded base model."""
    model = str(ROOT / "models/demo/base")
    with service("attune-generator", "--model", model, "--reward", reward, *args) as address:
        yield address

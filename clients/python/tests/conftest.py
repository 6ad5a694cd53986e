from __future__ import annotations

from collections.abc import Iterator

import pytest

from attune import Client
from services import generator, worker


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """A pair in plain text."""
    with worker() as reward, generator(f"http://{reward}") as address:
        yield f"http://{address}"


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    with Client(endpoint, timeout=60) as client:
        yield client

"""TLS and tokens, with certificates made here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

import attune
from attune import AsyncClient, Client
from services import command, generator, worker

QUESTION = "How do I bake the bread?"


@dataclass
class Secured:
    """A generator that speaks TLS, wants certificates and tokens, and is called `door.example`."""

    endpoint: str
    ca: Path
    cert: Path
    key: Path
    folder: Path

    def client(self, **changed: object) -> Client:
        settings = {"ca": self.ca, "cert": self.cert, "key": self.key, "server_name": "door.example"}
        settings["token_file"] = self.folder / "alice.token"
        return Client(self.endpoint, timeout=60, **(settings | changed))  # type: ignore[arg-type]

    def known(self, *owners: str) -> None:
        """Makes new tokens, and has the generator know these alone."""
        lines = []
        for owner in owners:
            file = self.folder / f"{owner}.token"
            file.unlink(missing_ok=True)
            lines.append(command("token", "new", owner, "--out", str(file)))
        new = self.folder / "tokens.new"
        new.write_text("".join(lines))
        os.replace(new, self.folder / "tokens")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for file, name in (("door", "door.example"), ("me", "me.example")):
        issued = authority.issue_cert(name)
        issued.cert_chain_pems[0].write_to_path(str(folder / f"{file}.pem"))
        issued.private_key_pem.write_to_path(str(folder / f"{file}.key"))
    secured = Secured("", folder / "ca.pem", folder / "me.pem", folder / "me.key", folder)
    secured.known("alice", "bob")
    settings = {
        "server.tls.cert": folder / "door.pem",
        "server.tls.key": folder / "door.key",
        "server.tls.client_ca": folder / "ca.pem",
        "server.tls.client_names": "me.example",
        "server.reload_seconds": "0.02",
        "auth.tokens": folder / "tokens",
    }
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    with worker() as reward, generator(f"http://{reward}", *flags) as address:
        secured.endpoint = f"https://{address}"
        yield secured


def test_who_has_certificate_and_token_is_served(secured: Secured) -> None:
    with secured.client() as client:
        answer = client.generate(QUESTION, prefer=["with a funny joke"], max_tokens=8)
        assert len(answer.token_ids) == 8 and answer.tokens[0].guided

    async def the_same() -> list[int]:
        settings = {"ca": secured.ca, "cert": secured.cert, "key": secured.key}
        token = secured.folder / "bob.token"
        async with AsyncClient(
            secured.endpoint, server_name="door.example", token_file=token, timeout=60, **settings
        ) as client:
            return (await client.generate(QUESTION, prefer=["with a funny joke"], max_tokens=8)).token_ids

    assert asyncio.run(the_same()) == answer.token_ids


def test_others_are_not(secured: Secured) -> None:
    with secured.client(token_file=None) as client, pytest.raises(attune.Unauthenticated):
        client.generate(QUESTION)
    stranger = trustme.CA()
    stranger.cert_pem.write_to_path(str(secured.folder / "stranger.pem"))
    wrong: list[dict[str, object]] = [
        {"cert": None, "key": None},
        {"ca": secured.folder / "stranger.pem"},
        {"server_name": None},
    ]
    for settings in wrong:
        with secured.client(**settings) as client, pytest.raises(attune.Unavailable):
            client.describe()


def test_a_new_token_counts_at_the_next_call(secured: Secured) -> None:
    with secured.client() as client:
        assert client.generate(QUESTION, max_tokens=1).token_ids
        old = (secured.folder / "alice.token").read_text()
        secured.known("alice", "bob")
        assert (secured.folder / "alice.token").read_text() != old
        # The generator looks at its file now and then; the client reads its own at once.
        while True:
            try:
                client.generate(QUESTION, max_tokens=1)
                break
            except attune.Unauthenticated:
                continue
        (secured.folder / "alice.token").write_text(old)
        with pytest.raises(attune.Unauthenticated):
            client.generate(QUESTION, max_tokens=1)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("two words\n")
    for settings, said in (
        ({"endpoint": "http://host.example:1", "token_file": token}, "plain text"),
        ({"endpoint": "http://127.0.0.1.example:1", "token_file": token}, "plain text"),
        ({"endpoint": "http://127.0.0.1:1", "ca": token}, "https"),
        ({"endpoint": "https://127.0.0.1:1", "cert": token}, "go together"),
        ({"endpoint": "127.0.0.1:1"}, "write it as"),
        ({"endpoint": "https://host.example"}, "write it as"),
    ):
        with pytest.raises(ValueError, match=said):
            Client(**settings)
    with Client("http://127.0.0.1:1", token_file=token) as client:
        with pytest.raises(ValueError, match="holds no token"):
            client.describe()
    with pytest.raises(FileNotFoundError):
        Client("https://host.example:1", ca=tmp_path / "nowhere.pem")

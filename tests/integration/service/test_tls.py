"""Chat completions go to a provider over TLS: one whose certificate is in the bundle that SSL_CERT_FILE names is asked,
any other one is not."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from test_two_processes import command
from upstream import listening

ASKED = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
ANSWER = b'{"id": "c", "object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": "yes"}}]}'


def certificate(folder: Path, name: str, host: str) -> tuple[Path, Path]:
    """One that signs itself, and its key."""
    place, key = folder / f"{name}.pem", folder / f"{name}.key"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    named = ["-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName={host}"]
    subprocess.run([*made, *named, "-keyout", str(key), "-out", str(place)], check=True, capture_output=True)
    return place, key


@contextmanager
def provider(certificate: tuple[Path, Path], asked: list[bytes]) -> Iterator[str]:
    """Its base URL, https. What it is asked goes into `asked`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(ANSWER)))
            self.end_headers()
            self.wfile.write(ANSWER)

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with listening(Handler, context) as url:
        yield url


def test_a_provider_is_asked_whose_certificate_is_in_the_bundle_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = certificate(tmp_path, "known", "IP:127.0.0.1")
    unknown = certificate(tmp_path, "unknown", "IP:127.0.0.1")
    asked: dict[str, list[bytes]] = {"openai": [], "anthropic": []}
    with ExitStack() as stack:
        for name, its in (("openai", known), ("anthropic", unknown)):
            url = stack.enter_context(provider(its, asked[name]))
            monkeypatch.setenv(f"{name.upper()}_BASE_URL", url if name == "openai" else url.removesuffix("/v1"))
            monkeypatch.setenv(f"{name.upper()}_API_KEY", "k")
        monkeypatch.setenv("SSL_CERT_FILE", str(known[0]))
        _, client = stack.enter_context(command(tmp_path))
        through = client.post("/v1/chat/completions", json={"model": "m", **ASKED})
        assert (through.status_code, through.content, len(asked["openai"])) == (200, ANSWER, 1)
        refused = client.post("/v1/messages", json={"model": "m", **ASKED})
        assert "steer_retries" not in client.get("/metrics").text  # The next attempt would find the same one.
    assert (refused.status_code, asked["anthropic"]) == (502, [])
    said = refused.json()["error"]["message"]
    assert "the certificate of anthropic" in said
    assert "is not trusted: self-signed certificate" in said
    assert "SSL_CERT_FILE" in said


def test_a_certificate_in_the_bundle_is_that_of_its_own_host_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = certificate(tmp_path, "other", "DNS:elsewhere.example")
    asked: list[bytes] = []
    with provider(other, asked) as url:
        for name, value in {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "k", "SSL_CERT_FILE": str(other[0])}.items():
            monkeypatch.setenv(name, value)
        with command(tmp_path) as (_, client):
            refused = client.post("/v1/chat/completions", json={"model": "m", **ASKED})
    assert (refused.status_code, asked) == (502, [])
    assert "not valid for '127.0.0.1'" in refused.json()["error"]["message"]

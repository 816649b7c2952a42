"""Answers scrapes: GET /metrics over HTTP, for a bounded number of clients at a time."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.exposition import choose_encoder

from virtserial.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

MAX_CLIENTS: Final = 16
"""At once: more are closed."""
CLIENT_TIME: Final = 10.0
"""Seconds that a client may take for its request, and for each part of the answer."""
PAGE: Final = b"virtserial exporter: the figures are at /metrics\n"


class ScrapeServer(ThreadingMixIn, TCPServer):
    """Listens; `serve_forever` serves.

    Args:
        where: HOST:PORT, [HOST]:PORT or :PORT; port 0 for any.
        registry: what is told.
        certificate, key: files in PEM form for HTTPS; "" for HTTP.

    Raises:
        ConfigError: it cannot listen there, or the files are no good.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, where: str, registry: CollectorRegistry, certificate: str = "", key: str = "") -> None:
        self.registry = registry
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
        self._tls = _tls(certificate, key) if certificate or key else None
        host, _, port = where.rpartition(":")
        try:
            if not 0 <= int(port) < 1 << 16:
                raise ValueError
            found = socket.getaddrinfo(
                host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
            )
            self.address_family, _, _, _, address = found[0]
            super().__init__((str(address[0]), int(address[1])), _Handler)
        except ValueError:
            raise UsageError(f"--listen {where}: not HOST:PORT", "write it as 127.0.0.1:9817 or [::1]:9817") from None
        except OSError as error:
            raise ConfigError(f"--listen {where}: {error.strerror or error}") from error

    @property
    def url(self) -> str:
        """Where the figures are."""
        host, port = self.server_address[:2]
        name = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http{'s' if self._tls is not None else ''}://{name}:{port}/metrics"

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  # as its base class has it
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            request.settimeout(CLIENT_TIME)
            if self._tls is not None:
                request = self._tls.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError:
            self.shutdown_request(request)  # of the handshake
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _tls(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--tls-cert {certificate}, --tls-key {key}: {error.strerror or error}") from error
    return context


class _Handler(BaseHTTPRequestHandler):
    server: ScrapeServer
    server_version = "virtserial"
    sys_version = ""
    timeout = CLIENT_TIME

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, form = choose_encoder(self.headers.get("Accept") or "")
            self._answer(200, form, encode(self.server.registry))
        elif path == "/":
            self._answer(200, "text/plain; charset=utf-8", PAGE)
        else:
            self.send_error(404)

    def _answer(self, status: int, form: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", form)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *words: object) -> None:  # noqa: A002  # the base class calls it so
        """Say nothing: scrapes come every few seconds."""

"""`virtserial exporter`: figures of all that runs here, for Prometheus."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError
from virtserial.guest.words import Parser
from virtserial.metrics.survey import MAX_PORTS, Survey

if TYPE_CHECKING:
    from typing import NoReturn

PROGRAM = "virtserial exporter"
LISTEN = "127.0.0.1:9817"


def run(words: list[str]) -> int:
    """Run the command; return its exit status.

    Raises:
        ConfigError: the extra is not installed, or it cannot listen.
    """
    parser = Parser(
        PROGRAM,
        description="Serve the figures of this user's virtual machines, for root of all users', to Prometheus.",
    )  # fmt: skip
    parser.add_argument("--listen", default=LISTEN, metavar="HOST:PORT", help=f"where, {LISTEN} if not said")
    parser.add_argument("--tls-cert", default="", metavar="FILE", help="serve HTTPS: the certificate in PEM form")
    parser.add_argument("--tls-key", default="", metavar="FILE", help="its key")
    parser.add_argument(
        "--max-ports", type=int, default=MAX_PORTS, metavar="N",
        help=f"give no figures of more ports, {MAX_PORTS} if not said; each has up to 10 series",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="print the figures and end")
    options = parser.parse_args(words)
    if options.max_ports < 0:
        parser.error("--max-ports: not a number of ports")
    try:
        from prometheus_client import generate_latest

        from virtserial.metrics.exposition import registry_of
        from virtserial.metrics.server import ScrapeServer
    except ImportError as error:
        raise ConfigError(
            f"{PROGRAM} needs the package {(error.name or '').partition('.')[0]}, which is not installed",
            "pipx inject virtserial prometheus-client, or python3-prometheus-client of your distribution",
        ) from error
    registry = registry_of(Survey(options.max_ports))
    if options.once:
        sys.stdout.write(generate_latest(registry).decode())
        return 0
    signal.signal(signal.SIGTERM, _end)
    with ScrapeServer(options.listen, registry, options.tls_cert, options.tls_key) as server:
        print(f"{PROGRAM}: {server.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _end(*_: object) -> NoReturn:
    raise KeyboardInterrupt

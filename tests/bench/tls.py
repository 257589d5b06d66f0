"""What TLS costs a delivery: to one subscriber after the other, and joined."""

import ssl
import tempfile
from pathlib import Path

import trustme

from bench.clients import Tls, body, clients, put
from bench.figures import Figures
from bench.rounds import compared, cpu_us_per_delivery, delivered_ms, in_turn
from bench.servers import running
from wire import free_port

_AT_ONCE = {"each": 1, "joined": 64}  # publishers


def over_tls(subscribers: int, events: int, rounds: int, size: int) -> Figures:
    """Subscribers over TLS, beside as many in the clear: one event at a time, and 64 at once."""

    def request(n: int) -> bytes:
        return put("/bench", body(n, size))

    figures: Figures = {}
    paths = ["/bench"] * subscribers
    with tempfile.TemporaryDirectory(prefix="pypubsub-bench-") as directory:
        settings, connect = _certified(Path(directory))
        with running() as clear, running(tls=settings) as daemon:
            daemon.logged("serves https://")
            for name, publishers in _AT_ONCE.items():
                with (
                    clients(daemon, request, publishers=publishers, paths=paths, tls=connect) as encrypted,
                    clients(clear, request, publishers=publishers, paths=paths) as plain,
                ):
                    ours, theirs = in_turn(
                        rounds,
                        lambda: encrypted.run(events, in_step=True),
                        lambda: plain.run(events, in_step=True),
                    )
                for figure_name, value in _VALUES.items():
                    figures[f"{figure_name}_{name}"] = compared(value, ours, theirs, "without")
    return figures


_VALUES = {"cpu_us_per_delivery": cpu_us_per_delivery, "delivered_ms_p50": delivered_ms(50)}


def _certified(directory: Path) -> tuple[dict[str, object], Tls]:
    """server.tls with a certificate that is made for this, and how to connect to it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(directory / "key")
    certificate.cert_chain_pems[0].write_to_path(directory / "crt")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    port = free_port()
    return {"port": port, "cert": str(directory / "crt"), "key": str(directory / "key")}, Tls(port, context)

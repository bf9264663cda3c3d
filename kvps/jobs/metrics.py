"""What the servers of a store say of themselves, for Prometheus."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kvps.errors import StoreError

try:
    from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.exposition import start_http_server
except ImportError as exc:
    raise StoreError('metrics need prometheus-client: pip install "kvps[server]"') from exc

GAUGES = {"up": "1 if the server is at work", "waiting": "requests that have come and are not answered",
          "resident_bytes": "memory of the process", "began_seconds": "when the process began, in seconds since 1970"}
COUNTERS = {"requests": "requests answered", "errors": "requests answered by an error", "seconds": "time at work on requests",
            "bytes_in": "bytes of requests", "bytes_out": "bytes of answers"}


class Collector:
    """Turns what the starter knows of its servers into metrics, whenever they are asked for."""

    def __init__(self, servers: Callable[[], list[dict[str, Any]]]) -> None:
        """Take what returns a row a server: "server", "up", "starts", and "facts" as Server.facts() has them, or None."""
        self._servers = servers

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        gauges = {name: GaugeMetricFamily(f"kvps_{name}", text, labels=["server"]) for name, text in GAUGES.items()}
        counters = {name: CounterMetricFamily(f"kvps_{name}", text, labels=["server", "request"])
                    for name, text in COUNTERS.items()}
        starts = CounterMetricFamily("kvps_starts", "how often the server was started", labels=["server"])
        for row in self._servers():
            gauges["up"].add_metric([row["server"]], float(row["up"]))
            starts.add_metric([row["server"]], row["starts"])
            if (facts := row["facts"]) is None:
                continue
            for name, field in (("waiting", "waiting"), ("resident_bytes", "rss_bytes"), ("began_seconds", "began")):
                gauges[name].add_metric([row["server"]], facts[field])
            for request, done in facts["requests"].items():
                for name, counter in counters.items():
                    counter.add_metric([row["server"], request], done[name])
        yield from (*gauges.values(), *counters.values(), starts)


def serve_metrics(port: int, host: str, servers: Callable[[], list[dict[str, Any]]]) -> tuple[int, Callable[[], None]]:
    """Answer HTTP at a port, 0 being a free one; return the port, and what ends that.

    Raises:
        StoreError: the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(Collector(servers))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as exc:
        raise StoreError(f"{host}:{port}: cannot be bound for metrics: {exc.strerror}") from exc

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, end

"""The numbers of a pool as Prometheus metrics; it needs `prometheus-client`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .numbers import BOUNDS, PoolNumbers, Times

GAUGES = {
    "rows": "Conversations that may be served at once.",
    "rows_in_use": "Conversations that are served.",
    "waiting": "Turns that wait for a row.",
    "batch_bytes": "Bytes of the cache of the running batch.",
    "sleeping_bytes": "Bytes of conversations in memory between their turns.",
}

TOKENS = {
    "read": "Tokens of messages that were fed.",
    "shared": "Tokens of messages that were copied from another conversation that began alike.",
    "written": "Tokens of answers.",
}

TIMES = {
    "time_to_first_token": "Seconds from a message to the first token of its answer.",
    "time_per_token": "Seconds from each token of an answer to the next one.",
}


class PoolCollector(Collector):
    """Tell Prometheus the numbers of a pool, each time it asks.

    Parameters
    ----------
    numbers : callable
        Returns them, such as `lambda: pool.numbers`.
    prefix : str, default "attention_sinks"
        What the names of all metrics begin with.

    Examples
    --------
    >>> prometheus_client.REGISTRY.register(PoolCollector(lambda: pool.numbers))
    """

    def __init__(self, numbers: Callable[[], PoolNumbers], prefix: str = "attention_sinks") -> None:
        self._numbers, self._prefix = numbers, prefix

    def describe(self) -> list[Metric]:
        """Name no metric before it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        numbers = self._numbers()
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"{self._prefix}_{name}", text, value=getattr(numbers, name))
        turns = CounterMetricFamily(f"{self._prefix}_turns", "Turns, by how they ended.", labels=["outcome"])
        for outcome in ("finished", "stopped", "failed", "refused"):
            turns.add_metric([outcome], getattr(numbers, f"turns_{outcome}"))
        yield turns
        for name, text in TOKENS.items():
            yield CounterMetricFamily(f"{self._prefix}_tokens_{name}", text, value=getattr(numbers, f"tokens_{name}"))
        for name, text in TIMES.items():
            yield self._histogram(name, text, getattr(numbers, name))

    def _histogram(self, name: str, text: str, times: Times) -> Metric:
        buckets, count = [], 0
        for bound, more in zip((*map(str, BOUNDS), "+Inf"), times.buckets, strict=True):
            count += more
            buckets.append((bound, float(count)))
        return HistogramMetricFamily(f"{self._prefix}_{name}_seconds", text, buckets=buckets, sum_value=times.total)

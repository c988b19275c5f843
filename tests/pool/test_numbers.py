"""What a pool says of its own work."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from attention_sinks.pool.numbers import BOUNDS, Meter, Times
from attention_sinks.pool.prometheus import PoolCollector
from support.pools import config


def test_times_are_counted_in_buckets():
    times = Times()
    for seconds in (0.001, BOUNDS[0], 0.3, 100.0):
        times = times.with_one(seconds)
    assert times.count == 4 and times.mean == pytest.approx(sum((0.001, BOUNDS[0], 0.3, 100.0)) / 4)
    assert times.buckets[0] == 2 and times.buckets[BOUNDS.index(0.5)] == 1 and times.buckets[-1] == 1
    assert sum(times.buckets) == 4 and Times().mean == 0.0


def test_tokens_per_second_are_those_of_the_last_seconds(monkeypatch):
    now, meter = [100.0], Meter()
    monkeypatch.setattr("attention_sinks.pool.numbers.time.monotonic", lambda: now[0])
    for _ in range(60):
        now[0] += 0.1
        meter.said(now[0] - 0.05, is_first=False)
    numbers = meter.numbers(rows=1)
    assert numbers.tokens_per_second == 60 / 30 and numbers.time_per_token.count == 60
    now[0] += 31
    assert meter.numbers(rows=1).tokens_per_second == 0 and meter.numbers(rows=1).tokens_written == 60


def test_the_numbers_of_a_pool(pool_of):
    pool = pool_of(2)
    assert pool.numbers.batch_bytes == pool.numbers.tokens_read == 0
    answers = [pool.conversation().ask(f"w{number}") for number in range(5)]
    numbers = pool.numbers
    assert numbers.rows == 2 and numbers.rows_in_use == numbers.waiting == 0 and numbers.turns_finished == 5
    assert numbers.tokens_read == sum(answer.usage.tokens_read for answer in answers)
    written = sum(answer.usage.tokens_written + (answer.finish_reason == "stop") for answer in answers)
    assert numbers.tokens_written == written  # a token that ends an answer was made, too
    assert numbers.time_to_first_token.count == 5
    assert numbers.time_per_token.count == numbers.tokens_written - 5


def test_prometheus_is_told_the_same(pool_of):
    pool, registry = pool_of(2), CollectorRegistry()
    registry.register(PoolCollector(lambda: pool.numbers))
    for number in range(3):
        pool.conversation().ask(f"w{number}", generation_config=config(max_new_tokens=5))
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    samples = {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}
    numbers = pool.numbers
    assert samples["attention_sinks_rows",] == 2
    assert samples["attention_sinks_turns_total", "finished"] == 3
    assert samples["attention_sinks_tokens_written_total",] == numbers.tokens_written
    assert samples["attention_sinks_time_to_first_token_seconds_count",] == 3
    assert samples["attention_sinks_time_per_token_seconds_bucket", "+Inf"] == numbers.time_per_token.count
    assert all(family.documentation for family in families)

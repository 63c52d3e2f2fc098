"""A server under attack by one client, as another client sees it."""

from __future__ import annotations

import pytest

pytest.importorskip("psutil", reason="memory of the server is read with psutil")

from benchmarks.server_attack import attacked


@pytest.mark.slow
def test_one_client_stops_no_other_and_fills_no_memory():
    found = attacked(30)
    assert found["errors"] == []
    # Other tests run beside it. The times of a quiet machine are in benchmarks/README.md.
    assert found["healthz"]["p99_ms"] < 2000
    assert found["one sequence"]["p99_ms"] < 5000
    resident = found["resident_MB"]
    assert max(resident["largest"]) < resident["before"] + 1024
    # The attack was one: what is right was computed, and what is wrong was refused.
    assert found["answers"].keys() >= {"200", "422", "499"}

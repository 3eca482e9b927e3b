from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.metrics import SessionMetrics, session_seconds, session_total
from generation.storage import Store


def test_the_total_of_a_stage_is_read_from_the_last_file_of_each_session_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read, read_lines = Store(str(tmp_path)), list[str](), Store.read_lines
    for day, seconds, stage in ((1, 300, "generation"), (2, 50, "generation"), (3, 70, "engines-small")):
        metrics = SessionMetrics(store, stage, datetime(2026, 1, day, tzinfo=UTC))
        for second in range(seconds + 1):
            metrics.book({"seconds": float(second), "gpu_seconds": 2.0 * second})
        metrics.flush()

    def noted(store: Store, relative: str) -> list[Any]:
        read.append(relative)
        return read_lines(store, relative)

    monkeypatch.setattr(Store, "read_lines", noted)
    assert session_seconds(store, "generation") == 350.0
    assert len(read) == 2
    assert session_total(store, "generation", "gpu_seconds") == 700.0
    assert session_total(store, "training", "seconds") == 0.0

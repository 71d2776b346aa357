"""What a study measured, of pytest-benchmark's results as much as its tables need."""

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
METRICS = (
    "latency_s", "eager_s", "numerical_error", "workspace_bytes", "peak_bytes", "device_launches", "bandwidth",
    "arithmetic", "ceiling_copy", "ceiling_matmul", "regret", "ready_s", "graph_breaks", "recompiles",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One benchmark: what it is called with, and what it showed, the median where processes were several."""

    group: str
    params: dict[str, str]
    ran: str
    metrics: dict[str, float]
    where: str  # device and versions

    @property
    def ms(self) -> float:
        """Latency of a graph's replay, in milliseconds."""
        return self.metrics["latency_s"] * 1e3

    @property
    def floors(self) -> float:
        """Latency as a multiple of the ideal bytes over the copy measured in the same process."""
        return self.metrics["ceiling_copy"] / self.metrics["bandwidth"]

    @property
    def limit_ms(self) -> float:
        """What this machine takes at least for the declared bytes or FLOP, whichever is more, in milliseconds."""
        shares = (("bandwidth", "ceiling_copy"), ("arithmetic", "ceiling_matmul"))
        return self.ms * max(self.metrics[rate] / self.metrics[ceiling] for rate, ceiling in shares)

    @property
    def intensity(self) -> float:
        """FLOP for each ideal byte."""
        return self.metrics["arithmetic"] / self.metrics["bandwidth"]


def collect(files: Iterable[Path]) -> list[Row]:
    """The rows of result files, `pytest -m study --benchmark-json FILE`; later ones in the place of earlier.

    Raises:
        ValueError: a file has no row of a study.
    """
    rows: list[Row] = []
    for file in files:
        found = list(_read(json.loads(file.read_text())))
        if not found:
            raise ValueError(f"{file}: expected results of pytest -m study, found none")
        rows = merged(rows, found)
    return rows


def merged(rows: Iterable[Row], later: Iterable[Row]) -> list[Row]:
    """Rows, with the later ones of the same benchmarks in their place."""
    return list(({_key(row): row for row in rows} | {_key(row): row for row in later}).values())


def keep(rows: Iterable[Row], file: Path) -> None:
    """Write rows where :func:`load` finds them."""
    lines = ",\n".join(json.dumps(asdict(row), sort_keys=True, ensure_ascii=False) for row in rows)
    file.write_text(f"[\n{lines}\n]\n")


def load(file: Path) -> list[Row]:
    """The rows that are kept."""
    return [Row(**row) for row in json.loads(file.read_text())]


def _key(row: Row) -> tuple[str, ...]:
    return (row.group, *(f"{name}={value}" for name, value in sorted(row.params.items())))


def _read(document: dict[str, Any]) -> Iterator[Row]:
    device = document["machine_info"]["device"]["name"]
    for benchmark in document["benchmarks"]:
        extra = benchmark["extra_info"]
        if not benchmark["fullname"].startswith("tests/study/") or "metrics" not in extra:
            continue
        versions = extra["toolchain"]
        yield Row(
            group=benchmark["group"],
            params={name: str(value) for name, value in sorted(benchmark["params"].items())},
            ran=extra.get("implementation", {}).get("ran") or "",
            metrics={
                name: float(f"{statistics.median(extra['metrics'][name]['values']):.5g}")
                for name in METRICS
                if name in extra["metrics"]
            }
            | {name: float(f"{value:.5g}") for name, value in extra.get("numbers", {}).items()},
            where=f"{device}, torch {versions['torch']}, Triton {versions['triton']}",
        )

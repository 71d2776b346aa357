"""What a benchmark showed: latency samples and named metrics, of one process or of several."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Better = Literal["lower", "higher", "equal"]
Kind = Literal["noisy", "exact", "binary", "error", "ceiling", "info"]

LATENCY = "latency_s"
EAGER = "eager_s"
ERROR = "numerical_error"
LOAD = "foreign_load"
FOREIGN = "foreign_programs"
SLOWED = "slowed_samples"
THREADS = "threads"

MAX_STORED_SAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A named quantity, one value per process.

    The kind says how it is judged: ``noisy`` statistically, ``exact`` to the last unit, ``binary`` exactly but only
    where the toolchain is the same, ``error`` by a factor, ``ceiling`` as a property of the machine, ``info`` never.
    """

    values: tuple[float, ...]
    unit: str
    kind: Kind
    better: Better = "lower"

    @property
    def typical(self) -> float:
        """The median over the processes."""
        return statistics.median(self.values)

    @property
    def worst(self) -> float:
        """The value of the worst process."""
        return min(self.values) if self.better == "higher" else max(self.values)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Metric":
        """Read what `dataclasses.asdict` wrote.

        Raises:
            ValueError: A field is missing or is not what it should be.
        """
        values = data.get("values")
        if (
            not isinstance(values, Sequence)
            or not values
            or not all(isinstance(value, int | float) for value in values)
        ):
            raise ValueError(f"values: expected a list of numbers, found {values!r}")
        for name, allowed in (("kind", get_args(Kind)), ("better", get_args(Better))):
            if data.get(name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, found {data.get(name)!r}")
        return cls(values=tuple(values), unit=str(data.get("unit")), kind=data["kind"], better=data["better"])


def metric(value: float, unit: str, kind: Kind, better: Better = "lower") -> Metric:
    """The metric of a single process."""
    return Metric(values=(value,), unit=unit, kind=kind, better=better)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One benchmark in one process: samples in seconds per call, metrics, and details for the row (JSON values)."""

    samples: tuple[float, ...]
    metrics: Mapping[str, Metric]
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Observation":
        """Read what `to_json` wrote."""
        metrics = {name: Metric.from_json(value) for name, value in data["metrics"].items()}
        return cls(samples=tuple(data["samples"]), metrics=metrics, details=data["details"])


def merge(observations: Sequence[Observation]) -> dict[str, Metric]:
    """The metrics that every process reported, their values in the order of the processes."""
    common = set.intersection(*(set(observation.metrics) for observation in observations))
    return {
        name: Metric(
            values=tuple(value for observation in observations for value in observation.metrics[name].values),
            unit=first.unit,
            kind=first.kind,
            better=first.better,
        )
        for name, first in observations[0].metrics.items()
        if name in common
    }


def thin(samples: Sequence[float]) -> list[float]:
    """At most `MAX_STORED_SAMPLES` samples, evenly spaced in time, to six significant digits."""
    count = min(len(samples), MAX_STORED_SAMPLES)
    step = (len(samples) - 1) / max(count - 1, 1)
    return [float(f"{samples[round(index * step)]:.6g}") for index in range(count)]


def read_metrics(data: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics of a stored row.

    Raises:
        ValueError: A metric is malformed; the message names it.
    """
    metrics = {}
    for name, value in data.items():
        try:
            metrics[name] = Metric.from_json(value)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{name}.{error}") from error
    return metrics


def write_metrics(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """The metrics as JSON objects."""
    return {name: asdict(value) for name, value in metrics.items()}


def relative_spread(values: Iterable[float]) -> float:
    """Standard deviation relative to the mean, 0 for a single value."""
    values = list(values)
    return statistics.stdev(values) / statistics.fmean(values) if len(values) > 1 else 0.0

"""The tables of docs/kernels.md, made of the rows that are kept."""

from collections.abc import Callable, Iterable, Sequence

from tests.study.stored import Row

GROUPS = ("peers", "ablation", "regret", "prefill", "decode", "families prefill", "families decode")
OURS, SHIPPED = "triton", "as it ships"
TIMES = " \N{MULTIPLICATION SIGN} "
SHAPE = f"batch{TIMES}length"


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """Each table by its name in the document; one of which nothing was measured is left out."""
    of = {group: [row for row in rows if row.group == group] for group in GROUPS}
    made = {}
    if of["peers"]:
        made |= {"speed": _speed(of["peers"]), "eager": _eager(of["peers"]), "memory": _memory(of["peers"])}
    if of["ablation"]:
        made["ablation"] = _ablation(of["ablation"])
    if of["regret"]:
        made["regret"] = _regret(of["regret"])
    for call, size, cell in (("prefill", "tokens", _prefill), ("decode", "batch", _decode)):
        if of[call]:
            made[call] = _models(of[call], size, cell)
        if found := of[f"families {call}"]:
            made[f"families {call}"] = _models(found, "family", cell)
    return made


def _speed(rows: Sequence[Row]) -> str:
    """Milliseconds of a graph's replay, and in brackets the multiple of the floor."""
    scans, by = _by(rows, "scan", "shape")
    lines = []
    for shape in _shapes(rows):
        found = {scan: by[scan, shape] for scan in scans if (scan, shape) in by}
        floor = next(iter(found.values()))
        cells = [f"{found[scan].ms:.4f} ({found[scan].floors:.2f})" if scan in found else "" for scan in scans]
        lines.append([_times(shape), f"{floor.ms / floor.floors:.4f}", *cells, _ratio(found, "latency_s")])
    return table([SHAPE, "floor, ms", *map(_ours, scans), "best peer / ours"], lines) + where(rows)


def _eager(rows: Sequence[Row]) -> str:
    """Milliseconds from an idle device to an idle device."""
    scans, by = _by(rows, "scan", "shape")
    lines = []
    for shape in _shapes(rows):
        found = {scan: by[scan, shape] for scan in scans if (scan, shape) in by}
        cells = [f"{found[scan].metrics['eager_s'] * 1e3:.3f}" if scan in found else "" for scan in scans]
        lines.append([_times(shape), *cells, _ratio(found, "eager_s")])
    return table([SHAPE, *map(_ours, scans), "best peer / ours"], lines)


def _memory(rows: Sequence[Row]) -> str:
    """MiB beside the results, at the most."""
    scans, by = _by(rows, "scan", "shape")
    lines = [
        [
            _times(shape),
            *(
                f"{by[scan, shape].metrics['workspace_bytes'] / 2**20:.1f}" if (scan, shape) in by else ""
                for scan in scans
            ),
        ]
        for shape in _shapes(rows)
    ]
    return table([SHAPE, *map(_ours, scans)], lines)


def _ablation(rows: Sequence[Row]) -> str:
    """Milliseconds of a graph's replay, and in brackets the change."""
    variants, by = _by(rows, "variant", "shape")
    shapes = _shapes(rows)
    lines = []
    for variant in variants:
        cells = []
        for shape in shapes:
            row, shipped = by.get((variant, shape)), by.get((SHIPPED, shape))
            change = "" if not row or not shipped or variant == SHIPPED else f" ({row.ms / shipped.ms - 1:+.1%})"
            cells.append(f"{row.ms:.4f}{change}" if row else "")
        lines.append([variant, *cells])
    return table(["", *(f"{_times(shape)}, ms" for shape in shapes)], lines) + where(rows)


def _regret(rows: Sequence[Row]) -> str:
    lines = [
        [f"`{row.params['name']}`", f"{row.ms * 1e3:.1f}", f"{row.metrics['regret']:+.1%}", f"{1 / row.floors:.0%}"]
        for row in rows
    ]
    return table(["kernel and sizes", "as it ships, µs", "slower than the best", "share of the copy"], lines)


def _models(rows: Sequence[Row], size: str, cell: Callable[[Row], str]) -> str:
    """A line for each size, a column for each model, and one for the limit of what says how much it has to do."""
    models, by = _by(rows, "model", size)
    limits = {row.params[size]: f"{row.limit_ms:.2f}" for row in reversed(rows) if "bandwidth" in row.metrics}
    lines = [
        [
            each,
            *([limits.get(each, "")] if limits else []),
            *(cell(by[model, each]) if (model, each) in by else "" for model in models),
        ]
        for each in dict.fromkeys(row.params[size] for row in rows)
    ]
    return table([size, *(["limit"] if limits else []), *models], lines) + where(rows)


def _prefill(row: Row) -> str:
    """Milliseconds, and in brackets GiB above the weights."""
    return f"{row.ms:.1f} ({row.metrics['peak_bytes'] / 2**30:.2f})"


def _decode(row: Row) -> str:
    """Milliseconds of the device; and, where each call may be repeated, from an idle device to an idle device."""
    eager = row.metrics.get("eager_s")
    return f"{row.ms:.2f}" if eager is None else f"{row.ms:.2f} / {eager * 1e3:.2f}"


def _by(rows: Iterable[Row], name: str, other: str) -> tuple[list[str], dict[tuple[str, str], Row]]:
    rows = list(rows)
    return [*dict.fromkeys(row.params[name] for row in rows)], {
        (row.params[name], row.params[other]): row for row in rows
    }


def _shapes(rows: Iterable[Row]) -> list[str]:
    return [*dict.fromkeys(row.params["shape"] for row in rows)]


def _ratio(found: dict[str, Row], metric: str) -> str:
    peers = [row.metrics[metric] for scan, row in found.items() if scan not in (OURS, "portable")]
    return f"{min(peers) / found[OURS].metrics[metric]:.1f}" if peers and OURS in found else ""


def _ours(scan: str) -> str:
    return f"`{scan}`" if scan in (OURS, "portable") else scan


def _times(shape: str) -> str:
    return shape.replace("x", TIMES)


def where(rows: Sequence[Row]) -> str:
    """A line that says where rows were measured."""
    return f"\n{'; '.join(dict.fromkeys(row.where for row in rows))}.\n"


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, ["---"] * len(headings), *lines))

"""The tables of docs/seed_experiment.md, made of the rows that are kept and of what is quoted."""

from collections.abc import Iterable, Sequence
from itertools import product

from tests.study import prior
from tests.study.stored import Row
from tests.study.tables import table, where

GROUPS = ("compile", "seed", "fms")


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """Each table by its name in the document; one of which nothing was measured is left out."""
    of = {group: [row for row in rows if row.group == group] for group in GROUPS}
    made = {}
    for call in ("prefill", "decode"):
        if found := [row for row in of["compile"] if row.params["call"] == call]:
            made[f"compile {call}"] = _compile(sorted(found, key=lambda row: int(row.params["layers"])))
    if of["seed"]:
        for layers, cached in product(_values(of["seed"], "layers"), ("False", "True")):
            found = [row for row in of["seed"] if (row.params["layers"], row.params["cached"]) == (layers, cached)]
            if found:
                name = f"seed {layers} layers, {'with' if cached == 'True' else 'without'} cache"
                made[name] = _grid(found, quoted=(layers, cached) == ("4", "False"))
        made |= {"first": _first(of["seed"]), "memory": _memory(of["seed"])}
    if of["fms"]:
        made["fms"] = _fms(of["fms"])
    return made


def _compile(rows: Sequence[Row]) -> str:
    lines = [
        [
            row.params["layers"], row.params["mode"], f"{row.metrics['ready_s']:.1f}",
            f"{row.metrics['graph_breaks']:.0f}", f"{row.metrics['recompiles']:.0f}",
            f"{row.metrics.get('device_launches', 0):.0f}", f"{row.ms:.3f}",
            f"{row.metrics.get('eager_s', row.metrics['latency_s']) * 1e3:.3f}",
        ]
        for row in rows
    ]  # fmt: skip
    headings = [
        "layers",
        "mode",
        "ready, s",
        "graph breaks",
        "recompiles",
        "launches",
        "device, ms",
        "idle to idle, ms",
    ]
    return table(headings, lines) + where(rows)


def _grid(rows: Sequence[Row], *, quoted: bool) -> str:
    """Seconds of all new tokens with their interval, and the GB/s of the declared bytes; quoted seconds beside."""
    variants, by = _values(rows, "variant"), {(row.params["variant"], row.params["chunks"]): row for row in rows}
    lines = []
    for chunks in _values(rows, "chunks"):
        found = [by.get((variant, chunks)) for variant in variants]
        cells = [_seconds(row, "all_s", 1.0, 3) + f"; {row.metrics['moved'] / 1e9:.0f}" if row else "" for row in found]
        if quoted:
            cells += ["" if each is None else f"{each:g}" for each in prior.SECONDS.get(int(chunks), (None,) * 3)]
        lines.append([chunks, *cells])
    headings = ["chunks", *(f"`{variant}`, s; GB/s" for variant in variants)]
    headings += [f"quoted: {variant}, s" for variant in prior.VARIANTS] if quoted else []
    tokens = {(row.metrics["timed_tokens"], row.metrics["new_tokens"]) for row in rows}
    said = "; ".join(f"{timed:.0f} of {new:.0f} tokens timed" for timed, new in sorted(tokens))
    return table(headings, lines) + where(rows).rstrip(".\n") + f"; {said}.\n"


def _first(rows: Sequence[Row]) -> str:
    """Milliseconds until the first new token, into an empty cache."""
    cached = [row for row in rows if row.params["cached"] == "True"]
    by = {(row.params["layers"], row.params["variant"], row.params["chunks"]): row for row in cached}
    columns = _columns(cached)
    lines = []
    for chunks in _values(cached, "chunks"):
        found = [by.get((*column, chunks)) for column in columns]
        cells = [_seconds(row, "first_s", 1e3, 2) if row else "" for row in found]
        quotes = prior.FIRST.get(int(chunks), (None,) * 3)
        lines.append([chunks, *cells, *("" if each is None else f"{each * 1e3:.0f}" for each in quotes)])
    headings = [f"`{variant}`, {layers} layers, ms" for layers, variant in columns]
    return table(["chunks", *headings, *(f"quoted: {variant}, ms" for variant in prior.VARIANTS)], lines)


def _memory(rows: Sequence[Row]) -> str:
    """Gigabytes at the most, weights included, without a cache."""
    rows = [row for row in rows if row.params["cached"] == "False"]
    by = {(row.params["layers"], row.params["variant"], row.params["chunks"]): row for row in rows}
    columns = _columns(rows)
    lines = []
    for chunks in _values(rows, "chunks"):
        found = [by.get((*column, chunks)) for column in columns]
        cells = [f"{row.metrics['peak_bytes'] / 1e9:.1f}" if row else "" for row in found]
        quote = prior.GIGABYTES.get(int(chunks))
        lines.append([chunks, *cells, "" if quote is None else f"{quote:g}"])
    headings = [f"`{variant}`, {layers} layers, GB" for layers, variant in columns]
    return table(["chunks", *headings, "quoted: all three, GB"], lines)


def _fms(rows: Sequence[Row]) -> str:
    """Milliseconds: of a token on average, prompt included; of a later token; until the first."""
    lines = []
    for row in rows:
        new, share = row.metrics["new_tokens"], row.metrics["moved"] / row.metrics["copy"]
        lines.append([
            row.params["layers"], f"`{row.params['variant']}`", _seconds(row, "all_s", 1e3 / new, 3),
            _seconds(row, "token_s", 1e3, 3), _seconds(row, "first_s", 1e3, 2),
            f"{row.metrics['moved'] / 1e9:.0f} ({share:.0%})",
        ])  # fmt: skip
    headings = [
        "layers",
        "variant",
        "ms a token, all",
        "ms a token, after the first",
        "first token, ms",
        "GB/s (of a copy)",
    ]
    return table(headings, lines) + where(rows)


def _seconds(row: Row, name: str, scale: float, digits: int) -> str:
    median, low, high = (row.metrics[f"{name}{end}"] * scale for end in ("", ":low", ":high"))
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _columns(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Depths, the shallowest first, and variants, of which there are rows."""
    return sorted(
        dict.fromkeys((row.params["layers"], row.params["variant"]) for row in rows), key=lambda each: int(each[0])
    )


def _values(rows: Iterable[Row], name: str) -> list[str]:
    return [*dict.fromkeys(row.params[name] for row in rows)]

"""Make the tables and the plot of docs/kernels.md, and the tables of docs/seed_experiment.md.

With files of `pytest -m study --benchmark-json FILE`, of the rows that are kept and of theirs, which are kept as well;
without, of what is kept beside each document, in a JSON file of its name.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.study import experiment_tables, tables
from tests.study.roofline import roofline
from tests.study.stored import DOCS, Row, collect, keep, load, merged


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document that is made of the rows of some groups, which are kept beside it."""

    path: Path
    groups: tuple[str, ...]
    tables: Callable[[Sequence[Row]], dict[str, str]]
    plot: Path | None = None

    @property
    def kept(self) -> Path:
        """Where its rows are."""
        return self.path.with_suffix(".json")

    def rows(self) -> list[Row]:
        """What is kept."""
        return load(self.kept) if self.kept.exists() else []


DOCUMENTS = (
    Document(path=DOCS / "kernels.md", groups=tables.GROUPS, tables=tables.tables, plot=DOCS / "roofline.svg"),
    Document(path=DOCS / "seed_experiment.md", groups=experiment_tables.GROUPS, tables=experiment_tables.tables),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.study", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="results of `pytest -m study`")
    parser.add_argument("--only", action="store_true", help="forget the rows kept so far")
    args = parser.parse_args(argv)
    try:
        found = collect(args.files)
        for document in DOCUMENTS:
            new = [row for row in found if row.group in document.groups]
            if args.files and not new:
                continue
            rows = merged([] if args.only else document.rows(), new)
            if rows:
                make(document, rows)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


def make(document: Document, rows: Sequence[Row]) -> None:
    """Keep the rows, and write the document, and its plot, of them."""
    text = filled(document, document.path.read_text(), rows)
    keep(rows, document.kept)
    document.path.write_text(text)
    if document.plot is not None:
        document.plot.write_text(roofline(rows))
    print(f"{len(rows)} rows: {document.kept}, {document.path}")


def filled(document: Document, text: str, rows: Sequence[Row]) -> str:
    """The text with its tables as these rows have them; the others as they are.

    Raises:
        ValueError: the document has no place for a table.
    """
    for name, table in document.tables(rows).items():
        place = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"{document.path.name}: expected a place for the table {name!r}, found none")
        text = place.sub(lambda found, table=table: f"{found[1]}\n{table}\n{found[2]}", text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    sys.exit(main())

"""Make the tables and the roofline of docs/kernels.md.

With files of `pytest -m study --benchmark-json FILE`, of the rows that are kept and of theirs, which are kept as well;
without, of what is kept in docs/kernels.json.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.study.roofline import roofline
from tests.study.stored import FILE, Row, collect, keep, load
from tests.study.tables import tables

DOCUMENT = FILE.with_name("kernels.md")
PLOT = FILE.with_name("roofline.svg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.study", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="results of `pytest -m study`")
    parser.add_argument("--only", action="store_true", help="forget the rows kept so far")
    args = parser.parse_args(argv)
    try:
        kept = [] if args.only or not FILE.exists() else load(FILE)
        rows = collect(args.files, kept)
        text = filled(DOCUMENT.read_text(), rows)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    keep(rows, FILE)
    DOCUMENT.write_text(text)
    PLOT.write_text(roofline(rows))
    print(f"{len(rows)} rows: {FILE}, {DOCUMENT}, {PLOT}")
    return 0


def filled(text: str, rows: Sequence[Row]) -> str:
    """The document with its tables as these rows have them; the others as they are.

    Raises:
        ValueError: the document has no place for a table.
    """
    for name, table in tables(rows).items():
        place = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"{DOCUMENT.name}: expected a place for the table {name!r}, found none")
        text = place.sub(lambda found, table=table: f"{found[1]}\n{table}\n{found[2]}", text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    sys.exit(main())

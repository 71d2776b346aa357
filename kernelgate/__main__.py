"""Entry of ``python -m kernelgate``."""

import sys

from kernelgate.commands import main

if __name__ == "__main__":
    sys.exit(main())

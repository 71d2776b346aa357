"""Compile every pinned configuration of every kernel for devices that are not here: `python -m tests.aot`.

Exit status 0: all compile, nothing spills on sm_90 but what may, and registers, spills and shared memory are exactly as
stored.
"""

import argparse
import os
import sys
import time

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is decorated, here and in the processes started from here

from tests.aot import stored
from tests.aot.isolated import Failure, available_cores, run_all
from tests.aot.targets import TARGETS, spills

COMPILE = "tests.aot.worker:compile_one"
FIND = "tests.aot.worker:find"
KERNELS = "tests.aot.worker:every_kernel"
RENEW = "python -m tests.aot --renew"


def main(arguments: list[str]) -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.aot", description=__doc__)
    parser.add_argument("--target", choices=TARGETS, action="append", help="only for this device; may be repeated")
    parser.add_argument("--quick", action="store_true", help="only the cases of Bamba's main shape")
    parser.add_argument("--renew", action="store_true", help="store the results as those to be held to")
    parser.add_argument("--workers", type=int, default=available_cores(), help="compilers at once (%(default)s)")
    options = parser.parse_args(arguments)
    if options.quick and options.renew:
        parser.error("--renew stores all cases, --quick compiles a few")
    targets = options.target or list(TARGETS)
    found = dict(zip(targets, run_all(FIND, [(t, options.quick) for t in targets], options.workers), strict=True))
    problems = [f"{target}: {result}" for target, result in found.items() if isinstance(result, Failure)]
    for target in targets:
        if not isinstance(found[target], Failure):
            problems += _compile(target, found[target], options)
    if not options.quick:
        (every_kernel,) = run_all(KERNELS, [()], 1)
        problems += _forgotten(found, every_kernel)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _compile(target: str, found: dict, options: argparse.Namespace) -> list[str]:
    """Compile what the cases launch, compare or store; return what is wrong."""
    start = time.monotonic()
    different = list({launch: None for launches in found.values() for launch in launches})
    outcomes = run_all(COMPILE, [(launch, target) for launch in different], options.workers)
    used = dict(zip(different, outcomes, strict=True))
    results: stored.Results = {}
    problems = []
    for case, launches in found.items():
        results[case] = {}
        for launch in launches:
            same = sum(name.partition(" #")[0] == launch.kernel for name in results[case])
            name = f"{launch.kernel} #{same + 1}" if same else launch.kernel
            outcome = used[launch]
            if isinstance(outcome, Failure):
                problems.append(f"{target} · {case} · {name}: {outcome}")
                continue
            results[case][name] = outcome
            problems += spills(target, case, name, outcome)
    seconds = time.monotonic() - start
    print(f"{target}: {len(different)} binaries for {len(results)} cases in {seconds:.0f} s", flush=True)
    if options.renew:
        if not problems:
            stored.store(target, results)
        return problems
    known = stored.load(target)
    if known is None:
        print(f"{target}: nothing is stored for this version of Triton; to store: {RENEW}")
        return problems
    differing = stored.differences(target, known, results, partial=options.quick)
    return [*problems, *differing, *([f"{target}: where this is meant to be: {RENEW}"] if differing else [])]


def _forgotten(found: dict, every_kernel: set[str] | Failure) -> list[str]:
    """The kernels that no case launches."""
    if isinstance(every_kernel, Failure):
        return [f"the kernels of the package: {every_kernel}"]
    launched = {
        f"{launch.module}:{launch.kernel}"
        for cases in found.values()
        if not isinstance(cases, Failure)
        for launches in cases.values()
        for launch in launches
    }
    missing = [kernel for kernel in sorted(every_kernel - launched) if "sm_90" in found or ".hopper." not in kernel]
    return [f"no case in tests/aot/cases.py launches {kernel}" for kernel in missing]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

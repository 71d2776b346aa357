"""The processes of one run: which trees, on which devices, in which order, and when it is enough.

Of two trees each pair of processes runs next to each other on one device, in the order base, current, current, base,
and so on: what drifts slowly falls out of the pair's difference.
"""

import signal
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, current_thread, main_thread

from filelock import FileLock, Timeout

from kernelgate.metrics import Observation
from kernelgate.processes import Child, Launcher, Tree, Unobserved, append, collect, events, read_request

Device = str  # a value of CUDA_VISIBLE_DEVICES, or empty for a machine without a GPU


@dataclass
class Pool:
    """What the processes of one tree showed, by node id."""

    observations: dict[str, dict[int, Observation]] = field(default_factory=dict)
    unobserved: dict[str, Unobserved] = field(default_factory=dict)
    collected: Collection[str] = ()

    def of(self, nodeid: str, numbers: Collection[int] | None = None) -> list[Observation]:
        """A benchmark's observations in the order of the processes, of these processes only."""
        found = self.observations.get(nodeid, {})
        return [found[number] for number in sorted(found) if numbers is None or number in numbers]


@dataclass
class Replication:
    """The processes of a run, some of them perhaps of an earlier one that was interrupted.

    Attributes:
        trees: The current tree, or the base and the current tree.
        devices: Measured on at once, a pair of processes each.
        looks: Numbers of processes a tree after which `decided` is asked.
        folder: Where the results of each process lie.
        launch: Makes what starts the processes of a tree on a device.
        write_line: Shows progress.
        pools: What was measured, by the name of the tree.
        refusal: Why nothing more can be measured, if so.
        children: The processes as they ended.
    """

    trees: Sequence[Tree]
    devices: Sequence[Device]
    looks: Sequence[int]
    folder: Path
    launch: Callable[[Tree, Device], Launcher]
    write_line: Callable[[str], None]
    pools: dict[str, Pool] = field(default_factory=dict)
    refusal: str = ""
    children: list[Child] = field(default_factory=list)
    _launchers: dict[tuple[str, Device], Launcher] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def run(self, benchmarks: Collection[str], decided: Callable[[str], bool]) -> None:
        """Measure until every benchmark is decided, or the last look was taken.

        Args:
            benchmarks: Node ids.
            decided: Asked after each look of each benchmark that is still measured.
        """
        self.pools = {tree.name: Pool() for tree in self.trees}
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted, done = list(benchmarks), 0
        with ExitStack() as stack:
            for device in self.devices:
                stack.enter_context(exclusive(device, self.write_line))
            stack.callback(self._close)
            stack.enter_context(ended_in_order())
            for look in self.looks:
                self._measure(range(done, look), wanted)
                done = look
                if self.refusal:
                    break
                lost = set().union(*(pool.unobserved for pool in self.pools.values()))
                wanted = [nodeid for nodeid in wanted if nodeid not in lost and not decided(nodeid)]
                if not wanted:
                    break

    def _measure(self, numbers: Sequence[int], wanted: Collection[str]) -> None:
        """The processes of these numbers, of every tree."""
        free: SimpleQueue[Device] = SimpleQueue()
        for device in self.devices:
            free.put(device)

        def pair(number: int) -> None:
            device = free.get()
            try:
                order = self.trees if number % 2 == 0 else self.trees[::-1]
                for tree in order:
                    if self.refusal:
                        return
                    self._observe(number, tree, device, wanted)
            finally:
                free.put(device)

        if len(self.devices) == 1:
            for number in numbers:
                pair(number)
            return
        with ThreadPoolExecutor(len(self.devices)) as executor:
            try:
                list(executor.map(pair, numbers))
            except BaseException:
                self.refusal = "interrupted"
                self._close()
                raise

    def _observe(self, number: int, tree: Tree, device: Device, wanted: Collection[str]) -> None:
        results = self.folder / f"{tree.name}-{number:03}.jsonl"
        with self._lock:
            pool = self.pools[tree.name]
            remaining = [nodeid for nodeid in wanted if nodeid not in pool.unobserved]
        if (earlier := finished(results)) is not None and set(read_request(results)) == set(remaining):
            return self._keep(number, tree, earlier, len(remaining))
        key = str(tree.folder), device
        with self._lock:
            launcher = self._launchers.get(key)
            if launcher is None:
                launcher = self._launchers[key] = self.launch(tree, device)
        try:
            child = launcher.run(results, remaining, tree.plant)
            append(results, event="end", exit_status=child.exit_status, seconds=child.seconds)
        except OSError as error:  # a full disk, or no process to be had
            self.refusal = f"not measured: {self._name(number, tree)}: {error}"
            return None
        return self._keep(number, tree, child, len(remaining))

    def _name(self, number: int, tree: Tree) -> str:
        name = f"process {number + 1} of {self.looks[-1]}"
        return f"{tree.name} {name}" if len(self.trees) > 1 else name

    def _keep(self, number: int, tree: Tree, child: Child, asked: int) -> None:
        with self._lock:
            pool = self.pools[tree.name]
            for nodeid, observation in child.observations.items():
                pool.observations.setdefault(nodeid, {})[number] = observation
            for nodeid, unobserved in child.unobserved.items():
                pool.unobserved.setdefault(nodeid, unobserved)
            self.children.append(child)
            which = self._name(number, tree)
            observed = f"{len(child.observations)} of {asked} benchmarks in {child.seconds:.1f} s"
            self.write_line(f"kernelgate: {which}: {observed}, {child.exit_status} · {self._progress(number)}")
            if child.exit_status != "exit status 0" and child.output:
                self.write_line(f"kernelgate: output of {which}:\n{child.output}")
            if child.collected is not None:
                pool.collected = child.collected
            if child.unexplained:  # it would happen to the others, too
                self.refusal = f"not measured: {which} ended with {child.exit_status}"

    def _progress(self, number: int) -> str:
        """A bar up to the next look, and the time that is left until then."""
        done = len(self.children)
        following = next(look for look in self.looks if look > number) * len(self.trees)
        filled = round(10 * min(done / following, 1))
        left = max(following - done, 0) * sum(child.seconds for child in self.children) / done / len(self.devices)
        return f"{'█' * filled}{'░' * (10 - filled)} {left:.0f} s left"

    def _close(self) -> None:
        for launcher in self._launchers.values():
            launcher.close()


def finished(results: Path) -> Child | None:
    """What an earlier run's process left, if it ended and is worth going on with."""
    end = next((event for event in reversed(events(results)) if event["event"] == "end"), None)
    if end is None:
        return None
    child = collect(results, exit_status=end["exit_status"], output="", seconds=end["seconds"])
    return None if child.unexplained else child


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Take a request to end, as a cancelled job sends it, like Ctrl-C: what runs in other sessions survives both."""
    if current_thread() is not main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def exclusive(device: Device, write_line: Callable[[str], None]) -> Iterator[None]:
    """Keep other gates of this machine off a device; they wait for it."""
    lock = FileLock(Path(tempfile.gettempdir(), f"kernelgate-{device or 'cpu'}.lock"), mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        write_line(f"kernelgate: waiting for another gate to finish on {device or 'this machine'}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

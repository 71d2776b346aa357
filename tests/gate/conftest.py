"""Projects for the plugin to run in, whose clock moves only by the work that their benchmarks do."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernelgate.baseline import seal

ROOT = Path(__file__).resolve().parents[2]
MACHINE = "test-box"

CLOCK = """
    import os
    from pathlib import Path

    started = Path(__file__).with_name("started")
    process = len(started.read_text()) if started.exists() else 0
    started.write_text("x" * (process + 1))
    elapsed = 0.0


    def now():
        global elapsed
        elapsed += 1e-9
        return elapsed


    def work(seconds=1e-3):
        global elapsed
        jitter = float(os.environ.get("JITTER", "0")) * (process % 3 - 1)
        elapsed += seconds * float(os.environ.get("SLOWDOWN", "1")) * (1 + jitter)
"""

# Pytest with an ear for Ctrl-C, to which a shell makes its background jobs deaf, and with them all they start.
START = """\
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("pytest", run_name="__main__")
"""

BENCHMARK = """
    import clock


    def test_work(benchmark):
        benchmark(clock.work)
"""


class Project:
    """A project in a folder of its own."""

    PLUGINS = ("-p", "pytest_benchmark.plugin", "-p", "xdist.plugin")
    TIMING = ("--benchmark-timer=clock.now", "--benchmark-max-time=0.005", "--benchmark-min-rounds=3")

    def __init__(self, pytester, monkeypatch):
        self.pytester = pytester
        self.path = pytester.path
        self._environment = monkeypatch
        for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "SLOWDOWN", "JITTER", "KERNELGATE_COMMIT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # halves the time a run takes to start
        monkeypatch.setenv("TMPDIR", str(pytester.mkdir("temporary")))  # and with it a lock of its own
        pytester.makepyfile(clock=CLOCK, test_it=BENCHMARK)
        pytester.makeconftest(
            """
            import pytest

            def pytest_report_header(config):
                return f"gate loaded: {config.pluginmanager.has_plugin('kernelgate.plugin')}"

            @pytest.hookimpl(tryfirst=True)
            def pytest_benchmark_generate_machine_info():  # the stock one takes seconds
                return {"node": "box", "cpu": {"hz_actual": 1}}
            """
        )
        self.configure()

    def configure(self, **keys):
        gate = {"gate_machine": MACHINE, "gate_margin": 0.3, "gate_mde": 0.3, "gate_env_tolerance": 0.3}
        keys = gate | {"filterwarnings": "error", "markers": "perf: performance"} | keys
        lines = [f"{key} = {value}" for key, value in keys.items() if value is not None]
        self.pytester.makeini("\n".join(["[pytest]", *lines]))

    def environment(self, **variables):
        for name, value in variables.items():
            self._environment.setenv(name, str(value))

    def run(self, *arguments):
        """Run pytest with the plugin."""
        result = self._run("-p", "kernelgate.plugin", *arguments)
        assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
        return result

    def run_stock(self, *arguments):
        """Run pytest with the stock plugin only; the gate's ini keys would be unknown to it."""
        self.configure(gate_machine=None, gate_margin=None, gate_mde=None, gate_env_tolerance=None)
        result = self._run("-p", "no:kernelgate.plugin", *arguments)
        self.configure()
        assert "gate loaded: True" not in result.stdout.str()
        return result

    def _run(self, *arguments):
        return self.pytester.runpytest_subprocess(*self.PLUGINS, *self.TIMING, *arguments)

    def start(self, *arguments):
        """Run pytest with the plugin and do not wait for it; what it shows goes to the file ``stdout``."""
        with (self.path / "stdout").open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-c", START, *self.PLUGINS, *self.TIMING, "-p", "kernelgate.plugin", *arguments],
                cwd=self.path,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, *names, seconds=60):
        """Wait until a started run has made files of these names."""
        deadline = time.monotonic() + seconds
        while not all((self.path / name).exists() for name in names):
            assert time.monotonic() < deadline, f"{names} did not appear: {(self.path / 'stdout').read_text()}"
            time.sleep(0.02)

    def compare(self, *arguments):
        """Compare this process alone: the spread is the baseline's."""
        return self.run("--benchmark-compare", "--gate-processes=1", *arguments)

    def commit(self):
        """Commit everything, so that a baseline can be recorded."""
        (self.path / ".gitignore").write_text(
            "__pycache__/\nstarted\ntemporary/\n.benchmarks/\n.pytest_cache/\n*.xml\nstdout\nstderr\nrunpytest-*\n"
        )
        identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.com")
        for command in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "--allow-empty", "-m", "tests")):
            subprocess.run(["git", *command], cwd=self.path, check=True)

    def record(self, *arguments):
        """Record a baseline of two processes of the current tree, and return its file."""
        self.commit()
        result = self.run("--gate-record=first", "--gate-processes=2", *arguments)
        assert result.ret == 0, result.stdout.str()
        return self.baselines()[-1]

    def baselines(self):
        return sorted((self.path / "perf_baselines" / MACHINE).glob("*.json"))

    def edit_baseline(self, change):
        """Change the newest baseline's document in place."""
        path = self.baselines()[-1]
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(seal(document)))
        return path


@pytest.fixture
def project(pytester, monkeypatch):
    return Project(pytester, monkeypatch)

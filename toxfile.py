"""Inline plugin of tox: the tested set that suits this machine, in one virtual environment for all environments."""

import os
import shutil
from pathlib import Path

from tox.execute.request import StdinSource
from tox.plugin import impl
from tox.report import HandledError
from tox.tox_env.api import ToxEnv
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner

TARGET = "BAMBA_TARGET"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


@impl
def tox_add_option() -> None:
    """Settle the target before tox.ini is read: it names the constraint file and the virtual environment's folder."""
    target = os.environ.setdefault(TARGET, "gpu" if _has_nvidia_driver() else "cpu")
    if target not in {"cpu", "gpu"}:
        raise HandledError(f"{TARGET} is either 'cpu' or 'gpu', not {target!r}")


@impl
def tox_register_tox_env(register) -> None:
    """Offer `runner = shared` to tox.ini."""
    register.add_run_env(SharedRunner)


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


class SharedInfo(Info):
    """What tox remembers about a virtual environment, less the name of the tox environment that made it.

    By default tox recreates a virtual environment which another of its environments has used.
    """

    def compare(self, value, section, sub_section=None):
        """Compare with what was remembered; see the base class."""
        if section == ToxEnv.__name__:
            value = {**value, "name": "shared"}
        return super().compare(value, section, sub_section)


class SharedRunner(VirtualEnvRunner):
    """Runs several tox environments in one virtual environment, whose torch is the CPU build where there is no GPU."""

    @staticmethod
    def id() -> str:
        """Name this runner as tox.ini does."""
        return "shared"

    @property
    def cache(self) -> Info:
        """What is remembered about the virtual environment."""
        return SharedInfo(self.env_dir)

    def _install_deps(self) -> None:
        if os.environ[TARGET] == "cpu":
            self._install_cpu_torch()
        super()._install_deps()

    def _install_cpu_torch(self) -> None:
        """Install torch alone, so that no other package is looked up on (or taken from) PyTorch's index."""
        with self.cache.compare(CPU_WHEELS, type(self).__name__, "torch") as (installed, _):
            if not installed:
                constraints = self.core["tox_root"] / "requirements" / "cpu.txt"
                options = ["--no-deps", "--index-url", CPU_WHEELS, "--constraint", str(constraints)]
                command = self.installer.build_install_cmd([*options, "torch"])
                self.execute(command, stdin=StdinSource.OFF, run_id="install_torch").assert_success()

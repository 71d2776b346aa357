"""One specialisation of one kernel; light to import, for the process that has others do the work."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What Triton needs to compile a kernel for one kind of arguments; two that are equal are one binary."""

    module: str
    kernel: str
    specialization: str  # JSON, as Triton writes and reads it

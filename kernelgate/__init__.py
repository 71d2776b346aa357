"""A pytest plugin that turns pytest-benchmark into a regression gate for GPU kernels.

It measures device time, memory, launches and numerical error of a call, compares them with a stored baseline of the
same class of machine, and fails the test that became slower, hungrier or less accurate.
"""

__version__ = "0.1.0"

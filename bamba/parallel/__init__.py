"""One model on several devices, one process each: its heads among them, or the tokens of a long prompt.

:mod:`bamba.parallel.tensor` cuts the weights, :mod:`bamba.parallel.sequence` the prompt, and
:mod:`bamba.parallel.processes` starts and ends the group of processes.
"""

"""Other people's scans behind the signature of :class:`ssd_kernels.interface.SSD`, to be tested and measured as ours.

Each module names in `RUNS` the functions of the peer, `"module:name"`, that a call runs through. An adapter translates
arguments; what the peer cannot do it refuses, and it puts nothing else in the peer's place.
"""

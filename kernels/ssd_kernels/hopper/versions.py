"""What differs in Gluon between Triton 3.6 and 3.7, by the names that the kernels use."""

from triton.experimental.gluon import language as gl

# The threads of a warpgroup wait for each other.
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier

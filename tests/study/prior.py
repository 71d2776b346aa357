"""What others measured with the same protocols, quoted: nothing here was run by this project.

The study "Divide, Triton, and Conquer" on chunked states in Bamba: one H100 PCIe, 4 layers of which none attends,
random weights, batch 1, 100 tokens without a cache, one run each inside a profiler with gradients recorded; read off
its plots. Its `independent` adds a chunk's end state to all of the chunk's rows, which so see the future.
"""

VARIANTS = ("default", "optimized", "independent")
# By chunks of the prompt, in the order of VARIANTS; None where there is no such point.
SECONDS: dict[int, tuple[float | None, ...]] = {
    1: (11.9, 9.4, None), 4: (28.8, 22.5, 22.6), 7: (47.0, 36.1, 36.3), 9: (None, None, 47.0),
}  # fmt: skip
FIRST: dict[int, tuple[float | None, ...]] = {
    1: (0.078, 0.066, None),
    4: (0.261, 0.206, 0.222),
    7: (0.414, 0.321, 0.340),
}
GIGABYTES = {1: 20.6, 9: 88.0}  # the same for all

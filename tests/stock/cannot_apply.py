"""The tests of pytest-benchmark that assert what the plugin changes on purpose, each with the reason."""

_BASELINES = "--benchmark-compare compares with perf_baselines, not with what --benchmark-autosave left in .benchmarks"
_NO_SUCH = "a baseline that is named and does not exist is a usage error; stock warns and passes"
_NONE = "without any baseline the plugin makes a local one and says so; stock warns and passes"

CANNOT_APPLY = {
    "test_benchmark::test_compare": _BASELINES,
    "test_benchmark::test_compare_last": _BASELINES,
    "test_benchmark::test_compare_non_existing": _NO_SUCH,
    "test_benchmark::test_compare_non_existing_verbose": _NO_SUCH,
    "test_benchmark::test_compare_no_files": _NONE,
    "test_benchmark::test_compare_no_files_verbose": _NONE,
    "test_benchmark::test_compare_no_files_match": _NO_SUCH,
    "test_benchmark::test_compare_no_files_match_verbose": _NO_SUCH,
    "test_benchmark::test_save_extra_info": "extra_info holds the plugin's metrics beside the test's own entries",
    "test_benchmark::test_abort_broken": "a traceback shows the fixture's class, which is the plugin's subclass",
}

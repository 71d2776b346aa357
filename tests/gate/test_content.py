import copy
import json
import math
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings, strategies as st

from kernelgate import listing
from kernelgate.baseline import BaselineError, load
from tests.gate.documents import document, entry, metric, stored

pytestmark = pytest.mark.correctness

SEALED = document(entry(), entry("test_more"))
UNSEALED = document(entry(), entry("test_more"), schema=1)
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 10**400]),
    st.floats(),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.lists(st.integers(), max_size=2),
)


def places(value, path=()):
    """Every place in a JSON value, but the whole."""
    fields = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, field in fields:
        yield (*path, key)
        yield from places(field, (*path, key))


def changed(content, place, change):
    """A copy with a change made at a place."""
    content = copy.deepcopy(content)
    *above, last = place
    container = content
    for key in above:
        container = container[key]
    change(container, last)
    return content


def corrupt(content, place, replacement):
    def change(container, key):
        if replacement is None:
            del container[key]
        else:
            (container[key],) = replacement

    return json.dumps(changed(content, place, change))


def same(one, other):
    """Whether two JSON values are, with their types; NaN is itself."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def replacements():
    """Nothing to drop a field, a tuple of one value to replace it."""
    return st.none() | st.tuples(ANYTHING)


class TestCorruption:
    @given(place=st.sampled_from(list(places(SEALED))), replacement=replacements())
    def test_a_sealed_file_is_refused_or_is_what_it_was(self, place, replacement):
        with TemporaryDirectory() as folder:
            loaded = loaded_or_refused(stored(Path(folder), corrupt(SEALED, place, replacement)))
            assert loaded is None or same(loaded.document, SEALED)

    @given(place=st.sampled_from(list(places(UNSEALED))), replacement=replacements())
    @settings(deadline=None)
    def test_a_file_without_a_checksum_is_refused_or_can_be_used(self, place, replacement):
        with TemporaryDirectory() as folder:
            loaded = loaded_or_refused(stored(Path(folder), corrupt(UNSEALED, place, replacement)))
            if loaded is not None:
                use(loaded)

    @pytest.mark.parametrize("content", [SEALED, UNSEALED], ids=["sealed", "not sealed"])
    @pytest.mark.parametrize(
        "replacement",
        [None, *((value,) for value in (None, True, "", [], {}, -1, 10**400, math.nan, math.inf))],
        ids=["dropped", "null", "true", "text", "list", "object", "negative", "huge", "nan", "infinity"],
    )
    def test_so_is_any_file_at_any_place(self, tmp_path, content, replacement):
        for place in places(content):
            loaded = loaded_or_refused(stored(tmp_path, corrupt(content, place, replacement)))
            if loaded is not None and content is SEALED:
                assert same(loaded.document, SEALED), place
            elif loaded is not None:
                use(loaded)

    @given(cut=st.integers(min_value=0, max_value=len(json.dumps(SEALED)) - 1))
    def test_a_truncated_file_is_refused(self, cut):
        with TemporaryDirectory() as folder:
            path = stored(Path(folder), json.dumps(SEALED)[:cut])
            with pytest.raises(BaselineError, match=r"0001_abc\.json: expected a JSON file"):
                load(path)

    @given(junk=st.binary(max_size=40))
    def test_junk_is_refused(self, junk):
        with TemporaryDirectory() as folder:
            path = Path(folder, "0001_abc.json")
            path.write_bytes(junk)
            with pytest.raises(BaselineError, match=r"0001_abc\.json: "):
                load(path)


def loaded_or_refused(path):
    """The baseline, or None where an error names file and field."""
    try:
        return load(path)
    except BaselineError as error:
        message = str(error)
    assert re.match(rf"{re.escape(str(path))}: (kernelgate|benchmarks|\w+)[\w.:\[\]]*: ", message), message
    return None


def use(baseline):
    """Read everything that the gate and its commands read."""
    listing.entry_table(baseline)
    listing.provenance(baseline)
    for nodeid, found in baseline.entries.items():
        assert nodeid
        assert {str: str}.keys() == {type(version) for version in found.toolchain.values()} or not found.toolchain
        assert {(type(kernel["name"]), type(kernel["binary"])) for kernel in found.details.get("kernels", ())} <= {
            (str, str)
        }
        for measured in found.metrics.values():
            assert not math.isnan(measured.typical)
            assert not math.isnan(measured.worst)
            if measured.kind in ("noisy", "ceiling"):
                assert all(math.isfinite(math.log(value)) for value in measured.values)
        if len(found.metrics["latency_s"].values) > 1:
            assert sum(found.details["rounds"]) == len(found.stored["stats"]["data"])
        assert float(found.stored["stats"]["mean"]) is not None


class TestFields:
    """What is wrong, at which place of a file without a checksum, and how the error names it."""

    METRICS = ("benchmarks", 1, "extra_info", "metrics")

    @pytest.mark.parametrize(
        ("place", "replacement", "message"),
        [
            (("kernelgate", "machine_class"), None, "kernelgate.machine_class: missing"),
            (("kernelgate", "toolchain"), ("3.11",), "kernelgate.toolchain: expected an object, found '3.11'"),
            (("kernelgate", "reason"), ("",), "kernelgate.reason: expected a text, found an empty one"),
            (("commit_info", "id"), (7,), "commit_info.id: expected a text, found 7"),
            (("datetime",), None, "datetime: missing"),
            (("benchmarks",), ({},), "benchmarks: expected a list, found dict"),
            (("benchmarks", 1), (None,), "benchmarks[1]: expected an object, found None"),
            (("benchmarks", 1, "fullname"), None, "benchmarks[1].fullname: missing"),
            (
                ("benchmarks", 1, "fullname"),
                ("test_it.py::test_work",),
                "benchmarks[1].fullname: expected another than that of benchmarks[0], found it twice",
            ),
            (("benchmarks", 1, "stats"), None, "benchmarks[1].stats: missing"),
            (("benchmarks", 1, "stats", "median"), None, "benchmarks[1].stats.median: missing"),
            (("benchmarks", 1, "stats", "median"), ("1",), "benchmarks[1].stats.median: expected a number, found '1'"),
            (("benchmarks", 1, "stats", "data"), None, "benchmarks[1].stats.data: missing"),
            (
                ("benchmarks", 1, "stats", "data", 2),
                (True,),
                "benchmarks[1].stats.data: expected finite numbers, found True",
            ),
            (
                ("benchmarks", 1, "stats", "data"),
                ([1e-3],),
                "benchmarks[1].extra_info.rounds: expected 1 in sum, as stats.data has, found 4",
            ),
            (("benchmarks", 1, "extra_info", "rounds"), None, "benchmarks[1].extra_info.rounds: missing"),
            (
                ("benchmarks", 1, "extra_info", "rounds", 0),
                (2.0,),
                "benchmarks[1].extra_info.rounds: expected positive integers, found 2.0",
            ),
            (
                ("benchmarks", 1, "extra_info", "rounds"),
                ([4],),
                "benchmarks[1].extra_info.rounds: expected 2, as latency_s has values, found 1",
            ),
            (
                ("benchmarks", 1, "extra_info", "toolchain", "triton"),
                (3.7,),
                "benchmarks[1].extra_info.toolchain.triton: expected a text, found 3.7",
            ),
            (
                ("benchmarks", 1, "extra_info", "kernels", 0, "binary"),
                None,
                "benchmarks[1].extra_info.kernels[0].binary: missing",
            ),
            ((*METRICS, "latency_s"), None, "benchmarks[1].extra_info.metrics.latency_s: missing"),
            (
                (*METRICS, "latency_s", "kind"),
                ("exact",),
                "benchmarks[1].extra_info.metrics.latency_s.kind: expected noisy, found exact",
            ),
            (
                (*METRICS, "latency_s", "values", 0),
                (0,),
                "benchmarks[1].extra_info.metrics.latency_s.values: expected positive finite numbers, found 0",
            ),
            (
                (*METRICS, "peak_bytes", "values"),
                ([],),
                "benchmarks[1].extra_info.metrics.peak_bytes.values: expected a list of finite numbers, found none",
            ),
            (
                (*METRICS, "peak_bytes", "values", 0),
                (float("nan"),),
                "benchmarks[1].extra_info.metrics.peak_bytes.values: expected finite numbers, found nan",
            ),
            (
                (*METRICS, "peak_bytes", "kind"),
                ("precise",),
                "benchmarks[1].extra_info.metrics.peak_bytes.kind: expected one of ",
            ),
            (
                (*METRICS, "peak_bytes", "better"),
                None,
                "benchmarks[1].extra_info.metrics.peak_bytes.better: expected one of ",
            ),
            ((*METRICS, "peak_bytes", "unit"), None, "benchmarks[1].extra_info.metrics.peak_bytes.unit: missing"),
        ],
    )
    def test_the_error_names_file_and_field(self, tmp_path, place, replacement, message):
        path = stored(tmp_path, corrupt(UNSEALED, place, replacement))
        with pytest.raises(BaselineError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: {message}")

    def test_a_run_saved_without_samples_can_be_compared_with(self, tmp_path):
        content = copy.deepcopy(UNSEALED)
        del content["kernelgate"]["reason"]
        for each in content["benchmarks"]:
            del each["stats"]["data"]
        assert len(load(stored(tmp_path, json.dumps(content))).entries) == 2

    def test_the_samples_of_a_single_process_need_no_division(self, tmp_path):
        content = document(entry(latency_s=metric(1e-3)), schema=1)
        del content["benchmarks"][0]["extra_info"]["rounds"]
        assert len(load(stored(tmp_path, json.dumps(content))).entries) == 1

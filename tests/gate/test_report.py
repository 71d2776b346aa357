import json
import re

import pytest

from kernelgate import units

pytestmark = pytest.mark.correctness

SEVERAL = """
    import clock
    import pytest


    @pytest.mark.parametrize("problem", ["b1-t8192-h128-p64-n128-bfloat16-varlen", "tiny"])
    def test_selective_state_space_scan(benchmark, problem):
        benchmark.declare(tokens=8192, bytes=1e6, error=lambda out: 1e-4, asked="triton", ran="triton")
        benchmark(clock.work)


    def test_slow(benchmark):
        benchmark(clock.work, 5e-3)
"""


class TestExitCodes:
    @pytest.mark.parametrize(
        ("slowdown", "jitter", "outcome", "code"),
        [
            (1.0, 0.001, "SAME", 0),
            (0.5, 0.001, "IMPROVED", 0),
            (2.0, 0.001, "REGRESSED", 1),
            (1.42, 0.02, "AMBIGUOUS", 10),
            (1.2, 0.2, "INSUFFICIENT", 11),
        ],
    )
    def test_each_verdict_has_its_own(self, project, slowdown, jitter, outcome, code):
        project.environment(JITTER=jitter)
        project.record("--gate-processes=3")
        project.environment(SLOWDOWN=slowdown)
        result = project.compare("-rs")
        assert result.ret == code
        result.stdout.re_match_lines(
            [rf"{outcome}  test_it.py", r"  test_work .* ms ", rf"1 {outcome} · machine class"]
        )
        if code >= 10:
            result.assert_outcomes(skipped=1)
            result.stdout.fnmatch_lines(f"SKIPPED [[]1[]] test_it.py:*: {outcome}: latency_s: *")

    def test_another_state_of_the_machine_has_its_own(self, project):
        project.record()
        ceiling = {"unit": "B/s", "kind": "ceiling", "better": "higher"}
        project.edit_baseline(
            lambda document: document["benchmarks"][0]["extra_info"]["metrics"].update(
                ceiling_copy={"values": [1e12], **ceiling}
            )
        )
        project.pytester.makeconftest(
            """
            from kernelgate import measure
            from kernelgate.metrics import metric

            rates = {"ceiling_copy": 5e11, "ceiling_matmul": 1e12}
            metrics = {name: metric(rate, "B/s", "ceiling", better="higher") for name, rate in rates.items()}
            measure.ceilings = lambda device: metrics
            """
        )
        result = project.compare()
        assert result.ret == 12
        result.stdout.fnmatch_lines("*ceiling_copy: 500 GB/s, was 1 TB/s: the machine is not in the state*")

    def test_a_failure_outranks_them(self, project):
        project.environment(JITTER=0.2)
        project.record()
        project.pytester.makepyfile(test_other="def test_other(): assert False")
        assert project.compare().ret == 1


class TestTable:
    def test_it_reads_the_same_with_and_without_color(self, project):
        project.pytester.makepyfile(test_it=SEVERAL)
        project.environment(JITTER=0.001)
        project.record()
        project.environment(SLOWDOWN=2)
        for columns in (80, 160):
            project.environment(COLUMNS=columns)
            plain, colored = (self._compared(project, color) for color in ("no", "yes"))
            assert "\x1b" not in plain
            assert "\x1b[1m\x1b[31mREGRESSED\x1b[0m  test_it.py" in colored
            lines = plain.splitlines()[1:-1]
            assert re.sub(r"\x1b\[\d*m", "", colored).splitlines()[1:-1] == lines
            assert max(map(len, lines)) <= columns
            table = "\n".join(lines)
            assert re.search(r"^  test_slow +9\.990 ms .*\+100 % \[\+\S+, \+\S+\]", table, re.MULTILINE)
            assert "\n  b1-t8192-h128-p64-n128-bfloat16-varlen" in table
            assert re.search(r"^  tiny +1\.998 ms .* 0\.0001\b", table, re.MULTILINE)
            assert ("4.1 Mtokens/s" in table) == (columns == 160)
            assert "\n3 REGRESSED · machine class test-box · baseline 0001_" in table

    @staticmethod
    def _compared(project, color):
        (project.path / "started").unlink()  # the jitter is that of the same process
        output = project.compare(f"--color={color}").stdout.str()
        return output.partition(" kernelgate ---")[2].partition("= short test summary")[0]

    def test_no_color_is_honoured(self, project):
        project.environment(NO_COLOR="1")
        assert "\x1b" not in project.run().stdout.str()

    def test_a_failed_benchmark_stands_in_it_with_its_reason(self, project):
        project.pytester.makepyfile(
            test_it="""
            import clock

            def test_work(benchmark):
                benchmark(clock.work)

            def test_wrong(benchmark):
                raise ValueError("of no worth")
            """
        )
        result = project.run()
        result.stdout.fnmatch_lines(
            [
                "FAILED  test_it.py",
                "  test_wrong",
                "      ValueError: of no worth",
                "MEASURED  test_it.py",
                "  test_work *",
            ]
        )

    def test_the_stock_table_gives_way_when_comparing(self, project):
        project.record()
        assert "Outliers" in project.run().stdout.str()
        assert "Outliers" not in project.compare().stdout.str()
        assert "Outliers" in project.compare("--benchmark-verbose").stdout.str()

    def test_quiet_hides_the_stock_table_only(self, project):
        output = project.run("--benchmark-quiet").stdout.str()
        assert "Outliers" not in output
        assert "1 measured" in output


def test_a_changed_toolchain_is_said_and_decides_nothing(project):
    project.record()
    project.edit_baseline(lambda document: document["benchmarks"][0]["extra_info"]["toolchain"].update(python="2.7.18"))
    result = project.compare()
    assert result.ret == 0
    result.stdout.fnmatch_lines("toolchain changed: python 2.7.18 → *")


def test_the_json_report_holds_the_verdict_of_a_regression(project):
    project.record()
    project.environment(SLOWDOWN=2)
    project.compare("--benchmark-json=out.json")
    verdict = json.loads((project.path / "out.json").read_text())["kernelgate"]["verdicts"]["test_it.py::test_work"]
    assert verdict["outcome"] == "REGRESSED"
    assert verdict["slowdown"][0] == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.seconds(1.2345e-3), "1.234 ms"),
        (units.seconds(9.5e-7), "950.0 ns"),
        (units.size(1024), "1.000 KiB"),
        (units.size(512), "512 B"),
        (units.short_size(512), "512 B"),
        (units.short_size(1.26 * 2**30), "1.3 GiB"),
        (units.short_size(9.96 * 2**20), "10 MiB"),
        (units.short_size(996.4 * 2**20), "996 MiB"),
        (units.rate(812e9, "B/s"), "812 GB/s"),
        (units.rate(999.9e6, "B/s"), "1 GB/s"),
        (units.percent(0.043, signed=True), "+4.3 %"),
        (units.percent(2.5), "250 %"),
        (units.quantity(8192, "B"), "8.000 KiB"),
        (units.quantity(8191, "B"), "8191 B"),
        (units.quantity(1.1e-3, "1"), "0.0011"),
    ],
)
def test_numbers_read_well(text, expected):
    assert text == expected

"""How the outcomes of a test suite with the plugin differ from those without, beyond what is meant to."""

from collections.abc import Mapping

from tests.stock.suite import Outcome


def differences(without: Mapping[str, Outcome], loaded: Mapping[str, Outcome], listed: Mapping[str, str]) -> list[str]:
    """What is not as it should be; empty where the plugin breaks exactly the listed tests.

    Args:
        without: Outcomes without the plugin, by the test's name.
        loaded: Outcomes with the plugin.
        listed: The tests that cannot pass with the plugin, each with its reason.
    """
    problems = []
    for test in sorted(without.keys() | loaded.keys() | listed.keys()):
        before, now = without.get(test), loaded.get(test)
        if before is None and now is None:
            problems.append(f"listed, but there is no such test: {test}")
        elif before is None or now is None:
            problems.append(f"runs only {'with' if before is None else 'without'} the plugin: {test}")
        elif before.failed:
            continue  # whatever the reason, it is not the plugin
        elif now.failed and test not in listed:
            problems.append(f"fails only with the plugin: {test}\n{now.text}")
        elif not now.failed and test in listed:
            problems.append(f"listed as one that cannot apply, but {now.kind}: {test}")
        elif before.kind != now.kind and not now.failed:
            problems.append(f"{before.kind} without the plugin, {now.kind} with it: {test}")
    return problems

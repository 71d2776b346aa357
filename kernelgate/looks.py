"""When a comparison of several processes is looked at, and what each look may spend.

A benchmark that is decided is not measured again. All looks together may raise a false alarm with the probability of
one: each spends its share (Bonferroni), so that no order of outcomes has to be assumed. A red stands only once a second
look has confirmed it, or where there is no further one.
"""

from kernelgate.verdict import Outcome, Verdict

LOOKS = (4, 8, 12, 20)


def looks(processes: int) -> tuple[int, ...]:
    """The numbers of processes a side at which up to `processes` of them are looked at; the last is `processes`."""
    return (*(look for look in LOOKS if look < processes), processes)


def settled(verdict: Verdict, *, seen_slower: bool) -> bool:
    """Whether a benchmark needs no further look.

    Args:
        verdict: At this look.
        seen_slower: It was slower at an earlier look, too.
    """
    if verdict.outcome in (Outcome.AMBIGUOUS, Outcome.INSUFFICIENT):
        return False
    return seen_slower or not is_slower(verdict)


def is_slower(verdict: Verdict) -> bool:
    """Whether the latency is red, which chance may do; with an exact metric it has nothing to do."""
    interval, margin = verdict.interval, verdict.margin
    if verdict.outcome != Outcome.REGRESSED or interval is None or margin is None:
        return False
    return interval.lower > margin

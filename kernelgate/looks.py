"""When a comparison of several processes is looked at, and what each look may spend.

A benchmark that is decided is not measured again. All looks together may raise a false alarm with the probability of
one: each spends its share (Bonferroni), so that no order of outcomes has to be assumed. A red stands only once a second
look has confirmed it, or where there is no further one.
"""

LOOKS = (4, 8, 12, 20)


def looks(processes: int) -> tuple[int, ...]:
    """The numbers of processes a side at which up to `processes` of them are looked at; the last is `processes`."""
    return (*(look for look in LOOKS if look < processes), processes)

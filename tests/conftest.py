"""Hypothesis draws the same examples in every run of the suite, and no example has a deadline.

What it finds is found by everybody, and not by chance in somebody's change. To look further:
`pytest --hypothesis-profile=explore`.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A slow machine is no property of the code.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("explore", _PATIENT)
settings.register_profile("suite", _PATIENT, derandomize=True)
settings.load_profile("suite")

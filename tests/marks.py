"""Which cases of a test run by default."""

import pytest


def slow_unless(few, values):
    """pytest parameters, those not among the few marked slow; tuples are of several names."""

    def parameter(value):
        values = value if isinstance(value, tuple) else (value,)
        return pytest.param(*values, marks=() if value in few else pytest.mark.slow)

    return [parameter(value) for value in values]

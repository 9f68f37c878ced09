"""Which cases of a test run by default."""

import pytest


def slow_unless(few, values, exhaustive=()):
    """pytest parameters, those not among the few marked slow or exhaustive; tuples are of several
    names."""

    def marks(value):
        if value in few:
            return ()
        return pytest.mark.exhaustive if value in exhaustive else pytest.mark.slow

    def parameter(value):
        values = value if isinstance(value, tuple) else (value,)
        return pytest.param(*values, marks=marks(value))

    return [parameter(value) for value in values]

"""Loaded by schemathesis (schemathesis.toml) in its own environment."""

import schemathesis

# What the coverage phase calls a header that the contract does not name.
UNKNOWN = "schemathesis-unknown-property"


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leaves out requests that are said to be bad for an unknown header or query parameter alone:
    HTTP has a server ignore what it does not know (RFC 9110, 5.1), and proxies add some.
    """
    names = [*(case.headers or {}), *(case.query or {})]
    return not any(UNKNOWN in name for name in names)

"""Keyring: which tenant a request is of, by its API key.

It owns the table of keys and the tenants of this process, and replaces both as a whole. It must
never let on which half of a key was wrong, and never log or count by what a client sent.
"""

from collections import Counter
from collections.abc import Mapping

from gateway.errors import RequestError
from gateway.tenants.api_keys import CredentialError, Presented, matches, presented_key
from gateway.tenants.tenant import Tenant
from gateway.tenants.tenants_file import Tenants
from gateway.views import Clock

_CHALLENGE = 'Bearer realm="remontoir"'
_WRONG = f'{_CHALLENGE}, error="invalid_token"'  # RFC 6750


class Keyring:
    def __init__(self, tenants: Tenants, *, clock: Clock) -> None:
        self._clock = clock
        self.tenants: dict[str, Tenant] = {}
        # All and only keys that are valid, by id: hash and whose it is.
        self._keys: dict[bytes, tuple[bytes, Tenant]] = {}
        # Requests without a valid key: missing, malformed, conflicting, unknown.
        self.refused: Counter[str] = Counter()
        self.replace(tenants)

    @property
    def num_keys(self) -> int:
        return len(self._keys)

    def replace(self, tenants: Tenants) -> None:
        """As the file has it now. Tenants of the same name go on with what they have used; requests
        of one that is gone are still answered.
        """
        now = self._clock()
        before, self.tenants = self.tenants, {}
        for name, spec in tenants.items():
            tenant = before.get(name)
            if tenant is None:
                tenant = Tenant(name, spec, now)
            else:
                tenant.configure(spec, now)
            self.tenants[name] = tenant
        self._keys = {
            key.key_id: (key.digest, tenant)
            for tenant in self.tenants.values()
            for key in tenant.spec.stored_keys()
        }

    def tenant_of(self, headers: Mapping[bytes, bytes]) -> Tenant:
        """By lower-case header names. Raises RequestError(unauthenticated)."""
        try:
            presented = presented_key(headers)
        except CredentialError as error:
            self.refused[error.kind] += 1
            challenge = _CHALLENGE if error.kind == "missing" else _WRONG
            raise RequestError("unauthenticated", str(error), challenge=challenge) from None
        tenant = self._find(presented)
        if tenant is None:
            self.refused["unknown"] += 1
            raise RequestError(
                "unauthenticated", "this API key is not valid here", challenge=_WRONG
            )
        return tenant

    def find(self, headers: Mapping[bytes, bytes]) -> Tenant | None:
        """What `tenant_of` would; None where it would raise, which is not counted."""
        try:
            return self._find(presented_key(headers))
        except CredentialError:
            return None

    def _find(self, presented: Presented) -> Tenant | None:
        known = self._keys.get(presented.key_id)
        return known[1] if known is not None and matches(presented, known[0]) else None

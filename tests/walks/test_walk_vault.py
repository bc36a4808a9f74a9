"""Logins from Vault's database engine, from a real driver: borrowed per session, revoked after it, sealed and expired tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest

from kit.vaultd import ROLE_ID, SECRET_ID, Vault
from pgleash.demo.stage import Stage

GRANTS = "GRANT USAGE ON SCHEMA public TO {name}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"


class VaultStage(Stage):
    """A stage whose gateway borrows its logins from a Vault."""

    vault: Vault

    def write_configuration(self) -> None:
        assert self.shop is not None
        self.vault = Vault(self.server.dsn(self.shop.dbname), GRANTS)
        self.vault.__enter__()
        for name, secret in (("role_id", ROLE_ID), ("secret_id", SECRET_ID)):
            (self.home / name).write_text(secret)
        self._settings = {
            "databases": {
                "shop": {
                    "credentials": {
                        "kind": "vault",
                        "address": self.vault.url,
                        "role": "ro",
                        "approle": {"role_id": "file:role_id", "secret_id": "file:secret_id"},
                        "catalog_user": self.shop.service_user,
                        "catalog_password": "file:service.password",
                        "user": None,
                        "password": None,
                    }
                }
            }
        }
        super().write_configuration()

    def stop(self) -> None:
        super().stop()
        self.vault.__exit__()


@pytest.fixture(scope="module")
def vaulted() -> Iterator[VaultStage]:
    with VaultStage(customers=1000) as made:
        yield made


def roles(stage: Stage) -> int:
    with psycopg.connect(stage.server.dsn("shop")) as direct:
        row = direct.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-approle-%'").fetchone()
    assert row is not None
    return int(row[0])


def gone(stage: Stage) -> bool:
    for _ in range(50):
        if roles(stage) == 0:
            return True
        time.sleep(0.1)
    return False


def test_each_session_borrows_a_login_and_gives_it_back(vaulted: VaultStage) -> None:
    with psycopg.connect(vaulted.dsn("agent-7", vaulted.token()), autocommit=True) as connection:
        row = connection.execute("SELECT current_user, email FROM customers LIMIT 1").fetchone()
        assert row is not None
        assert str(row[0]).startswith("v-approle-ro-")
        assert "***" in row[1]
        assert roles(vaulted) == 1
    assert gone(vaulted)


def test_an_expired_vault_token_is_replaced(vaulted: VaultStage) -> None:
    vaulted.vault.forget_tokens()
    with psycopg.connect(vaulted.dsn("agent-7", vaulted.token()), autocommit=True) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_lease_that_vault_has_revoked_is_not_used_again(vaulted: VaultStage) -> None:
    with psycopg.connect(vaulted.dsn("agent-7", vaulted.token()), autocommit=True) as connection:
        first = connection.execute("SELECT current_user").fetchone()
    vaulted.vault.revoke_all()
    with psycopg.connect(vaulted.dsn("agent-7", vaulted.token()), autocommit=True) as connection:
        assert connection.execute("SELECT current_user").fetchone() != first


def test_a_warm_connection_takes_its_lease_along(vaulted: VaultStage) -> None:
    """The next session works with the login that the connection was made with; when nobody wants it, it is revoked soon."""
    assert gone(vaulted)
    seen = []
    for _ in range(3):
        with psycopg.connect(vaulted.dsn("agent-7", vaulted.token()), autocommit=True) as connection:
            seen.append(connection.execute("SELECT current_user, pg_backend_pid()").fetchone())
        time.sleep(0.1)
    assert len(set(seen)) == 1
    assert roles(vaulted) == 1
    assert gone(vaulted)


def test_a_sealed_vault_is_told(vaulted: VaultStage) -> None:
    vaulted.vault.seal()
    try:
        with pytest.raises(psycopg.OperationalError, match=r"credential store \(Vault\) is sealed") as caught:
            psycopg.connect(vaulted.dsn("agent-7", vaulted.token()))
        assert "HINT" in str(caught.value)
        assert vaulted.vault.url not in str(caught.value)
    finally:
        vaulted.vault.seal(False)
    with psycopg.connect(vaulted.dsn("agent-7", vaulted.token())) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)

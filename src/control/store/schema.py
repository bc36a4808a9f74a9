"""The tables, as the steps that lead from an empty file to today's shape.

A step that has been released is never edited: a change is a new step at the end. Never add here: code that runs queries.
"""

from __future__ import annotations

from typing import Final

STEPS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE grants (
        id            TEXT PRIMARY KEY,
        request_id    TEXT UNIQUE,
        subject       TEXT NOT NULL,
        database      TEXT NOT NULL,
        tables        TEXT NOT NULL,
        verbs         TEXT NOT NULL,
        reason        TEXT NOT NULL,
        state         TEXT NOT NULL CHECK (state IN ('ACTIVE', 'REVOKED', 'EXPIRED')),
        created_by    TEXT NOT NULL,
        created_at    REAL NOT NULL,
        expires_at    REAL NOT NULL,
        duration      REAL NOT NULL,
        ended_at      REAL,
        ended_by      TEXT,
        end_reason    TEXT NOT NULL DEFAULT '',
        end_request   TEXT
    ) STRICT;
    CREATE INDEX grants_by_holder ON grants (subject, database, state);
    CREATE INDEX grants_by_end ON grants (expires_at) WHERE state = 'ACTIVE';
    CREATE INDEX grants_by_age ON grants (created_at);

    CREATE TABLE approvals (
        name          TEXT PRIMARY KEY,
        session_id    TEXT NOT NULL,
        session       INTEGER NOT NULL,
        subject       TEXT NOT NULL,
        acts_for      TEXT,
        groups        TEXT NOT NULL,
        database      TEXT NOT NULL,
        statement     TEXT NOT NULL,
        parameters    TEXT NOT NULL,
        facts         TEXT NOT NULL,
        reasons       TEXT NOT NULL,
        rule          TEXT NOT NULL,
        approvers     TEXT NOT NULL,
        state         TEXT NOT NULL CHECK (state IN ('PENDING', 'APPROVED', 'DENIED', 'EXPIRED', 'CANCELLED')),
        created_at    REAL NOT NULL,
        expires_at    REAL NOT NULL,
        decided_at    REAL,
        decided_by    TEXT NOT NULL DEFAULT '',
        comment       TEXT NOT NULL DEFAULT '',
        request_id    TEXT
    ) STRICT;
    CREATE INDEX approvals_by_state ON approvals (state, created_at);
    CREATE INDEX approvals_by_age ON approvals (created_at);

    CREATE TABLE sessions (
        id               TEXT PRIMARY KEY,
        number           INTEGER NOT NULL UNIQUE,
        subject          TEXT NOT NULL,
        acts_for         TEXT,
        groups           TEXT NOT NULL,
        grant_id         TEXT NOT NULL,
        database         TEXT NOT NULL,
        peer             TEXT NOT NULL,
        peer_port        INTEGER NOT NULL,
        tls              INTEGER NOT NULL,
        server_user      TEXT NOT NULL,
        application_name TEXT NOT NULL,
        started_at       REAL NOT NULL,
        ended_at         REAL,
        end_reason       TEXT NOT NULL DEFAULT '',
        statements       INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX sessions_live ON sessions (started_at) WHERE ended_at IS NULL;
    CREATE INDEX sessions_by_age ON sessions (started_at);

    CREATE TABLE counters (
        name  TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) STRICT;
    """,
)

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
    """
    CREATE TABLE approvals_now (
        name          TEXT PRIMARY KEY,
        sequence      INTEGER NOT NULL UNIQUE,
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
        needed        INTEGER NOT NULL DEFAULT 1,
        votes         TEXT NOT NULL DEFAULT '[]',
        mode          TEXT NOT NULL DEFAULT 'wait' CHECK (mode IN ('wait', 'defer')),
        dry_run       INTEGER NOT NULL DEFAULT 0,
        digest        TEXT NOT NULL DEFAULT '',
        match_key     TEXT NOT NULL DEFAULT '',
        binding       TEXT NOT NULL DEFAULT '{}',
        evidence      TEXT NOT NULL DEFAULT '{}',
        state         TEXT NOT NULL CHECK (state IN ('PENDING', 'APPROVED', 'DENIED', 'EXPIRED', 'CANCELLED', 'VOIDED')),
        created_at    REAL NOT NULL,
        expires_at    REAL NOT NULL,
        duration      REAL NOT NULL DEFAULT 0,
        decided_at    REAL,
        decided_by    TEXT NOT NULL DEFAULT '',
        comment       TEXT NOT NULL DEFAULT '',
        use_before    REAL,
        used_at       REAL,
        used_by       TEXT NOT NULL DEFAULT ''
    ) STRICT;
    INSERT INTO approvals_now (name, sequence, session_id, session, subject, acts_for, groups, database, statement, parameters, facts,
                               reasons, rule, approvers, votes, state, created_at, expires_at, decided_at, decided_by, comment)
        SELECT name, row_number() OVER (ORDER BY created_at, name), session_id, session, subject, acts_for, groups, database, statement,
               parameters, facts, reasons, rule, approvers,
               CASE WHEN request_id IS NULL OR decided_by = '' THEN '[]' ELSE json_array(json_object(
                   'subject', decided_by, 'approve', json(iif(state = 'APPROVED', 'true', 'false')),
                   'at', decided_at, 'request_id', request_id
               )) END,
               state, created_at, expires_at, decided_at, decided_by, comment
        FROM approvals;
    INSERT INTO counters (name, value) SELECT 'approvals', count(*) FROM approvals_now;
    DROP TABLE approvals;
    ALTER TABLE approvals_now RENAME TO approvals;
    CREATE INDEX approvals_by_state ON approvals (state, created_at);
    CREATE INDEX approvals_by_age ON approvals (created_at);
    CREATE INDEX approvals_by_subject ON approvals (subject, created_at);
    CREATE INDEX approvals_by_key ON approvals (match_key) WHERE mode = 'defer';

    CREATE TABLE shapes (
        name          TEXT PRIMARY KEY,
        approval      TEXT NOT NULL,
        rule          TEXT NOT NULL,
        database      TEXT NOT NULL,
        subject       TEXT NOT NULL,
        acts_for      TEXT,
        for_group     TEXT NOT NULL DEFAULT '',
        shape         TEXT NOT NULL,
        shape_key     TEXT NOT NULL,
        binding       TEXT NOT NULL,
        bounds        TEXT NOT NULL,
        most          INTEGER NOT NULL,
        uses          INTEGER NOT NULL DEFAULT 0,
        state         TEXT NOT NULL CHECK (state IN ('ACTIVE', 'REVOKED', 'SPENT', 'EXPIRED', 'VOIDED')),
        created_by    TEXT NOT NULL,
        created_at    REAL NOT NULL,
        expires_at    REAL NOT NULL,
        ended_at      REAL,
        ended_by      TEXT NOT NULL DEFAULT '',
        end_reason    TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE INDEX shapes_by_key ON shapes (shape_key) WHERE state = 'ACTIVE';
    CREATE INDEX shapes_by_age ON shapes (created_at);

    CREATE TABLE outbox (
        id            INTEGER PRIMARY KEY AUTOINCREMENT,
        hook          TEXT NOT NULL,
        message       TEXT NOT NULL,
        body          TEXT NOT NULL,
        created_at    REAL NOT NULL,
        attempts      INTEGER NOT NULL DEFAULT 0,
        next_at       REAL NOT NULL,
        last_error    TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE INDEX outbox_by_time ON outbox (next_at);
    """,
)

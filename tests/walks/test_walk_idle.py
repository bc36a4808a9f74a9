"""A session that waits keeps next to nothing, and all that it needs to go on."""

from __future__ import annotations

from fixtures.gateway import Agent


def test_many_names_are_kept_found_and_forgotten(agent: Agent) -> None:
    with agent.connect() as connection:
        connection.prepare_threshold = 0
        connection.prepared_max = 100
        for _ in range(2):
            for i in range(70):
                assert connection.execute(f"SELECT {i} AS n, id FROM orders WHERE id = %s", (i + 1,)).fetchone() == (i, i + 1)
        connection.execute("DEALLOCATE ALL")
        for i in range(70):
            assert connection.execute(f"SELECT {i} AS n, id FROM orders WHERE id = %s", (i + 1,)).fetchone() == (i, i + 1)


def test_pipelines_of_any_length_follow_one_another(agent: Agent) -> None:
    with agent.connect() as one, agent.connect() as two:
        for length in (1, 3, 40, 2, 300, 1, 8, 9):
            for connection in (one, two):
                with connection.pipeline():
                    cursors = [connection.execute("SELECT %s::int + 1", (i,)) for i in range(length)]
                    assert [cursor.fetchone() for cursor in cursors] == [(i + 1,) for i in range(length)]
                assert connection.execute("SELECT 1").fetchone() == (1,)

#!/bin/sh
# psql: the steps of the driver matrix. What psql prints is the outcome, as the server makes JSON of it.
if [ -n "$DRIVER_CA" ]; then tls="sslmode=verify-full sslrootcert=$DRIVER_CA"; else tls="sslmode=disable"; fi
export PGPASSWORD="$DRIVER_PASSWORD" PGAPPNAME=scenario PGCONNECT_TIMEOUT=10
where="host=$DRIVER_HOST port=$DRIVER_PORT user=$DRIVER_USER dbname=$DRIVER_DATABASE $tls"
run() { psql -X -A -t -q "$where" "$@" 2>&1; }

quoted() { sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/	/\\t/g' | awk 'BEGIN { ORS = "" } { if (NR > 1) print "\\n"; print }'; }

step() {
    name=$1
    shift
    printf '{"step": "%s", "outcome": "ok", "value": "%s"}\n' "$name" "$("$@" | quoted)"
}

# What an earlier run left is not part of the outcome.
run -c 'DROP TABLE IF EXISTS person' >/dev/null

simple() { run -c "CREATE TABLE person (id int PRIMARY KEY, name text CONSTRAINT person_name UNIQUE)" -c "SELECT 1; SELECT 2, 'x'"; run -c '\d person'; }
parameters() { printf '%s\n' "INSERT INTO person VALUES (1, 'Ada'), (2, 'Zoë');" "\\set who Zoë" "SELECT * FROM person WHERE name = :'who';" | run; }
prepared() { printf '%s\n' 'PREPARE double(int) AS SELECT $1 * 2;' 'EXECUTE double(1);' 'EXECUTE double(21);' 'DEALLOCATE double;' | run; }
transaction() {
    printf '%s\n' '\set VERBOSITY sqlstate' 'BEGIN;' "INSERT INTO person VALUES (3, 'Eve');" 'SAVEPOINT before;' "INSERT INTO person VALUES (4, 'Ada');" \
        'SELECT 1;' 'ROLLBACK TO before;' "INSERT INTO person VALUES (5, 'Max');" 'COMMIT;' 'SELECT id FROM person ORDER BY id;' | run
}
errors() {
    printf '%s\n' '\set VERBOSITY verbose' 'SELECT nothing FROM person;' "INSERT INTO person VALUES (9, 'Ada');" 'SELECT 1/0;' '\set VERBOSITY default' \
        'SELECT 1 +;' 'SELEC;' | run
}
types() {
    run -c "SELECT 7, 4611686018427387904, 12345.678901, true, 'Zoë ☃ 𝄞', timestamptz '2024-02-29 12:30:15.123456+00', date '2024-02-29',
        uuid '00000000-0000-0000-0000-000000000005', '\\x00ff0a'::bytea, json '{\"a\": [1]}', '{1,2,NULL}'::int[], ARRAY['a', 'q\"uote'], NULL"
}
rows() { run -c "SELECT i, 'row ' || i FROM generate_series(1, 100000) i" | cksum; }
cursor() { run -v FETCH_COUNT=100 -c "SELECT generate_series(1, 1000)" | cksum; }
out() { run -c "\\copy (SELECT i, 'x' || i FROM generate_series(1, 1000) i) TO STDOUT" | cksum; }
into() {
    seq 100 1099 | sed 's/.*/&\tcopied &/' | run -c '\copy person FROM STDIN'
    printf '100\tagain\n' | run -c '\copy person FROM STDIN'
    run -c 'SELECT count(*) FROM person'
}
notify() { printf '%s\n' 'LISTEN news;' "NOTIFY news, 'hello';" 'SELECT 1;' | run | sed 's/PID [0-9]*/PID/'; }
cancel() {
    (exec psql -X -A -t -q "$where" -c 'SELECT pg_sleep(30)' 2>&1) &
    sleep 0.7
    kill -INT $!
    wait $!
}
large() { { printf "SELECT length('"; head -c 8388608 /dev/zero | tr '\0' x; printf "');\n"; } | run; }

if ! first=$(run -c 'SHOW server_version' -c 'SELECT current_user' -c '\encoding'); then
    printf '{"step": "connect", "outcome": "error", "value": "%s"}\n' "$(echo "$first" | quoted)"
    exit 1
fi
step connect echo "$first"
step "simple query" simple
step parameters parameters
step "prepared statement" prepared
step transaction transaction
step "error fields" errors
step types types
step "100,000 rows" rows
step cursor cursor
step "copy out" out
step "copy in" into
step notify notify
step cancel cancel
step "8 MB parameter" large
printf '{"step": "pipeline", "outcome": "absent", "value": null}\n'
printf '%s\n' "SELECT json_build_object('step', 'disconnect', 'outcome', 'ok', 'value', pg_backend_pid());" 'SELECT pg_sleep(60);' | run

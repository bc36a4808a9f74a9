<?php
// PHP PDO (pgsql): the steps of the driver matrix.
error_reporting(E_ALL & ~E_DEPRECATED);

function say(string $step, string $outcome, mixed $value): void
{
    fwrite(STDOUT, json_encode(['step' => $step, 'outcome' => $outcome, 'value' => $value], JSON_UNESCAPED_UNICODE | JSON_INVALID_UTF8_SUBSTITUTE) . "\n");
    fflush(STDOUT);
}

function step(string $name, callable $work): void
{
    try {
        say($name, 'ok', $work());
    } catch (Throwable $error) {
        say($name, 'error', get_class($error) . ': ' . $error->getMessage());
        if ($name === 'connect') {
            exit(1);
        }
    }
}

function open_there(): PDO
{
    $tls = getenv('DRIVER_CA') ? 'sslmode=verify-full;sslrootcert=' . getenv('DRIVER_CA') : 'sslmode=disable';
    $where = 'pgsql:host=' . getenv('DRIVER_HOST') . ';port=' . getenv('DRIVER_PORT') . ';dbname=' . getenv('DRIVER_DATABASE') . ";$tls";
    return new PDO($where, getenv('DRIVER_USER'), getenv('DRIVER_PASSWORD'), [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
}

$db = $other = null;
step('connect', function () use (&$db, &$other) {
    $db = open_there();
    $other = open_there();
    return [$db->getAttribute(PDO::ATTR_SERVER_VERSION), $db->query('SELECT current_user')->fetchColumn()];
});
step('simple query', function () use (&$db) {
    $db->exec('DROP TABLE IF EXISTS person; CREATE TABLE person (id int PRIMARY KEY, name text CONSTRAINT person_name UNIQUE)');
    return $db->query("SELECT 2 AS two, 'x'::text AS x")->fetchAll(PDO::FETCH_ASSOC);
});
step('parameters', function () use (&$db) {
    $insert = $db->prepare('INSERT INTO person VALUES (?, ?), (?, ?)');
    $insert->execute([1, 'Ada', 2, 'Zoë']);
    $found = $db->prepare('SELECT * FROM person WHERE id > :id');
    $found->execute(['id' => 1]);
    return [$insert->rowCount(), $found->fetchAll(PDO::FETCH_NUM), array_diff_key($found->getColumnMeta(0), ['pgsql:table_oid' => 0])];
});
step('prepared statement', function () use (&$db) {
    $twice = $db->prepare('SELECT ?::int * 2');
    $found = [];
    for ($n = 0; $n < 10; $n++) {
        $twice->execute([$n]);
        $found[] = $twice->fetchColumn();
    }
    return $found;
});
step('transaction', function () use (&$db) {
    $found = [];
    $db->beginTransaction();
    $db->exec("INSERT INTO person VALUES (3, 'Eve')");
    $db->exec('SAVEPOINT before');
    try {
        $db->exec("INSERT INTO person VALUES (4, 'Ada')");
    } catch (PDOException $error) {
        $found[] = $error->getCode();
    }
    $db->exec('ROLLBACK TO SAVEPOINT before');
    $db->exec("INSERT INTO person VALUES (5, 'Max')");
    $db->commit();
    return [$found, $db->inTransaction(), $db->query('SELECT id FROM person ORDER BY id')->fetchAll(PDO::FETCH_COLUMN)];
});
step('error fields', function () use (&$db) {
    $found = [];
    foreach (['SELECT nothing FROM person', "INSERT INTO person VALUES (9, 'Ada')", 'SELECT 1/0', 'SELEC'] as $sql) {
        try {
            $db->query($sql);
        } catch (PDOException $error) {
            $found[] = $error->errorInfo;
        }
    }
    return $found;
});
step('types', function () use (&$db) {
    $all = $db->prepare('SELECT ?::int, ?::bigint, ?::numeric, ?::bool, ?::text, ?::timestamptz, ?::date, ?::uuid, ?::bytea, ?::json, ?::int[],'
        . ' ?::text[], ?::text');
    $values = [7, '4611686018427387904', '12345.678901', 't', 'Zoë ☃ 𝄞', '2024-02-29 12:30:15.123456+00', '2024-02-29',
        '00000000-0000-0000-0000-000000000005', null, '{"a": [1]}', '{1,2,NULL}', '{a,"q\"uote",NULL}', null];
    foreach ($values as $at => $value) {
        $all->bindValue($at + 1, $value);
    }
    $all->bindValue(9, "\0\xff\n", PDO::PARAM_LOB);
    $all->execute();
    $row = $all->fetch(PDO::FETCH_NUM);
    $row[8] = bin2hex(stream_get_contents($row[8]));
    return $row;
});
step('100,000 rows', function () use (&$db) {
    $count = $sum = 0;
    foreach ($db->query("SELECT i, 'row ' || i FROM generate_series(1, 100000) i", PDO::FETCH_NUM) as [$number, $text]) {
        $count++;
        $sum += $number + strlen($text);
    }
    return [$count, $sum];
});
step('cursor', function () use (&$db) {
    $db->beginTransaction();
    $cursor = $db->prepare('SELECT generate_series(1, 1000)', [PDO::ATTR_CURSOR => PDO::CURSOR_SCROLL]);
    $cursor->execute();
    $found = [$cursor->fetchColumn(), $cursor->fetch(PDO::FETCH_NUM, PDO::FETCH_ORI_ABS, 500)[0], $cursor->fetch(PDO::FETCH_NUM, PDO::FETCH_ORI_LAST)[0]];
    $cursor = null;
    $db->commit();
    return $found;
});
step('copy out', function () use (&$db) {
    $rows = $db->pgsqlCopyToArray("(SELECT i, 'x' || i FROM generate_series(1, 1000) i)");
    return [count($rows), $rows[0], $rows[999]];
});
step('copy in', function () use (&$db) {
    $rows = array_map(fn ($n) => "$n\tcopied $n", range(100, 1099));
    $found = [$db->pgsqlCopyFromArray('person', $rows)];
    try {
        $db->pgsqlCopyFromArray('person', ["100\tagain"]);
    } catch (PDOException $error) {
        $found[] = $error->errorInfo;
    }
    return [$found, $db->query('SELECT count(*) FROM person')->fetchColumn()];
});
step('notify', function () use (&$db, &$other) {
    $db->exec('LISTEN news');
    $other->exec("NOTIFY news, 'hello'");
    $heard = $db->pgsqlGetNotify(PDO::FETCH_ASSOC, 10000);
    $db->exec('UNLISTEN *');
    return [$heard['message'], $heard['payload'], $heard['pid'] === $other->pgsqlGetPid()];
});
say('cancel', 'absent', null);
step('8 MB parameter', function () use (&$db) {
    $length = $db->prepare('SELECT length(?)');
    $length->execute([str_repeat('ä', 4 * 1024 * 1024)]);
    return $length->fetchColumn();
});
say('pipeline', 'absent', null);
say('disconnect', 'ok', $db->pgsqlGetPid());
$db->query('SELECT pg_sleep(60)');

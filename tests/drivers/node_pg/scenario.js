// node-postgres: the steps of the driver matrix.
'use strict'
const { Client } = require('pg')
const Cursor = require('pg-cursor')
const copy = require('pg-copy-streams')
const { pipeline } = require('stream/promises')
const { Readable, Writable } = require('stream')
const { target, BIG, SETUP, step, absent, hang, fields } = require('../recorder.js')

const client = new Client(target)
const other = new Client({ ...target, application_name: 'other' })

async function main() {
  await step('connect', async () => {
    await client.connect()
    await other.connect()
    return (await other.query('SHOW application_name')).rows
  })
  await step('simple query', async () => {
    await client.query(SETUP.join(';'))
    const results = await client.query("SELECT 1 AS one; SELECT 2 AS two, 'x'::text AS x; SELECT 3 WHERE false")
    return results.map((each) => [each.command, each.rowCount, each.rows])
  })
  await step('parameters', async () => {
    const done = await client.query('INSERT INTO person VALUES ($1, $2), ($3, $4)', [1, 'Ada', 2, 'Zoë'])
    return [done.rowCount, (await client.query('SELECT * FROM person WHERE id > $1', [1])).rows]
  })
  await step('prepared statement', async () => {
    const found = []
    for (let n = 0; n < 10; n++) found.push((await client.query({ name: 'double', text: 'SELECT $1::int * 2 AS n', values: [n] })).rows[0].n)
    return found
  })
  await step('transaction', async () => {
    const found = []
    await client.query('BEGIN')
    await client.query("INSERT INTO person VALUES (3, 'Eve')")
    await client.query('SAVEPOINT before')
    await client.query('INSERT INTO person VALUES ($1, $2)', [4, 'Ada']).catch((error) => found.push(error.code))
    await client.query('SELECT 1').catch((error) => found.push(error.code, error.message))
    await client.query('ROLLBACK TO SAVEPOINT before')
    await client.query("INSERT INTO person VALUES (5, 'Max')")
    await client.query('COMMIT')
    return [found, (await client.query('SELECT id FROM person ORDER BY id')).rows]
  })
  await step('error fields', async () => {
    const found = []
    for (const text of ['SELECT nothing FROM person', "INSERT INTO person VALUES (9, 'Ada')", 'SELECT 1/0', 'SELEC'])
      await client.query(text).catch((error) => found.push(fields(error)))
    return found
  })
  await step('types', async () => {
    const moment = new Date('2024-02-29T12:30:15.123Z')
    const values = [7, '4611686018427387904', '12345.678901', true, 'Zoë ☃ 𝄞', moment, '2024-02-29', '00000000-0000-0000-0000-000000000005',
      Buffer.from([0, 255, 10]), { a: [1] }, [1, 2, null], ['a', 'q"uote', null], null]
    const kinds = ['int', 'bigint', 'numeric', 'bool', 'text', 'timestamptz', 'date', 'uuid', 'bytea', 'json', 'int[]', 'text[]', 'text']
    const text = 'SELECT ' + kinds.map((kind, at) => `$${at + 1}::${kind} AS v${at}`).join(', ')
    return (await client.query(text, values)).rows
  })
  await step('100,000 rows', async () => {
    const { rows } = await client.query("SELECT i, 'row ' || i AS t FROM generate_series(1, 100000) i")
    return [rows.length, rows.reduce((sum, row) => sum + row.i + row.t.length, 0)]
  })
  await step('cursor', async () => {
    const cursor = client.query(new Cursor('SELECT generate_series(1, $1::int) AS n', [1000]))
    const found = []
    for (let rows = await cursor.read(100); rows.length; rows = await cursor.read(100)) found.push(rows.length)
    const early = client.query(new Cursor('SELECT generate_series(1, 1000) AS n'))
    found.push((await early.read(3)).length)
    await early.close()
    return found
  })
  await step('copy out', async () => {
    const parts = []
    const stream = client.query(copy.to("COPY (SELECT i, 'x' || i FROM generate_series(1, 1000) i) TO STDOUT"))
    await pipeline(stream, new Writable({ write: (part, _, done) => { parts.push(part); done() } }))
    const text = Buffer.concat(parts).toString()
    return [text.length, text.slice(0, 20)]
  })
  await step('copy in', async () => {
    const rows = Array.from({ length: 1000 }, (_, n) => `${n + 100}\tcopied ${n}\n`)
    await pipeline(Readable.from(rows), client.query(copy.from('COPY person FROM STDIN')))
    const found = [(await client.query('SELECT count(*) FROM person')).rows]
    await pipeline(Readable.from(['100\tagain\n']), client.query(copy.from('COPY person FROM STDIN'))).catch((error) => found.push(fields(error)))
    return found
  })
  await step('notify', async () => {
    await client.query('LISTEN news')
    const heard = new Promise((resolve) => client.once('notification', resolve))
    await other.query("NOTIFY news, 'hello'")
    const { channel, payload, processId } = await heard
    return [channel, payload, processId === other.processID]
  })
  await step('cancel', async () => {
    const running = client.query('SELECT pg_sleep(30)').catch((error) => [error.code, error.message])
    await new Promise((resolve) => setTimeout(resolve, 300))
    // What the driver offers: a connection of its own that sends the CancelRequest.
    new Client(target).cancel(client, client.activeQuery ?? client._activeQuery)
    return [await running, (await client.query('SELECT 1 AS one')).rows]
  })
  await step('8 MB parameter', async () => (await client.query('SELECT length($1) AS l, octet_length($2) AS o', [BIG, BIG.slice(0, 10)])).rows)
  await step('pipeline', async () => {
    // Queries queue in the driver, errors in the middle included.
    const all = Array.from({ length: 50 }, (_, n) => client.query('SELECT 10 / $1::int AS n', [n]))
    return (await Promise.allSettled(all)).map((each) => (each.status === 'fulfilled' ? each.value.rows[0].n : each.reason.code))
  })
  await hang(client.processID, () => client.query('SELECT pg_sleep(60)'))
}
main()

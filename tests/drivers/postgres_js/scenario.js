// postgres.js: the steps of the driver matrix.
'use strict'
const { pipeline } = require('stream/promises')
const { Readable } = require('stream')
const postgres = require('postgres')
const { target, BIG, SETUP, step, hang, fields } = require('../recorder.js')

const { user, password, ...rest } = target
const sql = postgres({ ...rest, username: user, password, max: 1, fetch_types: true, onnotice: () => {}, connection: { application_name: 'scenario' } })
const other = postgres({ ...rest, username: user, password, max: 1 })

async function main() {
  await step('connect', async () => [await sql`SHOW application_name`, await other`SELECT 1 AS one`])
  await step('simple query', async () => {
    for (const text of SETUP) await sql.unsafe(text)
    return sql.unsafe("SELECT 1 AS one; SELECT 2 AS two, 'x'::text AS x")
  })
  await step('parameters', async () => {
    const done = await sql`INSERT INTO person ${sql([{ id: 1, name: 'Ada' }, { id: 2, name: 'Zoë' }])}`
    return [done.count, done.command, await sql`SELECT * FROM person WHERE id > ${1}`]
  })
  await step('prepared statement', async () => {
    const found = []
    for (let n = 0; n < 10; n++) found.push((await sql`SELECT ${n}::int * 2 AS n`)[0].n)
    return found
  })
  await step('transaction', async () => {
    const found = []
    await sql.begin(async (sql) => {
      await sql`INSERT INTO person VALUES (3, 'Eve')`
      await sql.savepoint((sql) => sql`INSERT INTO person VALUES (${4}, ${'Ada'})`).catch((error) => found.push(error.code))
      await sql`INSERT INTO person VALUES (5, 'Max')`
    })
    return [found, await sql`SELECT id FROM person ORDER BY id`]
  })
  await step('error fields', async () => {
    const found = []
    for (const text of ['SELECT nothing FROM person', "INSERT INTO person VALUES (9, 'Ada')", 'SELECT 1/0', 'SELEC'])
      await sql.unsafe(text).catch((error) => found.push(fields(error)))
    return found
  })
  await step('types', async () => {
    const moment = new Date('2024-02-29T12:30:15.123Z')
    const uuid = '00000000-0000-0000-0000-000000000005'
    return sql`SELECT ${7}::int AS i, ${'4611686018427387904'}::bigint AS b, ${'12345.678901'}::numeric AS n, ${true}::bool AS t,
      ${'Zoë ☃ 𝄞'}::text AS u, ${moment}::timestamptz AS m, ${'2024-02-29'}::date AS d, ${uuid}::uuid AS id, ${Buffer.from([0, 255, 10])}::bytea AS by,
      ${sql.json({ a: [1] })}::json AS j, ${sql.array([1, 2])}::int[] AS ia, ${sql.array(['a', 'q"uote'])}::text[] AS ta, ${null}::text AS no`
  })
  await step('100,000 rows', async () => {
    const rows = await sql`SELECT i, 'row ' || i AS t FROM generate_series(1, 100000) i`
    return [rows.length, rows.reduce((sum, row) => sum + row.i + row.t.length, 0)]
  })
  await step('cursor', async () => {
    const found = []
    await sql`SELECT generate_series(1, 1000) AS n`.cursor(100, (rows) => { found.push(rows.length) })
    await sql`SELECT generate_series(1, 1000) AS n`.cursor(100, () => sql.CLOSE)
    return [found, await sql`SELECT 1 AS one`]
  })
  await step('copy out', async () => {
    const parts = []
    for await (const part of await sql`COPY (SELECT i, 'x' || i FROM generate_series(1, 1000) i) TO STDOUT`.readable()) parts.push(part)
    const text = Buffer.concat(parts).toString()
    return [text.length, text.slice(0, 20)]
  })
  await step('copy in', async () => {
    const rows = Array.from({ length: 1000 }, (_, n) => `${n + 100}\tcopied ${n}\n`)
    await pipeline(Readable.from(rows), await sql`COPY person FROM STDIN`.writable())
    return sql`SELECT count(*) FROM person`
  })
  await step('notify', async () => {
    const heard = new Promise((resolve) => sql.listen('news', resolve).then(() => other.notify('news', 'hello')))
    return heard
  })
  await step('cancel', async () => {
    const running = sql`SELECT pg_sleep(30)`
    setTimeout(() => running.cancel(), 300)
    const found = await running.catch((error) => [error.code, error.message])
    await new Promise((resolve) => setTimeout(resolve, 300))
    return [found, await sql`SELECT 1 AS one`]
  })
  await step('8 MB parameter', () => sql`SELECT length(${BIG}::text) AS l, octet_length(${BIG.slice(0, 10)}::text) AS o`)
  await step('pipeline', async () => {
    const all = Array.from({ length: 50 }, (_, n) => sql`SELECT 10 / ${n}::int AS n`)
    return (await Promise.allSettled(all)).map((each) => (each.status === 'fulfilled' ? each.value[0].n : each.reason.code))
  })
  const [{ pid }] = await sql`SELECT pg_backend_pid() AS pid`
  await hang(pid, () => sql`SELECT pg_sleep(60)`)
}
main()

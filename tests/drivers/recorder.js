// How a Node scenario is told where to connect and says what happened: one JSON line per step on standard output.
// Never add here: a driver.
'use strict'
const fs = require('fs')

const env = process.env
exports.target = {
  host: env.DRIVER_HOST,
  port: Number(env.DRIVER_PORT),
  user: env.DRIVER_USER,
  password: env.DRIVER_PASSWORD,
  database: env.DRIVER_DATABASE,
  ssl: env.DRIVER_CA ? { ca: fs.readFileSync(env.DRIVER_CA, 'utf8'), rejectUnauthorized: true, servername: env.DRIVER_HOST } : false,
}
exports.BIG = 'ä'.repeat(4 * 1024 * 1024)
exports.SETUP = [
  'DROP TABLE IF EXISTS person',
  'CREATE TABLE person (id int PRIMARY KEY, name text CONSTRAINT person_name UNIQUE)',
]

const say = (line) => fs.writeSync(1, JSON.stringify(line) + '\n')

exports.step = async (name, work) => {
  try {
    say({ step: name, outcome: 'ok', value: (await work()) ?? null })
  } catch (error) {
    say({ step: name, outcome: 'error', value: String(error && error.message) })
    if (name === 'connect') process.exit(1)
  }
}
exports.absent = (name) => say({ step: name, outcome: 'absent', value: null })
exports.hang = async (pid, work) => {
  say({ step: 'disconnect', outcome: 'ok', value: pid })
  await work()
}
exports.fields = (error) => {
  const names = ['code', 'severity', 'message', 'detail', 'hint', 'position', 'where', 'schema', 'table', 'column', 'constraint',
    'schema_name', 'table_name', 'constraint_name', 'routine']
  return names.map((name) => error[name] ?? null)
}

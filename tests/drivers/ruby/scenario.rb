# Ruby pg: the steps of the driver matrix.
require 'json'
require 'pg'

$stdout.sync = true

def say(step, outcome, value)
  puts JSON.generate({ step: step, outcome: outcome, value: value })
end

def step(name)
  say(name, 'ok', yield)
rescue PG::Error, RuntimeError => e
  say(name, 'error', "#{e.class}: #{e.message}")
  exit 1 if name == 'connect'
end

def open_there
  tls = ENV['DRIVER_CA'].to_s.empty? ? { sslmode: 'disable' } : { sslmode: 'verify-full', sslrootcert: ENV['DRIVER_CA'] }
  PG.connect(host: ENV['DRIVER_HOST'], port: ENV['DRIVER_PORT'], user: ENV['DRIVER_USER'], password: ENV['DRIVER_PASSWORD'],
             dbname: ENV['DRIVER_DATABASE'], **tls)
end

BIG = 'ä' * (4 * 1024 * 1024)
db = other = nil

step('connect') do
  db = open_there
  other = open_there
  [db.server_version, db.user, db.db, db.internal_encoding.to_s, db.parameter_status('TimeZone')]
end
step('simple query') do
  db.exec('DROP TABLE IF EXISTS person; CREATE TABLE person (id int PRIMARY KEY, name text CONSTRAINT person_name UNIQUE)')
  db.send_query("SELECT 1 AS one; SELECT 2 AS two, 'x'::text AS x")
  found = []
  while (result = db.get_result)
    found << [result.fields, result.values, result.cmd_status]
  end
  found
end
step('parameters') do
  done = db.exec_params('INSERT INTO person VALUES ($1, $2), ($3, $4)', [1, 'Ada', 2, 'Zoë'])
  [done.cmd_tuples, db.exec_params('SELECT * FROM person WHERE id > $1', [1]).to_a]
end
step('prepared statement') do
  db.prepare('double', 'SELECT $1::int * 2')
  found = (0..9).map { |n| db.exec_prepared('double', [n]).getvalue(0, 0) }
  about = db.describe_prepared('double')
  db.exec('DEALLOCATE double')
  [found, about.nparams, about.ftype(0)]
end
step('transaction') do
  found = []
  db.transaction do |c|
    c.exec("INSERT INTO person VALUES (3, 'Eve')")
    c.exec('SAVEPOINT before')
    begin
      c.exec_params('INSERT INTO person VALUES ($1, $2)', [4, 'Ada'])
    rescue PG::UniqueViolation => e
      found << e.result.error_field(PG::PG_DIAG_SQLSTATE) << c.transaction_status
    end
    c.exec('ROLLBACK TO SAVEPOINT before')
    c.exec("INSERT INTO person VALUES (5, 'Max')")
  end
  [found, db.transaction_status, db.exec('SELECT id FROM person ORDER BY id').values]
end
step('error fields') do
  fields = [PG::PG_DIAG_SEVERITY, PG::PG_DIAG_SQLSTATE, PG::PG_DIAG_MESSAGE_PRIMARY, PG::PG_DIAG_MESSAGE_DETAIL, PG::PG_DIAG_STATEMENT_POSITION,
            PG::PG_DIAG_TABLE_NAME, PG::PG_DIAG_CONSTRAINT_NAME, PG::PG_DIAG_SOURCE_FUNCTION]
  ['SELECT nothing FROM person', "INSERT INTO person VALUES (9, 'Ada')", 'SELECT 1/0', 'SELEC'].map do |sql|
    db.exec(sql)
  rescue PG::Error => e
    [e.class.to_s, e.message, fields.map { |field| e.result.error_field(field) }]
  end
end
step('types') do
  sql = 'SELECT $1::int, $2::bigint, $3::numeric, $4::bool, $5::text, $6::timestamptz, $7::date, $8::uuid, $9::bytea, $10::json, $11::int[],' \
        ' $12::text[], $13::text'
  values = ['7', (2**62).to_s, '12345.678901', 't', 'Zoë ☃ 𝄞', '2024-02-29 12:30:15.123456+00', '2024-02-29',
            '00000000-0000-0000-0000-000000000005', { value: "\0\xff\n".b, format: 1 }, '{"a": [1]}', '{1,2,NULL}', '{a,"q\"uote",NULL}', nil]
  typed = db.exec_params(sql, values).map_types!(PG::BasicTypeMapForResults.new(db)).values
  binary = db.exec_params(sql, values, 1).values
  [typed.inspect, binary.flatten.map { |each| each && each.unpack1('H*') }]
end
step('100,000 rows') do
  count = sum = 0
  db.send_query("SELECT i, 'row ' || i FROM generate_series(1, 100000) i")
  db.set_single_row_mode
  db.get_result.stream_each_row do |number, text|
    count += 1
    sum += number.to_i + text.length
  end
  [count, sum]
end
step('cursor') do
  db.exec('BEGIN; DECLARE server_side CURSOR FOR SELECT generate_series(1, 1000)')
  found = (1..11).map { db.exec('FETCH 100 FROM server_side').ntuples }
  db.exec('CLOSE server_side; COMMIT')
  found
end
step('copy out') do
  lines = []
  db.copy_data("COPY (SELECT i, 'x' || i FROM generate_series(1, 1000) i) TO STDOUT") do
    while (line = db.get_copy_data)
      lines << line
    end
  end
  [lines.length, lines.join.length]
end
step('copy in') do
  db.copy_data('COPY person FROM STDIN') { (100..1099).each { |n| db.put_copy_data("#{n}\tcopied #{n}\n") } }
  found = []
  begin
    db.copy_data('COPY person FROM STDIN') { db.put_copy_data("100\tagain\n") }
  rescue PG::UniqueViolation => e
    found << e.message
  end
  [found, db.exec('SELECT count(*) FROM person').values]
end
step('notify') do
  db.exec('LISTEN news')
  other.exec("NOTIFY news, 'hello'")
  heard = nil
  db.wait_for_notify(10) { |channel, pid, payload| heard = [channel, payload, pid == other.backend_pid] }
  db.exec('UNLISTEN *')
  heard
end
step('cancel') do
  stopper = Thread.new { sleep 0.3; db.cancel }
  begin
    db.exec('SELECT pg_sleep(30)')
  rescue PG::QueryCanceled => e
    stopper.join
    [e.message, db.exec('SELECT 1').values]
  end
end
step('8 MB parameter') { db.exec_params('SELECT length($1), octet_length($2::text)', [BIG, BIG[0, 10]]).values }
step('pipeline') do
  db.enter_pipeline_mode
  20.times { |n| db.send_query_params('SELECT 10 / $1::int', [n.zero? ? 5 : n]) }
  db.send_query_params('SELECT 10 / $1::int', [0])
  db.send_query_params('SELECT 1', [])
  db.pipeline_sync
  found = []
  silent = 0
  while silent < 2
    result = db.get_result
    if result.nil?
      silent += 1
      next
    end
    silent = 0
    found << (result.result_status == PG::PGRES_TUPLES_OK ? result.getvalue(0, 0) : result.result_status)
    break if result.result_status == PG::PGRES_PIPELINE_SYNC
  end
  db.exit_pipeline_mode
  [found, db.exec('SELECT 3').values]
end
say('disconnect', 'ok', db.backend_pid)
db.exec('SELECT pg_sleep(60)')

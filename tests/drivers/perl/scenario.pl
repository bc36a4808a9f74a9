# Perl DBD::Pg: the steps of the driver matrix.
use strict;
use warnings;
use utf8;
use DBI;
use DBD::Pg qw(:pg_types :async);
use JSON::PP;

$| = 1;
binmode STDOUT, ':raw';
my $json = JSON::PP->new->utf8->canonical->allow_nonref;

sub say_line { print $json->encode({ @_ }), "\n" }

sub step {
    my ($name, $work) = @_;
    my $value = eval { $work->() };
    if (my $error = $@) {
        $error =~ s/ at \S+ line \d+.*//s;
        say_line(step => $name, outcome => 'error', value => $error);
        exit 1 if $name eq 'connect';
        return;
    }
    say_line(step => $name, outcome => 'ok', value => $value);
}

sub absent { say_line(step => $_[0], outcome => 'absent', value => undef) }

sub connect_there {
    my $tls = $ENV{DRIVER_CA} ? "sslmode=verify-full;sslrootcert=$ENV{DRIVER_CA}" : 'sslmode=disable';
    my $where = "dbi:Pg:host=$ENV{DRIVER_HOST};port=$ENV{DRIVER_PORT};dbname=$ENV{DRIVER_DATABASE};$tls";
    return DBI->connect($where, $ENV{DRIVER_USER}, $ENV{DRIVER_PASSWORD},
        { RaiseError => 1, PrintError => 0, AutoCommit => 1, pg_enable_utf8 => 1 });
}

my ($db, $other);
step('connect', sub { $db = connect_there(); $other = connect_there(); [ $db->{pg_server_version}, $db->{pg_user}, $db->ping ] });
step('simple query', sub {
    $db->do('DROP TABLE IF EXISTS person; CREATE TABLE person (id int PRIMARY KEY, name text CONSTRAINT person_name UNIQUE)');
    [ $db->selectall_arrayref("SELECT 2 AS two, 'x'::text AS x", { Slice => {} }), [ $db->tables('', 'public', 'person', 'TABLE') ] ];
});
step('parameters', sub {
    my $count = $db->do('INSERT INTO person VALUES (?, ?), (?, ?)', undef, 1, 'Ada', 2, 'Zoë');
    [ $count, $db->selectall_arrayref('SELECT * FROM person WHERE id > ?', undef, 1) ];
});
step('prepared statement', sub {
    my $twice = $db->prepare('SELECT ?::int * 2');
    [ map { $twice->execute($_); $twice->fetchrow_array } 0 .. 9 ];
});
step('transaction', sub {
    my @found;
    $db->begin_work;
    $db->do("INSERT INTO person VALUES (3, 'Eve')");
    $db->pg_savepoint('before');
    eval { $db->do('INSERT INTO person VALUES (?, ?)', undef, 4, 'Ada') };
    push @found, $db->state;
    $db->pg_rollback_to('before');
    $db->do("INSERT INTO person VALUES (5, 'Max')");
    $db->commit;
    [ @found, $db->selectall_arrayref('SELECT id FROM person ORDER BY id') ];
});
step('error fields', sub {
    my @found;
    for my $sql ('SELECT nothing FROM person', "INSERT INTO person VALUES (9, 'Ada')", 'SELECT 1/0', 'SELEC') {
        eval { $db->do($sql) };
        my $told = $db->pg_error_field('sqlstate') ? [ map { $db->pg_error_field($_) } qw(sqlstate severity message_primary message_detail statement_position table_name constraint_name) ] : undef;
        push @found, [ $db->state, $db->errstr, $told ];
    }
    \@found;
});
step('types', sub {
    my $all = $db->prepare('SELECT ?::int, ?::bigint, ?::numeric, ?::bool, ?::text, ?::timestamptz, ?::date, ?::uuid, ?::bytea, ?::json, ?::int[],'
        . ' ?::text[], ?::text');
    my @values = (7, '4611686018427387904', '12345.678901', 1, 'Zoë ☃ 𝄞', '2024-02-29 12:30:15.123456+00', '2024-02-29',
        '00000000-0000-0000-0000-000000000005', undef, '{"a": [1]}', [ 1, 2, undef ], [ 'a', 'q"uote', undef ], undef);
    $all->bind_param($_ + 1, $values[$_]) for 0 .. $#values;
    $all->bind_param(9, "\0\xff\n", { pg_type => PG_BYTEA });
    $all->execute;
    my @row = $all->fetchrow_array;
    $row[8] = unpack 'H*', $row[8];
    \@row;
});
step('100,000 rows', sub {
    my ($count, $sum) = (0, 0);
    my $all = $db->prepare("SELECT i, 'row ' || i FROM generate_series(1, 100000) i");
    $all->execute;
    while (my $row = $all->fetchrow_arrayref) { $count++; $sum += $row->[0] + length $row->[1] }
    [ $count, $sum ];
});
step('cursor', sub {
    $db->begin_work;
    $db->do('DECLARE server_side CURSOR FOR SELECT generate_series(1, 1000)');
    my @found = map { scalar @{ $db->selectall_arrayref('FETCH 100 FROM server_side') } } 1 .. 11;
    $db->do('CLOSE server_side');
    $db->commit;
    \@found;
});
step('copy out', sub {
    $db->do("COPY (SELECT i, 'x' || i FROM generate_series(1, 1000) i) TO STDOUT");
    my ($line, $count, $size) = ('', 0, 0);
    while ($db->pg_getcopydata($line) >= 0) { $count++; $size += length $line }
    [ $count, $size ];
});
step('copy in', sub {
    $db->do('COPY person FROM STDIN');
    $db->pg_putcopydata("$_\tcopied $_\n") for 100 .. 1099;
    $db->pg_putcopyend;
    $db->do('COPY person FROM STDIN');
    $db->pg_putcopydata("100\tagain\n");
    eval { $db->pg_putcopyend };
    [ $db->state, $db->selectrow_array('SELECT count(*) FROM person') ];
});
step('notify', sub {
    $db->do('LISTEN news');
    $other->do("NOTIFY news, 'hello'");
    my $heard;
    for (1 .. 100) { last if $heard = $db->pg_notifies; select undef, undef, undef, 0.05 }
    $db->do('UNLISTEN *');
    [ $heard->[0], $heard->[2], $heard->[1] == $other->{pg_pid} ? 1 : 0 ];
});
step('cancel', sub {
    $db->do('SELECT pg_sleep(30)', { pg_async => PG_ASYNC });
    select undef, undef, undef, 0.3;
    my $cancelled = $db->pg_cancel ? 1 : 0;
    [ $cancelled, $db->selectrow_array('SELECT 1') ];
});
step('8 MB parameter', sub { [ $db->selectrow_array('SELECT length(?), 1', undef, 'ä' x (4 * 1024 * 1024)) ] });
absent('pipeline');
say_line(step => 'disconnect', outcome => 'ok', value => $db->{pg_pid} + 0);
$db->do('SELECT pg_sleep(60)');

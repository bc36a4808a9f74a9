// JDBC (pgjdbc): the steps of the driver matrix. Run as a single source file: java -cp postgresql.jar Scenario.java
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.sql.*;
import java.time.LocalDate;
import java.time.OffsetDateTime;
import java.util.*;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;
import org.postgresql.util.PSQLException;
import org.postgresql.util.ServerErrorMessage;

public class Scenario {
    interface Work { Object run() throws Exception; }

    static Connection connection;
    static Connection other;

    static Connection open(String more) throws SQLException {
        Map<String, String> env = System.getenv();
        Properties properties = new Properties();
        properties.setProperty("user", env.get("DRIVER_USER"));
        properties.setProperty("password", env.get("DRIVER_PASSWORD"));
        String ca = env.getOrDefault("DRIVER_CA", "");
        properties.setProperty("sslmode", ca.isEmpty() ? "disable" : "verify-full");
        if (!ca.isEmpty()) properties.setProperty("sslrootcert", ca);
        properties.setProperty("ApplicationName", more);
        String url = "jdbc:postgresql://" + env.get("DRIVER_HOST") + ":" + env.get("DRIVER_PORT") + "/" + env.get("DRIVER_DATABASE");
        return DriverManager.getConnection(url, properties);
    }

    static String json(Object value) {
        if (value == null || value instanceof Boolean || value instanceof Integer || value instanceof Long) return String.valueOf(value);
        if (value instanceof Collection<?> many) {
            StringJoiner all = new StringJoiner(",", "[", "]");
            for (Object each : many) all.add(json(each));
            return all.toString();
        }
        if (value instanceof byte[] bytes) value = Base64.getEncoder().encodeToString(bytes);
        StringBuilder text = new StringBuilder("\"");
        for (char c : value.toString().toCharArray()) {
            if (c == '"' || c == '\\') text.append('\\').append(c);
            else if (c < 32 || c > 126) text.append(String.format("\\u%04x", (int) c));
            else text.append(c);
        }
        return text.append('"').toString();
    }

    static void say(String step, String outcome, Object value) {
        System.out.println("{\"step\": \"" + step + "\", \"outcome\": \"" + outcome + "\", \"value\": " + json(value) + "}");
        System.out.flush();
    }

    static void step(String name, Work work) {
        try {
            say(name, "ok", work.run());
        } catch (Exception error) {
            say(name, "error", error.getClass().getSimpleName() + ": " + error.getMessage());
            if (name.equals("connect")) System.exit(1);
        }
    }

    static List<Object> rows(ResultSet result) throws SQLException {
        List<Object> found = new ArrayList<>();
        while (result.next()) {
            List<Object> row = new ArrayList<>();
            for (int at = 1; at <= result.getMetaData().getColumnCount(); at++) row.add(result.getObject(at));
            found.add(row);
        }
        return found;
    }

    static List<Object> query(String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            return rows(statement.executeQuery(sql));
        }
    }

    static void run(String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    static List<Object> fields(SQLException error) {
        ServerErrorMessage told = ((PSQLException) error).getServerErrorMessage();
        if (told == null) return List.of(String.valueOf(error.getSQLState()), String.valueOf(error.getMessage()));
        return Arrays.asList(told.getSeverity(), told.getSQLState(), told.getMessage(), told.getDetail(), told.getPosition(), told.getTable(),
            told.getConstraint(), told.getRoutine());
    }

    public static void main(String[] arguments) throws Exception {
        step("connect", () -> {
            connection = open("scenario");
            other = open("other");
            DatabaseMetaData about = connection.getMetaData();
            return List.of(about.getDatabaseProductVersion(), about.getUserName(), connection.getCatalog(), query("SHOW application_name"));
        });
        step("simple query", () -> {
            run("DROP TABLE IF EXISTS person; CREATE TABLE person (id int PRIMARY KEY, name text CONSTRAINT person_name UNIQUE)");
            List<Object> found = new ArrayList<>();
            try (Statement statement = connection.createStatement()) {
                boolean more = statement.execute("SELECT 1 AS one; SELECT 2 AS two, 'x'::text AS x");
                while (more) {
                    found.add(rows(statement.getResultSet()));
                    more = statement.getMoreResults();
                }
            }
            try (ResultSet columns = connection.getMetaData().getColumns(null, "public", "person", "%")) {
                while (columns.next()) found.add(columns.getString("COLUMN_NAME"));
            }
            return found;
        });
        step("parameters", () -> {
            try (PreparedStatement insert = connection.prepareStatement("INSERT INTO person VALUES (?, ?), (?, ?)")) {
                insert.setInt(1, 1);
                insert.setString(2, "Ada");
                insert.setInt(3, 2);
                insert.setString(4, "Zoë");
                return List.of(insert.executeUpdate(), query("SELECT * FROM person WHERE id > 1"));
            }
        });
        step("prepared statement", () -> {
            // From the fifth run on the driver uses a named statement, and binary results.
            List<Object> found = new ArrayList<>();
            try (PreparedStatement twice = connection.prepareStatement("SELECT ?::int * 2, ?::timestamptz")) {
                for (int n = 0; n < 12; n++) {
                    twice.setInt(1, n);
                    twice.setObject(2, OffsetDateTime.parse("2024-02-29T12:30:15Z"));
                    ResultSet result = twice.executeQuery();
                    result.next();
                    found.add(result.getInt(1));
                    found.add(result.getObject(2, OffsetDateTime.class).toInstant().toString());
                }
                found.add(twice.getParameterMetaData().getParameterTypeName(1));
            }
            return found;
        });
        step("transaction", () -> {
            List<Object> found = new ArrayList<>();
            connection.setAutoCommit(false);
            run("INSERT INTO person VALUES (3, 'Eve')");
            Savepoint before = connection.setSavepoint("before");
            try {
                run("INSERT INTO person VALUES (4, 'Ada')");
            } catch (SQLException error) {
                found.add(error.getSQLState());
            }
            connection.rollback(before);
            run("INSERT INTO person VALUES (5, 'Max')");
            connection.commit();
            connection.setAutoCommit(true);
            found.add(query("SELECT id FROM person ORDER BY id"));
            return found;
        });
        step("error fields", () -> {
            List<Object> found = new ArrayList<>();
            for (String sql : List.of("SELECT nothing FROM person", "INSERT INTO person VALUES (9, 'Ada')", "SELECT 1/0", "SELEC")) {
                try {
                    run(sql);
                } catch (SQLException error) {
                    found.add(fields(error));
                }
            }
            return found;
        });
        step("types", () -> {
            String sql = "SELECT ?::int, ?::bigint, ?::numeric, ?::bool, ?::text, ?::timestamptz, ?::date, ?::uuid, ?::bytea, ?::json, ?::int[],"
                + " ?::text[], ?::text";
            List<Object> found = new ArrayList<>();
            try (PreparedStatement all = connection.prepareStatement(sql)) {
                for (int turn = 0; turn < 7; turn++) {
                    all.setInt(1, 7);
                    all.setLong(2, 1L << 62);
                    all.setBigDecimal(3, new BigDecimal("12345.678901"));
                    all.setBoolean(4, true);
                    all.setString(5, "Zoë ☃ 𝄞");
                    all.setObject(6, OffsetDateTime.parse("2024-02-29T12:30:15.123456Z"));
                    all.setObject(7, LocalDate.parse("2024-02-29"));
                    all.setObject(8, new UUID(0, 5));
                    all.setBytes(9, new byte[] {0, -1, 10});
                    all.setString(10, "{\"a\": [1]}");
                    all.setArray(11, connection.createArrayOf("int4", new Integer[] {1, 2, null}));
                    all.setArray(12, connection.createArrayOf("text", new String[] {"a", "q\"uote", null}));
                    all.setNull(13, Types.VARCHAR);
                    found = rows(all.executeQuery());
                }
            }
            return found;
        });
        step("100,000 rows", () -> {
            long count = 0, sum = 0;
            try (Statement statement = connection.createStatement();
                    ResultSet result = statement.executeQuery("SELECT i, 'row ' || i FROM generate_series(1, 100000) i")) {
                while (result.next()) {
                    count++;
                    sum += result.getInt(1) + result.getString(2).length();
                }
            }
            return List.of(count, sum);
        });
        step("cursor", () -> {
            connection.setAutoCommit(false);
            long sum = 0;
            try (Statement statement = connection.createStatement()) {
                statement.setFetchSize(100);
                ResultSet result = statement.executeQuery("SELECT generate_series(1, 1000)");
                while (result.next()) sum += result.getInt(1);
            }
            connection.commit();
            connection.setAutoCommit(true);
            return sum;
        });
        CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
        step("copy out", () -> {
            ByteArrayOutputStream out = new ByteArrayOutputStream();
            long count = copy.copyOut("COPY (SELECT i, 'x' || i FROM generate_series(1, 1000) i) TO STDOUT", out);
            return List.of(count, out.size(), out.toString().substring(0, 20));
        });
        step("copy in", () -> {
            StringBuilder text = new StringBuilder();
            for (int n = 100; n < 1100; n++) text.append(n).append("\tcopied ").append(n).append("\n");
            List<Object> found = new ArrayList<>();
            found.add(copy.copyIn("COPY person FROM STDIN", new ByteArrayInputStream(text.toString().getBytes(StandardCharsets.UTF_8))));
            try {
                copy.copyIn("COPY person FROM STDIN", new ByteArrayInputStream("100\tagain\n".getBytes(StandardCharsets.UTF_8)));
            } catch (SQLException error) {
                found.add(fields(error));
            }
            found.add(query("SELECT count(*) FROM person"));
            return found;
        });
        step("notify", () -> {
            run("LISTEN news");
            try (Statement statement = other.createStatement()) {
                statement.execute("NOTIFY news, 'hello'");
            }
            PGNotification heard = connection.unwrap(PGConnection.class).getNotifications(10000)[0];
            run("UNLISTEN *");
            return List.of(heard.getName(), heard.getParameter(), heard.getPID() == other.unwrap(PGConnection.class).getBackendPID());
        });
        step("cancel", () -> {
            List<Object> found = new ArrayList<>();
            try (Statement statement = connection.createStatement()) {
                new Timer(true).schedule(new TimerTask() {
                    public void run() {
                        try {
                            statement.cancel();
                        } catch (SQLException error) {
                            throw new IllegalStateException(error);
                        }
                    }
                }, 300);
                statement.execute("SELECT pg_sleep(30)");
            } catch (SQLException error) {
                found.add(fields(error));
            }
            found.add(query("SELECT 1"));
            return found;
        });
        step("8 MB parameter", () -> {
            try (PreparedStatement length = connection.prepareStatement("SELECT length(?)")) {
                length.setString(1, "ä".repeat(4 * 1024 * 1024));
                return rows(length.executeQuery());
            }
        });
        step("pipeline", () -> {
            // A batch is sent as one pipeline.
            List<Object> found = new ArrayList<>();
            try (PreparedStatement insert = connection.prepareStatement("INSERT INTO person VALUES (?, ?)")) {
                for (int n = 0; n < 500; n++) {
                    insert.setInt(1, 5000 + n);
                    insert.setString(2, "batch " + n);
                    insert.addBatch();
                }
                found.add(Arrays.stream(insert.executeBatch()).sum());
                for (int n : new int[] {7000, 5000, 7001}) {
                    insert.setInt(1, n);
                    insert.setString(2, "again " + n);
                    insert.addBatch();
                }
                insert.executeBatch();
            } catch (BatchUpdateException error) {
                found.add(error.getSQLState());
            }
            found.add(query("SELECT count(*) FROM person"));
            return found;
        });
        say("disconnect", "ok", connection.unwrap(PGConnection.class).getBackendPID());
        run("SELECT pg_sleep(60)");
    }
}

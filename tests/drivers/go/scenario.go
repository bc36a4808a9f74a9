// Go database/sql over lib/pq: the steps of the driver matrix.
package main

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/lib/pq"
)

var db *sql.DB

func say(step, outcome string, value interface{}) {
	line, _ := json.Marshal(map[string]interface{}{"step": step, "outcome": outcome, "value": value})
	fmt.Println(string(line))
}

func step(name string, work func() (interface{}, error)) {
	value, err := work()
	if err != nil {
		say(name, "error", err.Error())
		if name == "connect" {
			os.Exit(1)
		}
		return
	}
	say(name, "ok", value)
}

func where() string {
	tls := "sslmode=disable"
	if ca := os.Getenv("DRIVER_CA"); ca != "" {
		tls = "sslmode=verify-full sslrootcert=" + ca
	}
	return fmt.Sprintf("host=%s port=%s user=%s password='%s' dbname=%s %s", os.Getenv("DRIVER_HOST"), os.Getenv("DRIVER_PORT"),
		os.Getenv("DRIVER_USER"), os.Getenv("DRIVER_PASSWORD"), os.Getenv("DRIVER_DATABASE"), tls)
}

func all(query string, values ...interface{}) ([][]interface{}, error) {
	rows, err := db.Query(query, values...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	columns, _ := rows.Columns()
	found := [][]interface{}{}
	for rows.Next() {
		row := make([]interface{}, len(columns))
		into := make([]interface{}, len(columns))
		for at := range row {
			into[at] = &row[at]
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		for at, value := range row {
			switch typed := value.(type) {
			case []byte:
				row[at] = hex.EncodeToString(typed)
			case time.Time:
				row[at] = typed.UTC().Format(time.RFC3339Nano)
			}
		}
		found = append(found, row)
	}
	return found, rows.Err()
}

func fields(err error) interface{} {
	var told *pq.Error
	if errors.As(err, &told) {
		return []string{told.Severity, string(told.Code), told.Message, told.Detail, told.Position, told.Table, told.Constraint, told.Routine}
	}
	return fmt.Sprint(err)
}

func main() {
	big := strings.Repeat("ä", 4*1024*1024)
	step("connect", func() (interface{}, error) {
		var err error
		if db, err = sql.Open("postgres", where()); err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(1)
		return all("SHOW server_version")
	})
	step("simple query", func() (interface{}, error) {
		_, err := db.Exec("DROP TABLE IF EXISTS person; CREATE TABLE person (id int PRIMARY KEY, name text CONSTRAINT person_name UNIQUE)")
		if err != nil {
			return nil, err
		}
		return all("SELECT 2 AS two, 'x'::text AS x")
	})
	step("parameters", func() (interface{}, error) {
		done, err := db.Exec("INSERT INTO person VALUES ($1, $2), ($3, $4)", 1, "Ada", 2, "Zoë")
		if err != nil {
			return nil, err
		}
		count, _ := done.RowsAffected()
		found, err := all("SELECT * FROM person WHERE id > $1", 1)
		return []interface{}{count, found}, err
	})
	step("prepared statement", func() (interface{}, error) {
		twice, err := db.Prepare("SELECT $1::int * 2")
		if err != nil {
			return nil, err
		}
		defer twice.Close()
		found := []int{}
		for n := 0; n < 10; n++ {
			var got int
			if err := twice.QueryRow(n).Scan(&got); err != nil {
				return nil, err
			}
			found = append(found, got)
		}
		return found, nil
	})
	step("transaction", func() (interface{}, error) {
		tx, err := db.Begin()
		if err != nil {
			return nil, err
		}
		tx.Exec("INSERT INTO person VALUES (3, 'Eve')")
		tx.Exec("SAVEPOINT before")
		_, failed := tx.Exec("INSERT INTO person VALUES ($1, $2)", 4, "Ada")
		tx.Exec("ROLLBACK TO SAVEPOINT before")
		tx.Exec("INSERT INTO person VALUES (5, 'Max')")
		if err := tx.Commit(); err != nil {
			return nil, err
		}
		found, err := all("SELECT id FROM person ORDER BY id")
		return []interface{}{fields(failed), found}, err
	})
	step("error fields", func() (interface{}, error) {
		found := []interface{}{}
		for _, text := range []string{"SELECT nothing FROM person", "INSERT INTO person VALUES (9, 'Ada')", "SELECT 1/0", "SELEC"} {
			_, err := db.Exec(text)
			found = append(found, fields(err))
		}
		return found, nil
	})
	step("types", func() (interface{}, error) {
		moment := time.Date(2024, 2, 29, 12, 30, 15, 123456000, time.UTC)
		return all("SELECT $1::int, $2::bigint, $3::numeric, $4::bool, $5::text, $6::timestamptz, $7::date, $8::uuid, $9::bytea, $10::json,"+
			" $11::int[], $12::text[], $13::text", 7, int64(1)<<62, "12345.678901", true, "Zoë ☃ 𝄞", moment, moment,
			"00000000-0000-0000-0000-000000000005", []byte{0, 255, 10}, `{"a": [1]}`, pq.Array([]int64{1, 2}), pq.Array([]string{"a", `q"uote`}), nil)
	})
	step("100,000 rows", func() (interface{}, error) {
		rows, err := db.Query("SELECT i, 'row ' || i FROM generate_series(1, 100000) i")
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		count, sum := 0, 0
		for rows.Next() {
			var number int
			var text string
			if err := rows.Scan(&number, &text); err != nil {
				return nil, err
			}
			count, sum = count+1, sum+number+len(text)
		}
		return []int{count, sum}, rows.Err()
	})
	step("cursor", func() (interface{}, error) {
		tx, err := db.Begin()
		if err != nil {
			return nil, err
		}
		defer tx.Commit()
		tx.Exec("DECLARE server_side CURSOR FOR SELECT generate_series(1, 1000)")
		found := []int{}
		for turn := 0; turn < 11; turn++ {
			rows, err := tx.Query("FETCH 100 FROM server_side")
			if err != nil {
				return nil, err
			}
			count := 0
			for rows.Next() {
				count++
			}
			found = append(found, count)
		}
		return found, nil
	})
	say("copy out", "absent", nil)
	step("copy in", func() (interface{}, error) {
		tx, err := db.Begin()
		if err != nil {
			return nil, err
		}
		copy, err := tx.Prepare(pq.CopyIn("person", "id", "name"))
		if err != nil {
			return nil, err
		}
		for n := 100; n < 1100; n++ {
			if _, err := copy.Exec(n, fmt.Sprintf("copied %d", n)); err != nil {
				return nil, err
			}
		}
		if _, err := copy.Exec(); err != nil {
			return nil, err
		}
		copy.Close()
		if err := tx.Commit(); err != nil {
			return nil, err
		}
		return all("SELECT count(*) FROM person")
	})
	step("notify", func() (interface{}, error) {
		listener := pq.NewListener(where(), time.Second, time.Minute, nil)
		defer listener.Close()
		if err := listener.Listen("news"); err != nil {
			return nil, err
		}
		if _, err := db.Exec("NOTIFY news, 'hello'"); err != nil {
			return nil, err
		}
		select {
		case heard := <-listener.Notify:
			return []string{heard.Channel, heard.Extra}, nil
		case <-time.After(10 * time.Second):
			return nil, errors.New("nothing was heard")
		}
	})
	step("cancel", func() (interface{}, error) {
		patience, stop := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer stop()
		_, failed := db.ExecContext(patience, "SELECT pg_sleep(30)")
		found, err := all("SELECT 1")
		return []interface{}{fields(failed), found}, err
	})
	step("8 MB parameter", func() (interface{}, error) { return all("SELECT length($1::text)", big) })
	say("pipeline", "absent", nil)
	var pid int
	db.QueryRow("SELECT pg_backend_pid()").Scan(&pid)
	say("disconnect", "ok", pid)
	db.Exec("SELECT pg_sleep(60)")
}

CREATE TABLE secret (id int PRIMARY KEY, what text, up int, UNIQUE (up));
CREATE TABLE open (id int PRIMARY KEY, body text);
INSERT INTO secret SELECT i, 's' || i, i FROM generate_series(1, 9) i;
INSERT INTO open SELECT i, 'o' FROM generate_series(1, 9) i;
CREATE FUNCTION takes(x int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN DELETE FROM secret WHERE secret.id = x; RETURN true; END $$;
-- row security: what its policies call and read
CREATE TABLE acl (who name, id int);
CREATE TABLE guarded (id int, body text);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON guarded USING (takes(id) AND EXISTS (SELECT 1 FROM acl WHERE acl.id = guarded.id));
-- a domain, a domain over it, and a composite type with it
CREATE DOMAIN checked AS int CHECK (takes(VALUE));
CREATE DOMAIN checked_twice AS checked;
CREATE TYPE pair AS (one checked_twice, two int);
CREATE TABLE with_domain (id checked_twice);
CREATE TABLE with_pair (it pair);
-- casts that nobody writes
CREATE TYPE coin AS (cents int);
CREATE TYPE note_coin AS (cents int);
CREATE FUNCTION as_note(c coin) RETURNS note_coin LANGUAGE plpgsql AS $$ BEGIN DELETE FROM secret; RETURN ROW(c.cents)::note_coin; END $$;
CREATE CAST (coin AS note_coin) WITH FUNCTION as_note(coin) AS IMPLICIT;
CREATE TABLE purse (c note_coin);
CREATE TABLE coins (c coin);
INSERT INTO coins VALUES (ROW(5)::coin);
-- comparisons of a type's own
CREATE FUNCTION compares(a coin, b coin) RETURNS int LANGUAGE plpgsql AS $$ BEGIN DELETE FROM secret; RETURN a.cents - b.cents; END $$;
CREATE FUNCTION less(a coin, b coin) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN a.cents < b.cents; END $$;
CREATE OPERATOR <<< (leftarg = coin, rightarg = coin, function = less);
CREATE OPERATOR CLASS coin_ops DEFAULT FOR TYPE coin USING btree AS OPERATOR 1 <<<, FUNCTION 1 compares(coin, coin);
-- an operator of a known name
CREATE FUNCTION at_least(a coin, b coin) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN DELETE FROM secret; RETURN true; END $$;
CREATE OPERATOR >= (leftarg = coin, rightarg = coin, function = at_least);
CREATE OPERATOR <= (leftarg = coin, rightarg = coin, function = less);
-- keys over three tables, and by a view's own name for a column
CREATE TABLE first (id int PRIMARY KEY, other text);
CREATE TABLE second (first_id int PRIMARY KEY REFERENCES first ON UPDATE CASCADE ON DELETE SET NULL);
CREATE TABLE third (second_id int REFERENCES second ON UPDATE CASCADE);
INSERT INTO first VALUES (1, 'x'); INSERT INTO second VALUES (1); INSERT INTO third VALUES (1);
CREATE VIEW renamed AS SELECT id AS number, other FROM first;
-- a trigger that changes the key which the statement does not
CREATE TABLE stamped (id int PRIMARY KEY, body text, changed timestamptz);
CREATE TABLE after_stamped (id int REFERENCES stamped ON UPDATE CASCADE);
CREATE FUNCTION stamps() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.changed := now(); RETURN NEW; END $$;
CREATE TRIGGER stamps BEFORE UPDATE ON stamped FOR EACH ROW EXECUTE FUNCTION stamps();
CREATE TABLE moved (id int PRIMARY KEY, body text);
CREATE TABLE after_moved (id int REFERENCES moved ON UPDATE CASCADE);
CREATE FUNCTION moves() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.id := NEW.id + 1; RETURN NEW; END $$;
CREATE TRIGGER moves BEFORE UPDATE ON moved FOR EACH ROW EXECUTE FUNCTION moves();
INSERT INTO moved VALUES (1, 'x'); INSERT INTO after_moved VALUES (1);
-- UPDATE OF
CREATE TABLE watched (id int, body text, plain text);
CREATE FUNCTION watches() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM secret; RETURN NEW; END $$;
CREATE TRIGGER watches AFTER UPDATE OF body ON watched FOR EACH ROW EXECUTE FUNCTION watches();
INSERT INTO watched VALUES (1, 'x', 'y');
-- an index by an operator class of its own, and one by an expression
CREATE FUNCTION orders_ints(a int, b int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN DELETE FROM secret; RETURN a - b; END $$;
CREATE OPERATOR CLASS odd_ints FOR TYPE int USING btree AS
  OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 orders_ints(int, int);
CREATE TABLE by_class (id int);
CREATE INDEX by_class_id ON by_class (id odd_ints);
CREATE FUNCTION indexed(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN DELETE FROM secret; RETURN n; END $$;
CREATE TABLE by_expression (id int);
CREATE INDEX by_expression_id ON by_expression (indexed(id));
CREATE TABLE computed (id int, twice int GENERATED ALWAYS AS (indexed(id)) STORED);
CREATE TABLE told (id int, salary int, hint text GENERATED ALWAYS AS (salary::text) STORED);
-- dependents of a drop
CREATE VIEW on_open AS SELECT id FROM open;
CREATE VIEW on_view AS SELECT id FROM on_open;
CREATE TABLE refers (id int REFERENCES open);
CREATE SCHEMA side;
CREATE TABLE side.base (id int PRIMARY KEY);
CREATE VIEW on_side AS SELECT id FROM side.base;
CREATE TYPE mood AS ENUM ('a', 'b');
CREATE TABLE moody (m mood);
CREATE FUNCTION reads_secret() RETURNS int LANGUAGE sql AS 'SELECT up FROM secret WHERE id = 1';
CREATE FUNCTION reads_two(int, int) RETURNS int LANGUAGE sql AS 'SELECT up FROM secret WHERE id = $1';
CREATE OPERATOR ?? (leftarg = int, rightarg = int, function = reads_two);
CREATE FUNCTION row_of() RETURNS open LANGUAGE plpgsql AS $$ DECLARE r open; BEGIN DELETE FROM secret; RETURN r; END $$;
CREATE FUNCTION by_row() RETURNS int LANGUAGE plpgsql AS $$ DECLARE n int; r open := row_of(); BEGIN RETURN 1; END $$;
CREATE FUNCTION by_variable() RETURNS int LANGUAGE plpgsql AS $$ DECLARE n checked; BEGIN n := 1; RETURN 1; END $$;
CREATE FUNCTION by_argument(n checked) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$;

-- The demo's shop: people, their orders, and the staff. Loaded as the owner into an empty database.
-- The number of customers is the setting shop.customers (demo/shop.py sets it); everything else follows from it.
-- All names, numbers and addresses are made up; nothing here is random, so two loads are equal.

CREATE TABLE customers (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    email      text NOT NULL,
    card       text NOT NULL,
    ssn        text NOT NULL,
    phone      text NOT NULL,
    birth_date date NOT NULL,
    notes      jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT '2026-01-01 00:00:00+00'
);

CREATE TABLE orders (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL,
    placed_at   timestamptz NOT NULL,
    amount      numeric(10, 2) NOT NULL,
    status      text NOT NULL
);

CREATE TABLE employees (
    id     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name   text NOT NULL,
    email  text NOT NULL,
    title  text NOT NULL,
    salary numeric(10, 2) NOT NULL
);

INSERT INTO customers (name, email, card, ssn, phone, birth_date, notes)
SELECT first || ' ' || last,
       lower(first || '.' || last) || n || '@' || domain,
       '4' || lpad(((n * 7919::bigint) % 1000000000000000)::text, 15, '0'),
       lpad((100 + n % 800)::text, 3, '0') || '-' || lpad((n % 99 + 1)::text, 2, '0') || '-' || lpad((n * 31 % 10000)::text, 4, '0'),
       '+1-555-' || lpad((n % 1000)::text, 3, '0') || '-' || lpad((n * 17 % 10000)::text, 4, '0'),
       DATE '1940-01-01' + (n * 37 % 22000),
       jsonb_build_object('tier', (ARRAY['basic', 'plus', 'gold'])[1 + n % 3], 'mother_maiden_name', last, 'complaints', n % 4)
FROM (
    SELECT n,
           (ARRAY['Ada', 'Grace', 'Alan', 'Edsger', 'Barbara', 'Donald', 'Frances', 'Tony', 'Radia', 'Ken', 'Karen', 'Niklaus'])[1 + n % 12] AS first,
           (ARRAY['Moore', 'Keller', 'Okafor', 'Tanaka', 'Silva', 'Novak', 'Haddad', 'Lindqvist', 'Costa', 'Meyer', 'Walsh'])[1 + n / 12 % 11] AS last,
           (ARRAY['example.com', 'example.org', 'example.net'])[1 + n % 3] AS domain
    FROM generate_series(1, current_setting('shop.customers')::integer) AS n
) AS people
ORDER BY n;

INSERT INTO orders (customer_id, placed_at, amount, status)
SELECT 1 + (n * 13) % current_setting('shop.customers')::bigint,
       TIMESTAMPTZ '2026-01-01 00:00:00+00' + n * INTERVAL '61 seconds',
       5 + (n * 97 % 50000) / 100.0,
       (ARRAY['paid', 'shipped', 'returned', 'open'])[1 + n % 4]
FROM generate_series(1, current_setting('shop.customers')::integer * 2) AS n
ORDER BY n;

INSERT INTO employees (name, email, title, salary)
SELECT 'Employee ' || n, 'employee' || n || '@shop.example', (ARRAY['clerk', 'buyer', 'manager'])[1 + n % 3], 30000 + n * 417 % 90000
FROM generate_series(1, 200) AS n
ORDER BY n;

CREATE INDEX orders_customer ON orders (customer_id);
ANALYZE;

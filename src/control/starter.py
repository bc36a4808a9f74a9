"""The commented files that `pgleash init` writes.

Never add here: defaults (control.config has them) or a setting that the configuration does not know.
"""

__all__ = ["starter", "starter_policy"]


def starter() -> str:
    """The commented configuration that ``pgleash init`` writes."""
    return _STARTER


def starter_policy() -> str:
    """The commented policy that ``pgleash init`` writes beside it."""
    return _STARTER_POLICY


_STARTER = """\
# pgleash configuration. Relative paths are relative to this file. An unknown key is an error.
# Secrets are never written here: env:NAME reads an environment variable, file:PATH a file.

listen:                         # where agents connect, with any PostgreSQL driver
  host: 127.0.0.1
  port: 6432
  tls:
    certificate: tls/server.crt # PEM, the chain that agents check (sslmode=verify-full)
    key: tls/server.key
  # plaintext_on_loopback: true # for a test on this machine only: also accept connections without TLS
  # unix_socket: {directory: /run/pgleash, mode: "0770"}  # a Unix socket too, for users with a password
  # proxy_protocol: {trusted: [10.1.0.0/16]}  # load balancers that tell the client's address
  # threads: 1                  # that move the sessions' bytes
  # max_connections: 1000
  # login_timeout: 30           # seconds from connecting to being logged in
  # max_statement_bytes: 16777216

api:                            # where people and bots approve, grant and read (gRPC)
  host: 127.0.0.1
  port: 6433
  tls:
    certificate: tls/server.crt
    key: tls/server.key
  roles:                        # which groups of the token hold which role
    approver: {groups: [dba]}   # decide held statements
    operator: {groups: [platform]} # create and revoke grants, terminate sessions
    auditor: {groups: [security]}  # read the audit log, replay sessions
  # reflection: true

identity:
  issuers:                      # whose tokens are believed; an agent's token is its password
    - issuer: https://idp.example.com
      audience: pgleash
      # jwks_uri: https://idp.example.com/keys  # found by discovery at the issuer when left out
      # algorithms: [RS256, ES256, EdDSA]
      # subject_claim: sub      # who the agent is
      # acts_for_claim: act.sub # the human it acts for
      # groups_claim: groups
      # max_lifetime: 3600      # seconds; a longer-lived token is refused
      # leeway: 30              # seconds of clock difference
  # scram_users:                # who has a password instead; `pgleash token scram` makes the verifier
  #   - {user: reporting, verifier: file:keys/reporting.scram, groups: [analysts], databases: [shop]}

databases:
  shop:                         # the database name that agents connect to
    server:
      host: 127.0.0.1
      port: 5432
      # dbname: shop            # its name on the server, if another
      tls:
        mode: verify-full       # disable, require, verify-ca or verify-full
        # ca: tls/postgres-ca.crt  # the system's authorities when left out
        # negotiation: direct   # TLS from the first byte: PostgreSQL 17 or newer
        # certificate: tls/client.crt  # for servers that want to see one
        # key: tls/client.key
    credentials:
      kind: minted              # a role is made for each grant and dropped when it ends
      user: pgleash_service     # needs CREATEROLE and the rights that it is to hand on
      password: env:PGLEASH_SERVICE_PASSWORD
    # credentials:              # or logins from Vault's database secrets engine
    #   kind: vault
    #   address: https://vault.example.com:8200
    #   mount: database
    #   role: shop-agent
    #   token: env:VAULT_TOKEN  # or approle: {role_id: file:..., secret_id: file:...}
    #   catalog_user: pgleash_catalog
    #   catalog_password: env:PGLEASH_CATALOG_PASSWORD
    # credentials:              # or one fixed login
    #   kind: static
    #   user: app
    #   password: env:PGLEASH_APP_PASSWORD

policy:
  file: policy.yaml
  # mask_key: file:keys/mask.key # pseudonyms depend on it; made at the first start

store:                          # grants, approvals and sessions
  path: var/pgleash.db

audit:                          # the journal: every statement is in it before it is sent
  directory: var/audit
  checkpoint_interval: 1.0      # seconds between signed checkpoints
  signing_key: file:keys/audit.key # Ed25519 private key, PEM

recording:                      # what clients saw, for replay
  directory: var/recordings
  statement_bytes: 262144       # most that is kept of one statement's result
"""

_STARTER_POLICY = """\
# pgleash policy. Deny overrides hold, hold overrides allow, and what no rule allows is denied. Catalogs can be read without a rule.
# pgleash policy check FILE reads it, pgleash policy explain and pgleash policy test say what it would answer.
version: 1

labels:                         # schema.table.column patterns; what is protected
  pii.email: ["*.*.email", "*.*.email_address"]
  pii.phone: ["*.*.phone", "*.*.phone_number"]
  pii.national_id: ["*.*.ssn", "*.*.national_id"]
  pci.card: ["*.*.card", "*.*.card_number"]

rules:
  - name: agents-read           # agents may read the application's tables
    who: {groups: [agents]}
    database: shop
    tables: ["public.*"]
    verbs: [select]
    effect: allow
    obligations: {statement_timeout: 60}  # seconds

  - name: agents-write          # and change rows in them, not too many at a time
    who: {groups: [agents]}
    database: shop
    tables: ["public.*"]
    verbs: [insert, update, delete]
    effect: allow
    obligations: {max_affected: 1000, statement_timeout: 60, lock_timeout: 10}

  - name: hold-wide-changes     # but an UPDATE or DELETE of every row waits for a person
    who: {groups: [agents]}
    when: {kinds: [update, delete], without_where: true}
    effect: hold
    approvers: [dba]
    timeout: 300                # seconds
    transaction_timeout: 60     # and inside an open transaction, whose locks others wait for
    hint: Add a WHERE that names the rows, and it runs without asking.

  - name: hold-schema-changes   # and so does DDL
    who: {groups: [agents]}
    database: shop
    tables: ["public.*"]
    verbs: [ddl, truncate]
    effect: hold
    approvers: [dba]
    timeout: 300

  # - name: office-hours        # rules can also look at times, labels of columns, claims, effects and bound values
  #   who: {groups: [agents], claims: {environment: production}}
  #   when: {effects: [writes], times: {days: [sat-sun]}}
  #   effect: hold
  #   approvers: [dba]
  #   mode: observe             # judged and recorded, not enforced: leave it out when the audit log shows what you want

masks:                          # what agents see of protected columns
  - {who: {groups: [agents]}, label: pii.email, action: email}
  - {who: {groups: [agents]}, label: pii.phone, action: keep_last, argument: 2}
  - {who: {groups: [agents]}, label: pii.national_id, action: keep_last, argument: 2}
  - {who: {groups: [agents]}, label: pci.card, action: keep_last, argument: 4}

grants:                         # given at connect, without anybody asked; leave empty to give each one by hand
  - {who: {groups: [agents]}, database: shop, tables: ["public.*"], verbs: [select, insert, update, delete, truncate, ddl], duration: 900}
"""

"""Server logins that the agent never sees: minted roles, Vault's database engine, and one fixed login."""

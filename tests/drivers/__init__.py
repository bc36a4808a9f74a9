"""Every driver against PostgreSQL and against the gateway: the same outcome."""

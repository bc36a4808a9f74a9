"""The data plane: speaks PostgreSQL, knows no policy, no Vault, no gRPC."""

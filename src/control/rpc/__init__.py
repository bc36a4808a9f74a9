"""The gRPC API: who may call what, and the services over grants, approvals, sessions, audit and policy."""

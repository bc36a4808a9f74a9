class TlsError(Exception): ...

CIPHERS: str

class TlsContext:
    server_side: bool
    verifies: bool
    checks_name: bool
    @staticmethod
    def server(certificate: str, key: str) -> TlsContext: ...
    @staticmethod
    def client(mode: str, ca_file: str | None = None) -> TlsContext: ...

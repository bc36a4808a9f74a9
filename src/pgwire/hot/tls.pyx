# cython: language_level=3
"""TLS sessions on socket descriptors, by the system's OpenSSL 3.

``TlsContext`` holds certificates and policy; the cdef functions read and write for :mod:`pgwire.hot.leg`.
Protocol floor is TLS 1.2 with forward-secret AEAD suites; renegotiation and session tickets are off.
Never add: certificate policy that could be said in Python, or anything that waits.
"""

cdef extern from "openssl.h":
    ctypedef struct OpenSSL:
        void* (*TLS_server_method)() noexcept nogil
        void* (*TLS_client_method)() noexcept nogil
        void* (*SSL_CTX_new)(const void*) noexcept nogil
        void (*SSL_CTX_free)(void*) noexcept nogil
        long (*SSL_CTX_ctrl)(void*, int, long, void*) noexcept nogil
        unsigned long (*SSL_CTX_set_options)(void*, unsigned long) noexcept nogil
        int (*SSL_CTX_use_certificate_chain_file)(void*, const char*) noexcept nogil
        int (*SSL_CTX_use_PrivateKey_file)(void*, const char*, int) noexcept nogil
        int (*SSL_CTX_check_private_key)(const void*) noexcept nogil
        int (*SSL_CTX_load_verify_locations)(void*, const char*, const char*) noexcept nogil
        int (*SSL_CTX_set_default_verify_paths)(void*) noexcept nogil
        void (*SSL_CTX_set_verify)(void*, int, void*) noexcept nogil
        int (*SSL_CTX_set_cipher_list)(void*, const char*) noexcept nogil
        int (*SSL_CTX_set_num_tickets)(void*, size_t) noexcept nogil
        void (*SSL_CTX_set_default_read_buffer_len)(void*, size_t) noexcept nogil
        void (*SSL_CTX_set_alpn_select_cb)(void*, void*, void*) noexcept nogil
        int (*SSL_CTX_set_alpn_protos)(void*, const unsigned char*, unsigned int) noexcept nogil
        void* (*SSL_CTX_get0_certificate)(const void*) noexcept nogil
        void* (*SSL_new)(void*) noexcept nogil
        void (*SSL_free)(void*) noexcept nogil
        int (*SSL_set_fd)(void*, int) noexcept nogil
        void (*SSL_set_accept_state)(void*) noexcept nogil
        void (*SSL_set_connect_state)(void*) noexcept nogil
        int (*SSL_do_handshake)(void*) noexcept nogil
        int (*SSL_read)(void*, void*, int) noexcept nogil
        int (*SSL_write)(void*, const void*, int) noexcept nogil
        int (*SSL_get_error)(const void*, int) noexcept nogil
        int (*SSL_has_pending)(const void*) noexcept nogil
        int (*SSL_shutdown)(void*) noexcept nogil
        long (*SSL_ctrl)(void*, int, long, void*) noexcept nogil
        void* (*SSL_get0_param)(void*) noexcept nogil
        int (*SSL_set1_host)(void*, const char*) noexcept nogil
        void* (*SSL_get1_peer_certificate)(const void*) noexcept nogil
        const char* (*SSL_get_version)(const void*) noexcept nogil
        long (*SSL_get_verify_result)(const void*) noexcept nogil
        void (*SSL_get0_alpn_selected)(const void*, const unsigned char**, unsigned int*) noexcept nogil
        int (*X509_VERIFY_PARAM_set1_ip_asc)(void*, const char*) noexcept nogil
        const char* (*X509_verify_cert_error_string)(long) noexcept nogil
        int (*i2d_X509)(const void*, unsigned char**) noexcept nogil
        void (*X509_free)(void*) noexcept nogil
        void (*CRYPTO_free)(void*, const char*, int) noexcept nogil
        unsigned long (*ERR_get_error)() noexcept nogil
        void (*ERR_error_string_n)(unsigned long, char*, size_t) noexcept nogil
        void (*ERR_clear_error)() noexcept nogil
    OpenSSL openssl_table
    char* openssl_problem
    int openssl_load()
    int openssl_alpn(void*, const unsigned char**, unsigned char*, const unsigned char*, unsigned int, void*) noexcept nogil

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_recv "recv"(int fd, void* buf, size_t n, int flags)
    int MSG_PEEK, MSG_DONTWAIT

from libc.errno cimport EAGAIN, EINTR, errno

# Constants of openssl/ssl.h, which are part of its ABI.
cdef enum:
    CTRL_MODE = 33
    CTRL_SET_READ_AHEAD = 41
    CTRL_SET_SESS_CACHE_MODE = 44
    CTRL_SET_TLSEXT_HOSTNAME = 55
    CTRL_SET_MIN_PROTO_VERSION = 123
    TLS1_2 = 771
    READ_BUFFER = 67584   # four records and a bit: OpenSSL moves what is left of it before each one
    MODE_PARTIAL_MOVING_RELEASE = 19
    OP_NO_COMPRESSION = 131072
    OP_NO_RENEGOTIATION = 1073741824
    OP_CIPHER_SERVER_PREFERENCE = 4194304
    FILETYPE_PEM = 1
    VERIFY_PEER = 1
    ERROR_WANT_READ = 2
    ERROR_WANT_WRITE = 3
    ERROR_ZERO_RETURN = 6

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # TLS 1.2; TLS 1.3 keeps its own three suites

cdef bint _loaded = openssl_load() == 0


class TlsError(Exception):
    """A certificate, key or handshake was refused; the text says which, without secrets."""


cdef str _error():
    cdef char text[256]
    cdef unsigned long code = openssl_table.ERR_get_error()
    if code == 0:
        return "the other side closed the connection"
    openssl_table.ERR_error_string_n(code, text, 256)
    openssl_table.ERR_clear_error()
    return (<bytes>text).decode("ascii", "replace").rpartition(":")[2]


cdef class TlsContext:
    """Certificates and policy for one side.

    ``TlsContext.server(certificate, key)`` for a listener; ``TlsContext.client(mode, ca_file)`` for a server leg with
    mode ``require``, ``verify-ca`` or ``verify-full``; it offers the ALPN protocol ``postgresql`` and shows ``certificate`` to
    a server that asks for one. Raises :class:`TlsError`.
    """

    def __cinit__(self):
        self.ctx = NULL
        if not _loaded:
            raise TlsError((<bytes>openssl_problem).decode("utf-8", "replace"))

    def __dealloc__(self):
        if self.ctx != NULL:
            openssl_table.SSL_CTX_free(self.ctx)

    cdef _prepare(self, bint server_side):
        self.server_side = server_side
        self.ctx = openssl_table.SSL_CTX_new(openssl_table.TLS_server_method() if server_side else openssl_table.TLS_client_method())
        if self.ctx == NULL:
            raise TlsError(_error())
        openssl_table.SSL_CTX_ctrl(self.ctx, CTRL_SET_MIN_PROTO_VERSION, TLS1_2, NULL)
        openssl_table.SSL_CTX_ctrl(self.ctx, CTRL_MODE, MODE_PARTIAL_MOVING_RELEASE, NULL)
        openssl_table.SSL_CTX_ctrl(self.ctx, CTRL_SET_READ_AHEAD, 1, NULL)
        openssl_table.SSL_CTX_ctrl(self.ctx, CTRL_SET_SESS_CACHE_MODE, 0, NULL)     # nothing is resumed
        openssl_table.SSL_CTX_set_options(self.ctx, OP_NO_COMPRESSION | OP_NO_RENEGOTIATION | OP_CIPHER_SERVER_PREFERENCE)
        cdef bytes ciphers = CIPHERS.encode("ascii")
        openssl_table.SSL_CTX_set_cipher_list(self.ctx, ciphers)
        openssl_table.SSL_CTX_set_num_tickets(self.ctx, 0)
        # Several records by one system call; the buffer is there only while it holds something.
        openssl_table.SSL_CTX_set_default_read_buffer_len(self.ctx, READ_BUFFER)

    cdef _show(self, str certificate, str key):
        if openssl_table.SSL_CTX_use_certificate_chain_file(self.ctx, certificate.encode()) != 1:
            raise TlsError(f"the certificate {certificate} can't be used: {_error()}")
        if openssl_table.SSL_CTX_use_PrivateKey_file(self.ctx, key.encode(), FILETYPE_PEM) != 1:
            raise TlsError(f"the private key {key} can't be used: {_error()}")
        if openssl_table.SSL_CTX_check_private_key(self.ctx) != 1:
            raise TlsError(f"the private key {key} does not belong to the certificate {certificate}")

    @property
    def certificate(self):
        """Our own certificate in DER, or None."""
        return _der(openssl_table.SSL_CTX_get0_certificate(self.ctx))

    @staticmethod
    def server(str certificate, str key):
        """A listener's context from a PEM chain and its PEM private key."""
        cdef TlsContext self = TlsContext.__new__(TlsContext)
        self._prepare(True)
        self._show(certificate, key)
        openssl_table.SSL_CTX_set_alpn_select_cb(self.ctx, <void*>openssl_alpn, NULL)
        return self

    def renew(self, str certificate, str key):
        """Show another certificate from now on, a listener's; connections that are there keep theirs. Raises TlsError, changing nothing."""
        cdef TlsContext other = TlsContext.server(certificate, key)
        self.ctx, other.ctx = other.ctx, self.ctx

    @staticmethod
    def client(str mode, ca_file=None, certificate=None, key=None):
        """A server leg's context. Without ``ca_file`` the system's trust store is used."""
        cdef TlsContext self = TlsContext.__new__(TlsContext)
        if mode not in ("require", "verify-ca", "verify-full"):
            raise TlsError(f"unknown TLS mode {mode!r}")
        self._prepare(False)
        self.verifies = mode != "require"
        self.checks_name = mode == "verify-full"
        if self.verifies:
            if ca_file is not None:
                if openssl_table.SSL_CTX_load_verify_locations(self.ctx, str(ca_file).encode(), NULL) != 1:
                    raise TlsError(f"the CA file {ca_file} can't be used: {_error()}")
            elif openssl_table.SSL_CTX_set_default_verify_paths(self.ctx) != 1:
                raise TlsError(f"the system's trust store can't be used: {_error()}")
            openssl_table.SSL_CTX_set_verify(self.ctx, VERIFY_PEER, NULL)
        if certificate is not None:
            self._show(str(certificate), str(key))
        cdef bytes protocols = b"\x0apostgresql"
        openssl_table.SSL_CTX_set_alpn_protos(self.ctx, <const unsigned char*><const char*>protocols, len(protocols))
        return self


def first_byte(int fd):
    """The first byte that waits in a socket, left where it is; -1 at the end, None when there is none now. Raises ConnectionError."""
    cdef unsigned char byte = 0
    cdef ssize_t n = c_recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT)
    if n > 0:
        return byte
    if n == 0:
        return -1
    if errno == EAGAIN or errno == EINTR:
        return None
    raise ConnectionError("the connection is lost")


cdef void* tls_new(void* ctx, int fd, bint server_side) noexcept nogil:
    cdef void* ssl = openssl_table.SSL_new(ctx)
    if ssl == NULL:
        return NULL
    openssl_table.SSL_set_fd(ssl, fd)
    if server_side:
        openssl_table.SSL_set_accept_state(ssl)
    else:
        openssl_table.SSL_set_connect_state(ssl)
    return ssl


cdef void tls_free(void* ssl) noexcept nogil:
    openssl_table.SSL_free(ssl)


cdef int tls_handshake(void* ssl) noexcept nogil:
    openssl_table.ERR_clear_error()
    cdef int r = openssl_table.SSL_do_handshake(ssl)
    if r == 1:
        return TLS_DONE
    r = openssl_table.SSL_get_error(ssl, r)
    if r == ERROR_WANT_READ:
        return TLS_WANT_READ
    if r == ERROR_WANT_WRITE:
        return TLS_WANT_WRITE
    return TLS_FAILED


cdef ssize_t tls_read(void* ssl, void* buf, size_t n) noexcept nogil:
    # > 0 bytes; 0 the end; -1 nothing now; -2 broken
    cdef int r, e
    openssl_table.ERR_clear_error()
    r = openssl_table.SSL_read(ssl, buf, <int>n if n < 0x40000000 else 0x40000000)
    if r > 0:
        return r
    e = openssl_table.SSL_get_error(ssl, r)
    if e == ERROR_WANT_READ or e == ERROR_WANT_WRITE:
        return -1
    return 0 if e == ERROR_ZERO_RETURN else -2


cdef ssize_t tls_write(void* ssl, const void* buf, size_t n) noexcept nogil:
    # >= 0 bytes written; -1 nothing now; -2 broken
    cdef int r, e
    openssl_table.ERR_clear_error()
    r = openssl_table.SSL_write(ssl, buf, <int>n if n < 0x40000000 else 0x40000000)
    if r > 0:
        return r
    e = openssl_table.SSL_get_error(ssl, r)
    return -1 if e == ERROR_WANT_READ or e == ERROR_WANT_WRITE else -2


cdef bint tls_has_pending(void* ssl) noexcept nogil:
    return openssl_table.SSL_has_pending(ssl) != 0


cdef void tls_shutdown(void* ssl) noexcept nogil:
    openssl_table.ERR_clear_error()
    openssl_table.SSL_shutdown(ssl)
    openssl_table.ERR_clear_error()


cdef int tls_name(void* ssl, const char* host, bint check) noexcept nogil:
    cdef void* parameters = openssl_table.SSL_get0_param(ssl)
    if openssl_table.X509_VERIFY_PARAM_set1_ip_asc(parameters, host) == 1:
        return 0                                    # an address: no server name indication (RFC 6066, section 3)
    openssl_table.ERR_clear_error()
    openssl_table.SSL_ctrl(ssl, CTRL_SET_TLSEXT_HOSTNAME, 0, <void*>host)
    if check and openssl_table.SSL_set1_host(ssl, host) != 1:
        return -1
    return 0


cdef bytes tls_peer_certificate(void* ssl):
    cdef void* certificate = openssl_table.SSL_get1_peer_certificate(ssl)
    cdef bytes result = _der(certificate)
    openssl_table.X509_free(certificate)
    return result


cdef bytes _der(void* certificate):
    cdef unsigned char* der = NULL
    if certificate == NULL:
        return None
    cdef int n = openssl_table.i2d_X509(certificate, &der)
    if n <= 0:
        return None
    cdef bytes result = (<char*>der)[:n]
    openssl_table.CRYPTO_free(der, NULL, 0)
    return result


cdef str tls_alpn(void* ssl):
    cdef const unsigned char* name = NULL
    cdef unsigned int n = 0
    openssl_table.SSL_get0_alpn_selected(ssl, &name, &n)
    return (<const char*>name)[:n].decode("ascii", "replace") if n else ""


cdef str tls_version(void* ssl):
    return (<bytes>openssl_table.SSL_get_version(ssl)).decode("ascii")


cdef str tls_problem(void* ssl):
    cdef long verified = openssl_table.SSL_get_verify_result(ssl)
    if verified != 0:
        openssl_table.ERR_clear_error()
        return (<bytes>openssl_table.X509_verify_cert_error_string(verified)).decode("ascii", "replace")
    return _error()

# TLS on a socket descriptor through the system's OpenSSL: one context per listener or server, one session per leg.
cdef enum:
    TLS_DONE = 0
    TLS_WANT_READ = 1
    TLS_WANT_WRITE = 2
    TLS_FAILED = -1

cdef class TlsContext:
    cdef void* ctx
    cdef readonly bint server_side
    cdef readonly bint verifies
    cdef readonly bint checks_name
    cdef _prepare(self, bint server_side)
    cdef _show(self, str certificate, str key)

cdef void* tls_new(void* ctx, int fd, bint server_side) noexcept nogil
cdef void tls_free(void* ssl) noexcept nogil
cdef int tls_handshake(void* ssl) noexcept nogil
cdef ssize_t tls_read(void* ssl, void* buf, size_t n) noexcept nogil
cdef ssize_t tls_write(void* ssl, const void* buf, size_t n) noexcept nogil
cdef bint tls_has_pending(void* ssl) noexcept nogil
cdef void tls_shutdown(void* ssl) noexcept nogil
cdef int tls_name(void* ssl, const char* host, bint check) noexcept nogil
cdef bytes tls_peer_certificate(void* ssl)
cdef str tls_alpn(void* ssl)
cdef str tls_version(void* ssl)
cdef str tls_problem(void* ssl)

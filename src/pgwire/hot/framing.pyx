"""Framing: kind byte, length, body (PostgreSQL protocol, "Message Formats").

A length is judged as soon as its five bytes are there, and never more laxly than PostgreSQL does: a kind that may not
come, or a length that this kind can't have, is refused before a byte of the body is waited for.

Never add: meaning. What a message does belongs in :mod:`pgwire.hot.relay`.
"""

from libc.string cimport memchr, memset

from pgwire.hot.wire cimport load16, load32

cdef enum:
    SMALL = 10000                 # PostgreSQL's PQ_SMALL_MESSAGE_LIMIT
    LARGE = 0x3FFFFFFE            # PostgreSQL's PQ_LARGE_MESSAGE_LIMIT

cdef uint32_t _client_max[256]
cdef uint32_t _server_max[256]
memset(_client_max, 0, sizeof(_client_max))
memset(_server_max, 0, sizeof(_server_max))
cdef uint8_t _k
for _k in b"QPBFd":
    _client_max[_k] = LARGE
for _k in b"EDCHSXcf":
    _client_max[_k] = SMALL
for _k in b"DdTVtENAS":
    _server_max[_k] = LARGE
for _k in b"123CIZnscGHW":
    _server_max[_k] = 65536


cdef int _frame(const uint32_t* limits, const uint8_t* p, size_t n, Message* m) noexcept nogil:
    cdef uint32_t length
    m.total = 0
    if n == 0:
        return FRAME_PART
    m.kind = p[0]
    if limits[p[0]] == 0:
        return FRAME_BAD
    if n < 5:
        return FRAME_PART
    length = load32(p + 1)
    if length < 4 or length > limits[p[0]]:
        return FRAME_BAD
    m.body = p + 5
    m.n = length - 4
    m.total = <size_t>length + 1
    return FRAME_WHOLE if m.total <= n else FRAME_PART


cdef int client_frame(const uint8_t* p, size_t n, Message* m) noexcept nogil:
    return _frame(_client_max, p, n, m)


cdef int server_frame(const uint8_t* p, size_t n, Message* m) noexcept nogil:
    return _frame(_server_max, p, n, m)


cdef size_t row_run(const uint8_t* p, size_t n, uint64_t* rows) noexcept nogil:
    # Bytes of the whole DataRow messages at the start of p[0:n], each judged as server_frame does, and their number.
    cdef uint64_t count = 0
    cdef size_t off = 0, total
    cdef uint32_t length
    while n - off >= 5 and p[off] == c'D':
        length = load32(p + off + 1)
        if length < 4 or length > _server_max[c'D']:
            break
        total = <size_t>length + 1
        if total > n - off:
            break
        off += total
        count += 1
    rows[0] = count
    return off


cdef ssize_t name_length(const uint8_t* p, size_t n) noexcept nogil:
    # bytes before the terminating NUL, -1 if there is none in n bytes
    cdef const uint8_t* end
    if n == 0:
        return -1
    end = <const uint8_t*>memchr(p, 0, n)
    return end - p if end != NULL else -1


cdef bint _values_ok(const uint8_t* p, size_t n, size_t* used) noexcept nogil:
    # Int16 count, then each value: Int32 length (-1 for NULL) and that many bytes
    cdef size_t off = 2
    cdef uint32_t i, count, length
    if n < 2:
        return False
    count = load16(p)
    for i in range(count):
        if n - off < 4:
            return False
        length = load32(p + off)
        off += 4
        if length == 0xFFFFFFFFU:
            continue
        if length > n - off:
            return False
        off += length
    used[0] = off
    return True


cdef bint _codes_ok(const uint8_t* p, size_t n, size_t* used) noexcept nogil:
    # Int16 count, then that many format codes, each 0 or 1
    cdef uint32_t i, count
    if n < 2:
        return False
    count = load16(p)
    if <size_t>count * 2 > n - 2:
        return False
    for i in range(count):
        if load16(p + 2 + 2 * i) > 1:
            return False
    used[0] = 2 + <size_t>count * 2
    return True


cdef bint client_body_ok(const Message* m) noexcept nogil:
    # Exactly the shape that the kind must have: every count and length inside, nothing behind.
    cdef const uint8_t* p = m.body
    cdef size_t n = m.n
    cdef size_t used
    cdef ssize_t k
    cdef uint8_t kind = m.kind
    if kind == c'H' or kind == c'S' or kind == c'c':
        return n == 0
    if kind == c'd' or kind == c'X':
        return True
    if kind == c'Q' or kind == c'f':
        return n > 0 and name_length(p, n) == <ssize_t>n - 1
    if kind == c'D' or kind == c'C':
        return n >= 2 and (p[0] == c'S' or p[0] == c'P') and name_length(p + 1, n - 1) == <ssize_t>n - 2
    if kind == c'E':
        k = name_length(p, n)
        return k >= 0 and n - k == 5
    if kind == c'P':
        k = name_length(p, n)
        if k < 0:
            return False
        p += k + 1
        n -= k + 1
        k = name_length(p, n)
        if k < 0:
            return False
        p += k + 1
        n -= k + 1
        return n >= 2 and n - 2 == <size_t>load16(p) * 4
    if kind == c'B':
        k = name_length(p, n)
        if k < 0:
            return False
        p += k + 1
        n -= k + 1
        k = name_length(p, n)
        if k < 0:
            return False
        p += k + 1
        n -= k + 1
        if not _codes_ok(p, n, &used):
            return False
        p += used
        n -= used
        if not _values_ok(p, n, &used):
            return False
        p += used
        n -= used
        return _codes_ok(p, n, &used) and used == n
    if kind == c'F':
        if n < 4:
            return False
        p += 4
        n -= 4
        if not _codes_ok(p, n, &used):
            return False
        p += used
        n -= used
        if not _values_ok(p, n, &used):
            return False
        return n - used == 2
    return False


def frames(bytes data, bint client=True):
    """Split bytes into whole messages: a list of (kind, body) and the number of bytes used.

    Raises ValueError at the first message that can't be one. For tests and fuzzing.
    """
    cdef const uint8_t* p = <const uint8_t*><const char*>data
    cdef size_t n = len(data), off = 0
    cdef Message m
    cdef int r
    result = []
    while off < n:
        r = client_frame(p + off, n - off, &m) if client else server_frame(p + off, n - off, &m)
        if r == FRAME_BAD or (r == FRAME_WHOLE and client and not client_body_ok(&m)):
            raise ValueError(f"not a message at byte {off}")
        if r == FRAME_PART:
            break
        result.append((bytes([m.kind]), (<const char*>m.body)[:m.n]))
        off += m.total
    return result, off


def _bench(bytes data, int loops):
    """Seconds of CPU to walk ``data``, a server's whole messages, ``loops`` times as a session does: rows by runs."""
    import time
    cdef const uint8_t* p = <const uint8_t*><const char*>data
    cdef size_t n = len(data), off = 0
    cdef uint64_t rows
    cdef Message m
    cdef int i
    cdef double t = time.thread_time()
    with nogil:
        for i in range(loops):
            off = 0
            while off < n and server_frame(p + off, n - off, &m) == FRAME_WHOLE:
                off += row_run(p + off, n - off, &rows) if m.kind == c'D' else m.total
    t = time.thread_time() - t
    if off != n:
        raise ValueError("not whole messages")
    return t

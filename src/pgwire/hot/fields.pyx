"""What the fields of the server's messages say: an error's SQLSTATE, a COPY that failed for us, a parameter that must not change.

Never add: anything that sends, or that knows what is outstanding.
"""

from libc.string cimport memcmp, memcpy

from pgwire.hot.framing cimport name_length
from pgwire.hot.link cimport link_break

cdef const uint8_t* _lit(const char* s) noexcept nogil:
    return <const uint8_t*>s


cdef bint our_copy_fail(Message* m) noexcept nogil:
    cdef const uint8_t* p = m.body
    cdef size_t n = m.n
    cdef ssize_t length
    while n > 1 and p[0]:
        length = name_length(p + 1, n - 1)
        if length < 0:
            return False
        if p[0] == c'M':
            return length == 48 and memcmp(p + 1, _lit(b"COPY from stdin failed: pgleash: unexpected data"), 48) == 0
        p += length + 2
        n -= length + 2
    return False


cdef void state_of(const uint8_t* p, size_t n, char* state, bint* fatal) noexcept nogil:
    # fields C and V of an ErrorResponse
    cdef ssize_t length
    memcpy(state, b"XX000", 6)
    fatal[0] = False
    while n > 1 and p[0]:
        length = name_length(p + 1, n - 1)
        if length < 0:
            return
        if p[0] == c'C' and length == 5:
            memcpy(state, p + 1, 5)
        elif p[0] == c'V' and (p[1] == c'F' or (p[1] == c'P' and p[2] == c'A')):
            fatal[0] = True
        p += length + 2
        n -= length + 2


cdef inline bint _is(const uint8_t* value, size_t n, const char* what, size_t length) noexcept nogil:
    # with its terminating NUL
    return n == length and memcmp(value, what, length) == 0


cdef bint parameter_kept(LinkState* k, Message* m) noexcept nogil:
    # What the gateway's reading of statements rests on may not change under it.
    cdef ssize_t n = name_length(m.body, m.n)
    cdef const uint8_t* value
    if n < 0 or name_length(m.body + n + 1, m.n - n - 1) < 0:
        link_break(k, b"08P01", b"the server's reply does not fit what was asked")
        return False
    value = m.body + n + 1
    # PostgreSQL tells UNICODE back as it was written: another name of UTF8.
    if n == 15 and memcmp(m.body, _lit(b"client_encoding"), 15) == 0 and not _is(value, m.n - n - 1, b"UTF8", 5) \
            and not _is(value, m.n - n - 1, b"UNICODE", 8):
        link_break(k, b"0A000", b"client_encoding must stay UTF8 behind this gateway")
        return False
    if n == 27 and memcmp(m.body, _lit(b"standard_conforming_strings"), 27) == 0 and value[0] == c'o' and value[1] != c'n':
        link_break(k, b"0A000", b"standard_conforming_strings must stay on behind this gateway")
        return False
    return True

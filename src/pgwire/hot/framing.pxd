# Where a message begins and ends, and whether its body has the shape that its kind must have.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct Message:
    uint8_t kind
    const uint8_t* body
    size_t n              # bytes of the body
    size_t total          # bytes of the whole message: 1 + 4 + n

cdef enum:
    FRAME_WHOLE = 1
    FRAME_PART = 0        # more bytes are needed; m.total is set once the header is there
    FRAME_BAD = -1

cdef int client_frame(const uint8_t* p, size_t n, Message* m) noexcept nogil
cdef int server_frame(const uint8_t* p, size_t n, Message* m) noexcept nogil
cdef size_t row_run(const uint8_t* p, size_t n, uint64_t* rows) noexcept nogil
cdef bint client_body_ok(const Message* m) noexcept nogil
cdef ssize_t name_length(const uint8_t* p, size_t n) noexcept nogil

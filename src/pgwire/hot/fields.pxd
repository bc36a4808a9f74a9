# What the fields of the server's messages say.
from libc.stdint cimport uint8_t
from pgwire.hot.framing cimport Message
from pgwire.hot.link cimport LinkState

cdef bint our_copy_fail(Message* m) noexcept nogil
cdef void state_of(const uint8_t* p, size_t n, char* state, bint* fatal) noexcept nogil
cdef bint parameter_kept(LinkState* k, Message* m) noexcept nogil

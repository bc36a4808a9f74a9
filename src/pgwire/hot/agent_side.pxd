# What the agent's messages do.
from libc.stdint cimport uint8_t
from pgwire.hot.link cimport LinkState

cdef size_t agent_process(LinkState* k, const uint8_t* p, size_t n) noexcept nogil
cdef bint wait_over(LinkState* k) noexcept nogil
cdef int refuse_next(LinkState* k, const uint8_t* p, size_t n, const uint8_t* answer, size_t answer_len) noexcept nogil

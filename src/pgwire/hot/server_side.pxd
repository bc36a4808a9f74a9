# What the server's messages mean, by what is outstanding.
from libc.stdint cimport uint8_t
from pgwire.hot.link cimport LinkState

cdef size_t server_process(LinkState* k, const uint8_t* p, size_t n) noexcept nogil

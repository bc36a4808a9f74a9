# Statements whose rows are counted, and that fail when there are too many.
from libc.stdint cimport uint8_t, uint64_t
from pgwire.hot.framing cimport Message
from pgwire.hot.link cimport LinkState
from pgwire.hot.pipeline cimport Entry

cdef bint guard_begin(LinkState* k) noexcept nogil
cdef bint guard_rows(LinkState* k, Entry* e) noexcept nogil
cdef bint guard_complete(LinkState* k, Entry* e, Message* m, const uint8_t* raw) noexcept nogil
cdef bint guard_ready(LinkState* k, Entry* e, uint8_t status) noexcept nogil
cdef object guard_kept(LinkState* k)
cdef bint guard_time_up(LinkState* k, uint64_t receipt) except -1
cdef void guard_show(LinkState* k, Entry* e) noexcept nogil

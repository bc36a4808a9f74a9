# Statements whose rows are counted, and that fail when there are too many.
from libc.stdint cimport uint8_t
from pgwire.hot.framing cimport Message
from pgwire.hot.link cimport LinkState
from pgwire.hot.pipeline cimport Entry

cdef bint guard_begin(LinkState* k) noexcept nogil
cdef bint guard_rows(LinkState* k, Entry* e) noexcept nogil
cdef bint guard_complete(LinkState* k, Entry* e, Message* m, const uint8_t* raw) noexcept nogil
cdef bint guard_ready(LinkState* k, Entry* e, uint8_t status) noexcept nogil
cdef void guard_show(LinkState* k, Entry* e) noexcept nogil

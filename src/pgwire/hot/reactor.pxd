# The event set, its thread, and what a link does when one of its legs is ready.
from pgwire.hot.leg cimport LegState, ReactorState
from pgwire.hot.link cimport LinkState

cdef class Reactor:
    cdef ReactorState st
    cdef object journal
    cdef object recorder
    cdef bint running
    cdef deliver(self)

cdef void clock(ReactorState* r) noexcept nogil
cdef void pump(LinkState* k, LegState* leg) noexcept nogil
cdef void readable(LinkState* k, LegState* leg) noexcept nogil
cdef void follow(LinkState* k) noexcept nogil

# The event set of one worker and the sessions that run in it.
from libc.stdint cimport uint8_t
from pgwire.hot.leg cimport Leg, ReactorState
from pgwire.hot.link cimport LinkState

cdef class Reactor:
    cdef ReactorState st
    cdef object journal
    cdef object recorder
    cdef bint delivering
    cdef deliver(self)

cdef class Link:
    cdef LinkState st
    cdef Reactor reactor
    cdef Leg client_leg
    cdef Leg server_leg
    cdef object handler
    cdef bint started
    cdef _after(self)
    cdef _unlink(self)
    cdef _anew(self)
    cdef _unpause(self)
    cdef _finish_outstanding(self)

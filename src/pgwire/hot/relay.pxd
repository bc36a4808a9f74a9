# One session's link.
from pgwire.hot.budget cimport Budget
from pgwire.hot.leg cimport Leg
from pgwire.hot.link cimport LinkState
from pgwire.hot.masking cimport MaskPlan
from pgwire.hot.reactor cimport Reactor

cdef class Link:
    cdef LinkState st
    cdef Reactor reactor
    cdef Leg client_leg
    cdef Leg server_leg
    cdef readonly object handler
    cdef Budget budget
    cdef _after(self)
    cdef _unlink(self)
    cdef _request(self)
    cdef _describe_request(self)
    cdef _set_plan(self, MaskPlan plan)
    cdef void _anew(self) noexcept
    cdef void _unpause(self) noexcept
    cdef void _finish_outstanding(self) noexcept

# Masking: a compiled plan applied to runs of DataRow messages.
from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    MASK_OK = 0           # everything used, or the next message is not a DataRow
    MASK_NEED_MORE = 1    # the next DataRow is not whole yet
    MASK_FULL = 2         # dst can't take mask_bound() bytes for the next row
    MASK_BAD = -1         # the next message is not a row that this plan is for

cdef struct PlanState     # opaque

cdef class MaskPlan:
    cdef PlanState* st

cdef int mask_run(PlanState* p, const uint8_t* src, size_t n, size_t* consumed, uint8_t* dst, size_t cap, size_t* produced, uint64_t* rows) noexcept nogil
cdef size_t mask_bound(PlanState* p, size_t message_bytes) noexcept nogil

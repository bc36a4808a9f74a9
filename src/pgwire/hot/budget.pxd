# A token bucket that several sessions take from.
from libc.stdint cimport uint64_t

cdef struct BudgetState:
    int lock
    double left
    double most
    double per_us
    uint64_t at_us

cdef class Budget:
    cdef BudgetState st

cdef bint budget_take(BudgetState* b, uint64_t now_us) noexcept nogil

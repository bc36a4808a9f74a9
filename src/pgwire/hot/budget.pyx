"""How many statements a principal may still send: a token bucket, taken from in C for what is let through by a known verdict.

A minute's worth may be used at once, and the bucket fills at the permitted rate. One bucket serves all sessions of its
principal, in every reactor's thread.

Never add: who the principal is, or what happens when the bucket is empty.
"""

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    static inline void pgl_spin(int *lock) {
        while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE)) { }
    }
    static inline void pgl_unspin(int *lock) { __atomic_store_n(lock, 0, __ATOMIC_RELEASE); }
    """
    void pgl_spin(int* lock) noexcept nogil
    void pgl_unspin(int* lock) noexcept nogil


cdef bint budget_take(BudgetState* b, uint64_t now_us) noexcept nogil:
    cdef bint there
    pgl_spin(&b.lock)
    if now_us > b.at_us:
        b.left += <double>(now_us - b.at_us) * b.per_us
        if b.left > b.most:
            b.left = b.most
        b.at_us = now_us
    there = b.left >= 1
    if there:
        b.left -= 1
    pgl_unspin(&b.lock)
    return there


cdef class Budget:
    """``per_minute`` statements. Times are seconds of the monotonic clock."""

    def __cinit__(self, double per_minute):
        self.st.most = self.st.left = per_minute
        self.st.per_us = per_minute / 6e7

    @property
    def per_minute(self):
        """The rate, which may be changed."""
        return self.st.most

    @per_minute.setter
    def per_minute(self, double value):
        pgl_spin(&self.st.lock)
        self.st.most = value
        self.st.per_us = value / 6e7
        pgl_unspin(&self.st.lock)

    def take(self, double now):
        """Use one statement. 0.0 when it was there, else the seconds until the next one is."""
        if budget_take(&self.st, <uint64_t>(now * 1e6)):
            return 0.0
        return (1 - self.st.left) / self.st.per_us / 1e6

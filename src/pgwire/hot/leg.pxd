# One connection in C: descriptor, TLS, the bytes not yet used and the bytes not yet sent.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    UP_COLD = 1          # a cold leg is ready, or its connection has ended
    UP_ADMIT = 2         # the client's next message needs a decision
    UP_DESCRIBE = 4      # a row description needs a mask plan
    UP_FILTER = 8        # an error, notice, notification or parameter status must be looked at
    UP_SETTLED = 16      # a statement that changes what later ones mean has ended
    UP_GONE = 32         # this leg's other end is gone
    UP_BROKEN = 64       # the session can't go on: Link.problem says why

cdef struct ReactorState:
    int epfd
    uint8_t* shared
    size_t shared_cap
    uint64_t now_us
    void** queue
    size_t queue_len
    size_t queue_cap
    void* graveyard
    void** cache
    size_t cache_count
    uint64_t seed
    void* journal
    void* recorder
    uint64_t upcalls

cdef struct LegState:
    int fd
    int side
    uint32_t armed
    bint registered
    bint cold
    bint reading
    bint eof
    bint gone
    bint broken
    void* ssl
    uint8_t* held
    size_t held_len
    size_t held_cap
    uint8_t* out
    size_t out_off
    size_t out_len
    size_t out_cap
    const uint8_t* span
    size_t span_len
    size_t stream_left
    uint32_t up
    bint queued
    void* link
    void* owner
    ReactorState* reactor

cdef class Leg:
    cdef LegState st
    cdef object reactor
    cdef object context
    cdef public object waiter

cdef void leg_up(LegState* leg, uint32_t what) noexcept nogil
cdef void leg_update(LegState* leg) noexcept nogil
cdef ssize_t leg_recv(LegState* leg, uint8_t* buf, size_t cap) noexcept nogil
cdef int leg_hold(LegState* leg, const uint8_t* p, size_t n) noexcept nogil
cdef int leg_room(LegState* leg, size_t n) noexcept nogil
cdef int out_room(LegState* leg, size_t n) noexcept nogil
cdef int emit(LegState* leg, const uint8_t* p, size_t n) noexcept nogil
cdef int emit_copy(LegState* leg, const uint8_t* p, size_t n) noexcept nogil
cdef int spill(LegState* leg) noexcept nogil
cdef int leg_push(LegState* leg) noexcept nogil
cdef void leg_shut(LegState* leg) noexcept nogil

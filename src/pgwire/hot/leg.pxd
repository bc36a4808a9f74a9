# One connection in C: descriptor, TLS, the bytes not yet used and the bytes not yet sent; and the event set's state.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef unsigned long pthread_t

cdef enum:
    BLOCK = 262144       # bytes of a spare block
    SPARES = 8

    UP_ADMIT = 2         # the client's next message needs a decision
    UP_DESCRIBE = 4      # a row description needs a mask plan
    UP_FILTER = 8        # an error, notice, notification or parameter status must be looked at
    UP_SETTLED = 16      # a statement that changes what later ones mean has ended
    UP_GONE = 32         # this leg's other end is gone
    UP_BROKEN = 64       # the session can't go on: Link.problem says why

cdef struct Slot:
    LegState* leg
    uint32_t generation  # what the event set was told; an event with another one is of a leg that is gone

cdef struct ReactorState:
    pthread_mutex_t lock # guards this state, every leg that is linked, and its link
    int wanted           # threads that wait for the lock; the loop lets them in between two events
    bint inside          # the lock's holder is the thread itself
    bint stop
    bint signalled       # the event loop has been told and has not looked yet
    bint delivering
    pthread_t thread
    int epfd
    int wake_fd          # wakes the thread
    int up_fd            # tells the event loop that the queue has something
    Slot* slots
    uint32_t slots_count
    uint32_t slots_cap
    uint32_t* free_slots
    uint32_t free_count
    LegState* bulk       # legs that are read by the clock
    uint8_t* shared
    size_t shared_cap
    uint8_t* scratch     # masked rows on their way out
    size_t scratch_cap
    size_t scratch_used
    uint8_t* spare[8]    # blocks for what sockets did not take, ready for the next leg that is slow
    size_t spare_count
    uint64_t now_us      # the monotonic clock, and the wall's, as of the last look
    uint64_t real_us
    void** queue
    size_t queue_len
    size_t queue_cap
    void* graveyard
    void** cache         # verdicts by exact text, then by canonical form
    void** shapes
    size_t cache_count
    size_t shapes_count
    size_t cache_hand    # the bucket that is emptied next when a cache is full
    void* spare_queues   # of links that wait for nothing; each begins with where the next one is
    size_t spare_queues_count
    uint8_t* form        # room for one canonical form
    uint64_t seed
    void* journal
    void* recorder
    uint64_t upcalls

cdef struct LegState:
    int fd
    int side
    uint32_t armed
    bint registered
    uint32_t slot        # its place among the reactor's, plus one; 0: none
    bint bulk
    LegState* bulk_next
    LegState* bulk_prev
    size_t flow          # bytes of the large reads in a row until now
    bint reading
    bint eof
    bint gone
    bint hung_up         # the event set has told of the other side's end: what comes is read until there
    bint unread          # the event set has told of data that was not read to the last byte
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

cdef void enter(ReactorState* r) noexcept nogil
cdef void leave(ReactorState* r) noexcept nogil
cdef int leg_join(LegState* leg) noexcept nogil
cdef void leg_part(LegState* leg) noexcept nogil
cdef void leg_gather(LegState* leg, bint on) noexcept nogil
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

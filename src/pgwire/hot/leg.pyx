"""One connection, in C: receive, send, TLS, and the buffers between.

A leg is *cold* while Python drives it (startup, login) and *hot* once :mod:`pgwire.hot.relay` links two of them: then the
reactor's thread drives it, and whoever touches it holds the reactor's lock (``enter``, ``leave``). The interface is the
same with and without TLS. Outgoing bytes are sent straight from where they lie; only what the socket does not take is
copied. Buffers exist only while they hold something.

Never add: protocol knowledge, or anything that waits.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset, strerror
from posix.unistd cimport close as c_close

from pgwire.hot.tls cimport (
    TLS_FAILED, TlsContext, tls_alpn, tls_free, tls_handshake, tls_has_pending, tls_name,
    tls_new, tls_peer_certificate, tls_problem, tls_read, tls_shutdown, tls_version, tls_write,
)

from pgwire.hot.tls import TlsError

cdef extern from *:
    """
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    /* Without the C library's cancellation points, which cost a locked instruction each in a process with threads. */
    static inline ssize_t pgl_recv(int fd, void *buf, size_t n) {
    #ifdef SYS_recvfrom
        return syscall(SYS_recvfrom, fd, buf, n, 0, NULL, NULL);
    #else
        return recv(fd, buf, n, 0);
    #endif
    }
    static inline ssize_t pgl_send(int fd, const void *buf, size_t n) {
    #ifdef SYS_sendto
        return syscall(SYS_sendto, fd, buf, n, MSG_NOSIGNAL, NULL, 0);
    #else
        return send(fd, buf, n, MSG_NOSIGNAL);
    #endif
    }
    """
    ssize_t pgl_recv(int fd, void* buf, size_t n) noexcept nogil
    ssize_t pgl_send(int fd, const void* buf, size_t n) noexcept nogil

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_recv "recv"(int fd, void* buf, size_t n, int flags)
    int MSG_PEEK, MSG_DONTWAIT

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLET

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept
    int pthread_mutex_trylock(pthread_mutex_t* mutex) noexcept
    int pthread_mutex_unlock(pthread_mutex_t* mutex) noexcept

cdef extern from *:
    """
    static inline void pgl_add(int *p, int v) { __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL); }
    static inline void pgl_pause(void) {
    #if defined(__x86_64__)
        __builtin_ia32_pause();
    #endif
    }
    """
    void pgl_add(int* p, int v) noexcept nogil
    void pgl_pause() noexcept nogil

cdef enum:
    SPINS = 2000          # of a thread that wants the lock, before it sleeps for it


cdef void enter(ReactorState* r) noexcept nogil:
    # The GIL stays with its holder: the reactor's thread never wants it, so nobody waits for two things.
    cdef int i
    if pthread_mutex_trylock(&r.lock) == 0:
        return
    pgl_add(&r.wanted, 1)
    for i in range(SPINS):
        pgl_pause()
        if pthread_mutex_trylock(&r.lock) == 0:
            pgl_add(&r.wanted, -1)
            return
    pthread_mutex_lock(&r.lock)
    pgl_add(&r.wanted, -1)


cdef void leave(ReactorState* r) noexcept nogil:
    pthread_mutex_unlock(&r.lock)


cdef int leg_join(LegState* leg) noexcept nogil:
    # a place among the reactor's legs; -1: no memory
    cdef ReactorState* r = leg.reactor
    cdef Slot* slots
    cdef uint32_t* free_slots
    cdef uint32_t cap
    if leg.slot:
        return 0
    if r.free_count:
        r.free_count -= 1
        leg.slot = r.free_slots[r.free_count]
    else:
        if r.slots_count == r.slots_cap:
            cap = r.slots_cap * 2 if r.slots_cap else 64
            free_slots = <uint32_t*>realloc(r.free_slots, cap * sizeof(uint32_t))
            if free_slots == NULL:
                return -1
            r.free_slots = free_slots
            slots = <Slot*>realloc(r.slots, cap * sizeof(Slot))
            if slots == NULL:
                return -1
            r.slots = slots
            r.slots_cap = cap
        r.slots[r.slots_count].generation = 0
        r.slots_count += 1
        leg.slot = r.slots_count
    r.slots[leg.slot - 1].leg = leg
    return 0


cdef void leg_part(LegState* leg) noexcept nogil:
    # out of the event set: no event that has been fetched already finds it either
    cdef ReactorState* r = leg.reactor
    cdef epoll_event ev
    leg_gather(leg, False)
    if leg.registered:
        epoll_ctl(r.epfd, EPOLL_CTL_DEL, leg.fd, &ev)
        leg.registered = False
    if leg.slot:
        r.slots[leg.slot - 1].leg = NULL
        r.slots[leg.slot - 1].generation += 1
        r.free_slots[r.free_count] = leg.slot
        r.free_count += 1
        leg.slot = 0


cdef void leg_gather(LegState* leg, bint on) noexcept nogil:
    # A leg under steady load is read by the clock: fewer, larger reads and writes on both sides of it.
    cdef ReactorState* r = leg.reactor
    if leg.bulk == on:
        return
    leg.bulk = on
    leg.flow = 0
    if on:
        leg.bulk_prev = NULL
        leg.bulk_next = r.bulk
        if r.bulk != NULL:
            r.bulk.bulk_prev = leg
        r.bulk = leg
        return
    if leg.bulk_next != NULL:
        leg.bulk_next.bulk_prev = leg.bulk_prev
    if leg.bulk_prev != NULL:
        leg.bulk_prev.bulk_next = leg.bulk_next
    else:
        r.bulk = leg.bulk_next
    leg.bulk_next = leg.bulk_prev = NULL


cdef void leg_up(LegState* leg, uint32_t what) noexcept nogil:
    cdef ReactorState* r = leg.reactor
    cdef void** more
    leg.up |= what
    if leg.queued:
        return
    if r.queue_len == r.queue_cap:
        more = <void**>realloc(r.queue, (r.queue_cap * 2 + 64) * sizeof(void*))
        if more == NULL:
            return
        r.queue = more
        r.queue_cap = r.queue_cap * 2 + 64
    r.queue[r.queue_len] = leg
    r.queue_len += 1
    leg.queued = True


cdef void _arm(LegState* leg, uint32_t events) noexcept nogil:
    cdef epoll_event ev
    if leg.fd < 0 or leg.slot == 0 or (leg.registered and leg.armed == events and not (leg.unread and leg.reading)):
        return
    leg.unread = False
    ev.events = events
    ev.data.u64 = <uint64_t>leg.reactor.slots[leg.slot - 1].generation << 32 | leg.slot
    epoll_ctl(leg.reactor.epfd, EPOLL_CTL_MOD if leg.registered else EPOLL_CTL_ADD, leg.fd, &ev)
    leg.registered = True
    leg.armed = events


cdef void leg_update(LegState* leg) noexcept nogil:
    # What the event set should tell us of this leg: data if we read, room if something waits, the end always. A plain leg is
    # told of once (edge-triggered); whoever leaves something unread says so, and is told again when it reads again.
    cdef uint32_t events = 0
    if leg.broken or leg.fd < 0:
        return
    if leg.reading and not leg.eof and not leg.bulk:
        events |= EPOLLIN
    if leg.out_len:
        events |= EPOLLOUT
    if not leg.gone and not leg.eof:
        events |= EPOLLRDHUP
    if leg.ssl == NULL:
        events |= EPOLLET
    _arm(leg, events)


cdef ssize_t leg_recv(LegState* leg, uint8_t* buf, size_t cap) noexcept nogil:
    # > 0 bytes, 0 the end, -1 nothing now, -2 broken
    cdef ssize_t n
    if leg.ssl != NULL:
        return tls_read(leg.ssl, buf, cap)
    while True:
        n = pgl_recv(leg.fd, buf, cap)
        if n >= 0:
            return n
        if errno == EINTR:
            continue
        return -1 if errno == EAGAIN else -2


cdef ssize_t _send(LegState* leg, const uint8_t* p, size_t n) noexcept nogil:
    cdef ssize_t w
    if leg.ssl != NULL:
        return tls_write(leg.ssl, p, n)
    while True:
        w = pgl_send(leg.fd, p, n)
        if w >= 0:
            return w
        if errno == EINTR:
            continue
        return -1 if errno == EAGAIN else -2


cdef int leg_room(LegState* leg, size_t n) noexcept nogil:
    # room for n bytes behind what is held; grows by doubling as bytes arrive, never on a claim
    cdef size_t cap
    cdef uint8_t* more
    if leg.held_len + n <= leg.held_cap:
        return 0
    cap = leg.held_cap * 2 if leg.held_cap else 1024
    while cap < leg.held_len + n:
        cap *= 2
    more = <uint8_t*>realloc(leg.held, cap)
    if more == NULL:
        return -1
    leg.held = more
    leg.held_cap = cap
    return 0


cdef int leg_hold(LegState* leg, const uint8_t* p, size_t n) noexcept nogil:
    # keep exactly these bytes for later; p may lie inside what is held
    if n == 0:
        leg.held_len = 0
        if leg.held != NULL:
            free(leg.held)
            leg.held = NULL
            leg.held_cap = 0
        return 0
    if leg.held != NULL and p >= leg.held and p < leg.held + leg.held_cap:
        if p != leg.held:
            memmove(leg.held, p, n)
        leg.held_len = n
        return 0
    leg.held_len = 0
    if leg_room(leg, n) < 0:
        return -1
    memcpy(leg.held, p, n)
    leg.held_len = n
    return 0


cdef void _out_free(LegState* leg) noexcept nogil:
    cdef ReactorState* r = leg.reactor
    if leg.out_cap == BLOCK and r.spare_count < SPARES:
        r.spare[r.spare_count] = leg.out
        r.spare_count += 1
    else:
        free(leg.out)
    leg.out = NULL
    leg.out_off = leg.out_len = leg.out_cap = 0


cdef int out_room(LegState* leg, size_t n) noexcept nogil:
    cdef ReactorState* r = leg.reactor
    cdef size_t cap
    cdef uint8_t* more
    if leg.out_off and leg.out_off + leg.out_len + n > leg.out_cap:
        memmove(leg.out, leg.out + leg.out_off, leg.out_len)
        leg.out_off = 0
    if leg.out_off + leg.out_len + n <= leg.out_cap:
        return 0
    cap = leg.out_cap * 2 if leg.out_cap else 1024
    while cap < leg.out_len + n:
        cap *= 2
    if cap > 4096 and cap <= BLOCK and leg.out_cap < BLOCK:
        # A block at once: no growing step by step, and no fresh pages each time.
        if r.spare_count:
            r.spare_count -= 1
            more = r.spare[r.spare_count]
        else:
            more = <uint8_t*>malloc(BLOCK)
        if more != NULL and leg.out_len:
            memcpy(more, leg.out + leg.out_off, leg.out_len)
        if more != NULL:
            free(leg.out)
        leg.out_off = 0
        cap = BLOCK
    else:
        more = <uint8_t*>realloc(leg.out, cap)
    if more == NULL:
        leg.broken = True
        return -1
    leg.out = more
    leg.out_cap = cap
    return 0


cdef int spill(LegState* leg) noexcept nogil:
    # the span goes behind what already waits, as a copy
    if leg.span_len == 0:
        return 0
    if out_room(leg, leg.span_len) < 0:
        return -1
    memcpy(leg.out + leg.out_off + leg.out_len, leg.span, leg.span_len)
    leg.out_len += leg.span_len
    leg.span_len = 0
    return 0


cdef int emit(LegState* leg, const uint8_t* p, size_t n) noexcept nogil:
    # send these bytes at the next push; they must stay where they are until then
    cdef ReactorState* r = leg.reactor
    if leg.span_len and leg.span + leg.span_len == p:
        leg.span_len += n
        return 0
    if leg.span_len and leg.span + leg.span_len == r.scratch + r.scratch_used and n <= r.scratch_cap - r.scratch_used:
        memcpy(r.scratch + r.scratch_used, p, n)       # what comes behind masked rows joins them
        r.scratch_used += n
        leg.span_len += n
        return 0
    if spill(leg) < 0:
        return -1
    leg.span = p
    leg.span_len = n
    return 0


cdef int emit_copy(LegState* leg, const uint8_t* p, size_t n) noexcept nogil:
    if spill(leg) < 0 or out_room(leg, n) < 0:
        return -1
    memcpy(leg.out + leg.out_off + leg.out_len, p, n)
    leg.out_len += n
    return 0


cdef int leg_push(LegState* leg) noexcept nogil:
    # 0 all sent, 1 something waits for room, -2 broken
    cdef ssize_t w
    if leg.broken or leg.fd < 0:
        leg.span_len = 0
        leg.out_len = 0
        return -2
    if leg.out_len == 0 and leg.span_len:
        while leg.span_len:
            w = _send(leg, leg.span, leg.span_len)
            if w < 0:
                if w == -2:
                    leg.broken = True
                    leg.span_len = 0
                    return -2
                break
            leg.span += w
            leg.span_len -= w
        if leg.span_len == 0:
            return 0
    if spill(leg) < 0:
        return -2
    while leg.out_len:
        w = _send(leg, leg.out + leg.out_off, leg.out_len)
        if w < 0:
            if w == -2:
                leg.broken = True
                leg.out_len = 0
                return -2
            return 1
        leg.out_off += w
        leg.out_len -= w
    if leg.out != NULL:
        _out_free(leg)
    return 0


cdef void leg_shut(LegState* leg) noexcept nogil:
    leg_part(leg)
    if leg.fd >= 0:
        if leg.ssl != NULL and not leg.broken:
            tls_shutdown(leg.ssl)
        c_close(leg.fd)
        leg.fd = -1
    if leg.ssl != NULL:
        tls_free(leg.ssl)
        leg.ssl = NULL
    free(leg.held)
    leg.held = NULL
    leg.held_len = leg.held_cap = leg.span_len = 0
    _out_free(leg)
    leg.registered = False
    leg.broken = True


cdef class Leg:
    """A connected, non-blocking socket descriptor that this object now owns. All methods return at once.

    Only for cold legs: while a link has the leg, its reactor's thread uses it.
    """

    def __cinit__(self, reactor, int fd):
        memset(&self.st, 0, sizeof(LegState))
        self.st.fd = fd
        self.st.owner = <void*>self
        self.reactor = reactor
        self.st.reactor = <ReactorState*><size_t>reactor._state()

    def __dealloc__(self):
        cdef ReactorState* r = self.st.reactor
        cdef size_t i
        if r == NULL:
            return
        enter(r)
        leg_shut(&self.st)
        if self.st.queued:
            for i in range(r.queue_len):
                if r.queue[i] == <void*>&self.st:
                    r.queue[i] = NULL
        leave(r)

    def receive(self, int n=16384):
        """Up to ``n`` bytes; None when there are none now; b"" at the end. Raises ConnectionError."""
        cdef bytes result
        cdef ssize_t got
        if self.st.held_len:
            result = (<char*>self.st.held)[:self.st.held_len]
            leg_hold(&self.st, NULL, 0)
            return result
        if self.st.fd < 0:
            raise ConnectionError("the connection is closed")
        cdef uint8_t* buf = <uint8_t*>malloc(n)
        if buf == NULL:
            raise MemoryError
        try:
            got = leg_recv(&self.st, buf, n)
            if got == -1:
                return None
            if got < 0:
                self.st.broken = True
                raise ConnectionError((<bytes>strerror(errno)).decode("ascii", "replace") if self.st.ssl == NULL else "TLS connection lost")
            return (<char*>buf)[:got]
        finally:
            free(buf)

    def unread(self, bytes data):
        """Put bytes back that belong to what comes next."""
        if data and leg_hold(&self.st, <const uint8_t*><const char*>data, len(data)) < 0:
            raise MemoryError

    def move(self, reactor):
        """Let another reactor's thread drive it from now on. False: this one's still has to do with it."""
        if reactor is self.reactor:
            return True
        if self.st.slot or self.st.queued or self.st.registered or self.st.link != NULL or self.st.out_cap:
            return False
        self.reactor = reactor
        self.st.reactor = <ReactorState*><size_t>reactor._state()
        return True

    def untouched(self):
        """Whether nothing has come since the last read, not even the end."""
        cdef uint8_t byte
        cdef ssize_t n
        if self.st.fd < 0 or self.st.broken or self.st.held_len or self.st.out_len:
            return False
        if self.st.ssl != NULL and tls_has_pending(self.st.ssl):
            return False
        n = c_recv(self.st.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT)
        return n < 0 and (errno == EAGAIN or errno == EINTR)

    def send(self, bytes data):
        """Send, keeping what the socket does not take now; see ``pending``. Raises ConnectionError."""
        cdef int r
        enter(self.st.reactor)
        emit(&self.st, <const uint8_t*><const char*>data, len(data))
        r = leg_push(&self.st)
        leave(self.st.reactor)
        if r == -2:
            raise ConnectionError("the connection is closed")

    def flush(self):
        """Send what waits. Raises ConnectionError."""
        cdef int r
        enter(self.st.reactor)
        r = leg_push(&self.st)
        leave(self.st.reactor)
        if r == -2:
            raise ConnectionError("the connection is closed")

    @property
    def pending(self):
        """Bytes accepted by ``send`` and not yet taken by the socket."""
        return self.st.out_len

    @property
    def encrypted(self):
        """Whether TLS protects this leg."""
        return self.st.ssl != NULL

    def start_tls(self, TlsContext context, str host=""):
        """Begin TLS; then call ``handshake`` until it answers 0. ``host`` is checked on client sides in verify-full."""
        if self.st.ssl != NULL or self.st.held_len:
            raise TlsError("TLS can't begin here")
        cdef bytes name = host.encode("idna") if not host.isascii() else host.encode()
        self.st.ssl = tls_new(context.ctx, self.st.fd, context.server_side)
        self.context = context
        if self.st.ssl == NULL or (not context.server_side and host and tls_name(self.st.ssl, name, context.checks_name) < 0):
            raise TlsError("TLS can't begin")

    def handshake(self):
        """0 when done, 1 to be called again when readable, 2 when writable. Raises TlsError."""
        cdef int r = tls_handshake(self.st.ssl)
        if r == TLS_FAILED:
            self.st.broken = True
            raise TlsError(tls_problem(self.st.ssl))
        return r

    @property
    def tls(self):
        """(version, ALPN) of an encrypted leg, None of a plain one."""
        return (tls_version(self.st.ssl), tls_alpn(self.st.ssl)) if self.st.ssl != NULL else None

    def peer_certificate(self):
        """The other side's certificate in DER, or None."""
        return tls_peer_certificate(self.st.ssl) if self.st.ssl != NULL else None

    def close(self):
        """Close at once; what waits to be sent is lost."""
        enter(self.st.reactor)
        leg_shut(&self.st)
        leave(self.st.reactor)

    @property
    def closed(self):
        return self.st.fd < 0

    def fileno(self):
        return self.st.fd

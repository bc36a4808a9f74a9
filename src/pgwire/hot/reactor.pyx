"""The event set and its thread: everything that is ready is handled in C, without the GIL, by one thread per reactor.

What needs a decision is queued and told to the event loop through a descriptor (``fileno``, then ``turn``). The thread and
Python share legs and links under the reactor's lock, which the thread gives up between two events when somebody waits for it. A leg under steady load is
taken out of the event set and read by the clock, so that bulk moves in few large reads and writes.

Never add: protocol meaning (:mod:`pgwire.hot.agent_side`, :mod:`pgwire.hot.server_side`), a decision, or a call that
takes the GIL in the thread.
"""

import os
import sys

from libc.errno cimport ENOSYS, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport close as c_close, read as c_read, write as c_write

from pgwire.hot.agent_side cimport agent_process, wait_over
from pgwire.hot.journal cimport Journal
from pgwire.hot.leg cimport UP_GONE, enter, leave, leg_gather, leg_hold, leg_push, leg_recv, leg_room, leg_up, leg_update, pthread_mutex_t, pthread_t
from pgwire.hot.pipeline cimport cache_clear, cache_make, graveyard_empty, queues_free
from pgwire.hot.server_side cimport server_process
from pgwire.hot.tls cimport tls_has_pending

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_wait(int epfd, epoll_event* events, int n, int timeout)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int count, int flags)
    int EFD_CLOEXEC, EFD_NONBLOCK

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept
    int pthread_mutex_destroy(pthread_mutex_t* mutex) noexcept
    int pthread_create(pthread_t* thread, const void* attributes, void* (*run)(void*) noexcept nogil, void* argument) noexcept
    int pthread_join(pthread_t thread, void** result) noexcept

cdef extern from *:
    """
    #include <signal.h>
    #include <sched.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    #ifndef SYS_epoll_pwait2
    #define SYS_epoll_pwait2 441
    #endif
    static long pgl_epoll_pwait2(int fd, void *events, int n, long nanoseconds) {
        struct timespec t = {0, nanoseconds};
        return syscall(SYS_epoll_pwait2, fd, events, n, &t, NULL, 0);
    }
    static void pgl_quiet_thread(void) {          /* signals are for the main thread; ticks come when they are due */
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, NULL);
        prctl(PR_SET_TIMERSLACK, 10000UL, 0, 0, 0);
        prctl(PR_SET_NAME, "pgleash-wire", 0, 0, 0);
    }
    static void pgl_recursive(pthread_mutex_t *mutex) {
        pthread_mutexattr_t kind;
        pthread_mutexattr_init(&kind);
        pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_RECURSIVE);
        pthread_mutex_init(mutex, &kind);
        pthread_mutexattr_destroy(&kind);
    }
    #ifdef __GLIBC__
    #include <malloc.h>
    #endif
    static void pgl_keep_pages(void) {            /* buffers come and go with every read: their pages stay for the next */
    #ifdef __GLIBC__
        mallopt(M_TRIM_THRESHOLD, 2 << 20);
        mallopt(M_MMAP_THRESHOLD, 1 << 20);
    #endif
    }
    static inline int pgl_load(int *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    """
    long pgl_epoll_pwait2(int fd, void* events, int n, long nanoseconds) noexcept nogil
    void pgl_quiet_thread() noexcept nogil
    void pgl_recursive(pthread_mutex_t* mutex) noexcept nogil
    void pgl_keep_pages() noexcept nogil
    int pgl_load(int* p) noexcept nogil
    int sched_yield() noexcept nogil

cdef enum:
    BATCH = 128
    SHARED = 262144
    SCRATCH = 524288
    READS = 4             # of one leg in a row, so that no leg starves the others
    RECORD = 16384        # bytes that one TLS record holds at most
    TICK = 200            # microseconds between reads of a leg that is read by the clock
    LARGE = 4096          # a read of at least this many bytes belongs to a steady flow
    STEADY = 65536        # bytes of such reads in a row that make the flow steady
    YIELDS = 100          # of the thread while somebody waits for the lock


cdef void clock(ReactorState* r) noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    r.now_us = <uint64_t>t.tv_sec * 1000000 + <uint64_t>t.tv_nsec // 1000
    clock_gettime(CLOCK_REALTIME, &t)
    r.real_us = <uint64_t>t.tv_sec * 1000000 + <uint64_t>t.tv_nsec // 1000


cdef inline bint _open(LinkState* k, LegState* leg) noexcept nogil:
    # whether what this leg brings may be used now
    if k.ended:
        return False
    if leg == k.client:
        return k.server.out_len == 0 and k.wait == 0 and not k.frozen
    return k.client.out_len == 0 and k.pause == 0


cdef inline size_t _process(LinkState* k, LegState* leg, const uint8_t* p, size_t n) noexcept nogil:
    return agent_process(k, p, n) if leg == k.client else server_process(k, p, n)


cdef void _gone(LegState* leg) noexcept nogil:
    # the end of a leg is told once; a descriptor that only says so again is taken out of the set
    cdef epoll_event ev
    if not leg.gone:
        leg.gone = True
        leg_up(leg, UP_GONE)
    leg_gather(leg, False)
    if leg.registered:
        epoll_ctl(leg.reactor.epfd, EPOLL_CTL_DEL, leg.fd, &ev)
        leg.registered = False


cdef void pump(LinkState* k, LegState* leg) noexcept nogil:
    # What a leg holds is used as far as it can be; then it is read again if nothing stands in the way.
    cdef size_t used
    if leg.held_len and _open(k, leg):
        used = _process(k, leg, leg.held, leg.held_len)
        leg_hold(leg, leg.held + used, leg.held_len - used)
        leg_update(k.server if leg == k.client else k.client)    # what its socket did not take goes when there is room
    leg.reading = _open(k, leg)
    leg_update(leg)
    if leg.reading and leg.ssl != NULL and tls_has_pending(leg.ssl):
        readable(k, leg)                         # TLS has read more than was taken: no event will tell of that


cdef void follow(LinkState* k) noexcept nogil:
    # After the server's word: does it end what the client's next message waits for?
    if k.wait and wait_over(k):
        k.wait = 0
        pump(k, k.client)


cdef ssize_t _fill(LegState* leg, uint8_t* to, size_t room) noexcept nogil:
    # as leg_recv; of TLS as many records as are there already
    cdef ssize_t got = leg_recv(leg, to, room), more
    if leg.ssl == NULL or got <= 0:
        return got
    while room - <size_t>got >= RECORD and tls_has_pending(leg.ssl):
        more = leg_recv(leg, to + got, room - <size_t>got)
        if more <= 0:
            break                                # told again at the next read
        got += more
    return got


cdef ssize_t _read(LinkState* k, LegState* leg, size_t* room) noexcept nogil:
    # One read and what follows from it: bytes, or as leg_recv. What is held of a message goes in front of the rest, into the
    # shared buffer; only what is large already stays where it is.
    cdef ReactorState* r = k.reactor
    cdef ssize_t got
    cdef size_t used, n
    if leg.held_len > r.shared_cap // 4:
        room[0] = leg.held_len if leg.held_len < 1048576 else 1048576
        if leg_room(leg, room[0]) < 0:
            leg.broken = True
            return -2
        got = _fill(leg, leg.held + leg.held_len, room[0])
        if got <= 0:
            return got
        leg.held_len += <size_t>got
        used = _process(k, leg, leg.held, leg.held_len)
        leg_hold(leg, leg.held + used, leg.held_len - used)
        return got
    room[0] = r.shared_cap - leg.held_len
    if leg.held_len:
        memcpy(r.shared, leg.held, leg.held_len)
    got = _fill(leg, r.shared + leg.held_len, room[0])
    if got <= 0:
        return got
    n = leg.held_len + <size_t>got
    used = _process(k, leg, r.shared, n)
    if leg_hold(leg, r.shared + used, n - used) < 0:
        leg.broken = True
    return got


cdef void readable(LinkState* k, LegState* leg) noexcept nogil:
    cdef LegState* peer = k.server if leg == k.client else k.client
    cdef ssize_t got = 1
    cdef size_t room = 0, sum = 0
    cdef int reads = 0
    leg.unread = True
    while leg.reading and not k.ended:
        got = _read(k, leg, &room)
        if got <= 0:
            leg.unread = False
            break
        sum += <size_t>got
        leg.reading = _open(k, leg)
        if leg == k.server:
            follow(k)
        reads += 1
        if leg.broken:
            break
        if leg.ssl != NULL:
            if not tls_has_pending(leg.ssl):
                break                            # what the socket still has, it will tell
        elif <size_t>got < room and not leg.hung_up:
            leg.unread = False
            break
        elif reads >= READS:
            break
    if got == 0 or got == -2 or leg.broken:
        leg.eof = got == 0
        leg.broken = leg.broken or got == -2
        leg.reading = False
        _gone(leg)
        return
    leg.flow = leg.flow + sum if sum >= LARGE else 0
    # Only the thread keeps the clock: asleep, it would not see that a leg wants to be read by it.
    leg_gather(leg, k.reactor.inside and leg.reading and (leg.flow >= STEADY or (leg.bulk and sum >= LARGE)))
    leg.reading = _open(k, leg)
    leg_update(leg)
    leg_update(peer)


cdef void _ready(LegState* leg, uint32_t events) noexcept nogil:
    cdef LinkState* k = <LinkState*>leg.link
    cdef LegState* peer
    if k == NULL:
        return
    leg.hung_up = leg.hung_up or events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP) != 0
    peer = k.server if leg == k.client else k.client
    if events & EPOLLOUT and leg.out_len:
        leg_push(leg)
        if leg.out_len == 0:
            pump(k, peer)
            if peer == k.server:
                follow(k)
    if events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP) and leg.reading:
        readable(k, leg)
    elif events & (EPOLLHUP | EPOLLERR):
        _gone(leg)
        return
    else:
        leg.unread = leg.unread or events & EPOLLIN != 0
        if events & EPOLLRDHUP and not leg.gone:
            leg.gone = True
            leg_up(leg, UP_GONE)
    leg_update(leg)


cdef void _let_in(ReactorState* r) noexcept nogil:
    cdef int i = 0
    while pgl_load(&r.wanted) and i < YIELDS:
        sched_yield()
        i += 1


cdef void _tell(ReactorState* r) noexcept nogil:
    # called with the lock held
    cdef uint64_t one = 1
    if (r.queue_len or r.graveyard != NULL) and not r.signalled:
        r.signalled = True
        c_write(r.up_fd, &one, 8)


cdef void _take(ReactorState* r) noexcept nogil:
    _let_in(r)
    pthread_mutex_lock(&r.lock)
    r.inside = True


cdef void _give(ReactorState* r) noexcept nogil:
    r.inside = False
    _tell(r)
    leave(r)


cdef void _turn_bulk(ReactorState* r) noexcept nogil:
    cdef LegState* leg
    cdef LegState* following
    _take(r)
    leg = r.bulk
    while leg != NULL:
        following = leg.bulk_next
        if leg.link != NULL:
            leg.reading = _open(<LinkState*>leg.link, leg)
            if leg.reading:
                readable(<LinkState*>leg.link, leg)
            else:
                leg_gather(leg, False)
                leg_update(leg)
        # a read may end another leg's flow, but only its own link's: the peer's
        leg = following if following == NULL or following.bulk else NULL
    _give(r)


cdef void* _run(void* argument) noexcept nogil:
    cdef ReactorState* r = <ReactorState*>argument
    cdef epoll_event events[BATCH]
    cdef int i
    cdef long n
    cdef uint64_t due = 0, what
    cdef uint32_t slot
    cdef bint fine = True
    pgl_quiet_thread()
    while not r.stop:
        if r.bulk == NULL:
            due = 0
            n = epoll_wait(r.epfd, events, BATCH, -1)
        else:
            if due == 0:
                due = r.now_us + TICK
            if fine:
                n = pgl_epoll_pwait2(r.epfd, events, BATCH, <long>(due - r.now_us if due > r.now_us else 0) * 1000)
                if n < 0 and errno == ENOSYS:
                    fine = False
            if not fine:
                n = epoll_wait(r.epfd, events, BATCH, 1)
        clock(r)
        _take(r)
        for i in range(n):
            what = events[i].data.u64
            if what == 0:
                c_read(r.wake_fd, &what, 8)
                continue
            if pgl_load(&r.wanted):
                _give(r)
                _take(r)
            slot = <uint32_t>what - 1
            if r.slots[slot].leg != NULL and r.slots[slot].generation == <uint32_t>(what >> 32):
                _ready(r.slots[slot].leg, events[i].events)
                _tell(r)
        _give(r)
        if r.bulk != NULL and due and r.now_us >= due:
            _turn_bulk(r)
            clock(r)
            due = r.now_us + TICK
    return NULL


cdef class Reactor:
    """One thread of the data plane. ``start`` it, register ``fileno()`` for reading with the event loop, and call ``turn``
    whenever it is readable; ``stop`` ends the thread.

    ``journal`` and ``recorder`` are the open journals that statements and recordings go to. Raises OSError.
    """

    def __cinit__(self, Journal journal, Journal recorder):
        memset(&self.st, 0, sizeof(ReactorState))
        self.st.epfd = self.st.wake_fd = self.st.up_fd = -1
        # Recursive: Python may collect garbage, and so close other legs, in the middle of a call that holds the lock.
        pgl_recursive(&self.st.lock)
        self.st.epfd = epoll_create1(EPOLL_CLOEXEC)
        self.st.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.st.up_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.st.epfd < 0 or self.st.wake_fd < 0 or self.st.up_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.st.shared = <uint8_t*>malloc(SHARED)
        self.st.scratch = <uint8_t*>malloc(SCRATCH)
        if self.st.shared == NULL or self.st.scratch == NULL or cache_make(&self.st) < 0:
            raise MemoryError
        self.st.shared_cap = SHARED
        self.st.scratch_cap = SCRATCH
        clock(&self.st)
        self.st.seed = int.from_bytes(os.urandom(8), "little")
        self.journal = journal
        self.recorder = recorder
        self.st.journal = <void*>journal.st
        self.st.recorder = <void*>recorder.st

    def __dealloc__(self):
        self._end_thread()
        cache_clear(&self.st)
        graveyard_empty(&self.st)
        queues_free(&self.st)
        free(self.st.cache)
        free(self.st.shapes)
        free(self.st.form)
        free(self.st.queue)
        free(self.st.slots)
        free(self.st.free_slots)
        free(self.st.shared)
        free(self.st.scratch)
        while self.st.spare_count:
            self.st.spare_count -= 1
            free(self.st.spare[self.st.spare_count])
        for fd in (self.st.epfd, self.st.wake_fd, self.st.up_fd):
            if fd >= 0:
                c_close(fd)
        pthread_mutex_destroy(&self.st.lock)

    def _state(self):
        return <size_t>&self.st

    def start(self):
        """Start the thread. Raises OSError."""
        cdef epoll_event ev
        cdef int code
        if self.running:
            return
        pgl_keep_pages()
        ev.events = EPOLLIN
        ev.data.u64 = 0
        self.st.stop = False
        epoll_ctl(self.st.epfd, EPOLL_CTL_ADD, self.st.wake_fd, &ev)
        code = pthread_create(&self.st.thread, NULL, _run, &self.st)
        if code:
            raise OSError(code, os.strerror(code))
        self.running = True

    def stop(self):
        """End the thread; sessions that are still linked stand still."""
        self._end_thread()

    def _end_thread(self):
        cdef uint64_t one = 1
        if not self.running:
            return
        self.running = False
        self.st.stop = True
        c_write(self.st.wake_fd, &one, 8)
        with nogil:
            pthread_join(self.st.thread, NULL)

    def fileno(self):
        """The descriptor that is readable when ``turn`` has something to do."""
        return self.st.up_fd

    def turn(self):
        """Call the handlers that are asked for. Only in the event loop's thread."""
        cdef uint64_t count
        c_read(self.st.up_fd, &count, 8)
        self.deliver()

    cdef deliver(self):
        cdef ReactorState* r = &self.st
        cdef LegState* leg
        cdef uint32_t up
        cdef size_t i = 0
        if r.delivering:
            return
        r.delivering = True
        try:
            while True:
                enter(r)
                r.signalled = False
                leg = NULL
                while leg == NULL and i < r.queue_len:
                    leg = <LegState*>r.queue[i]
                    i += 1
                if leg == NULL:
                    r.queue_len = 0
                    graveyard_empty(r)
                    leave(r)
                    return
                r.queue[i - 1] = NULL
                up = leg.up
                leg.up = 0
                leg.queued = False
                link = None
                if leg.link != NULL:
                    (<LinkState*>leg.link).asked += 1
                    r.upcalls += 1
                    link = <object>(<LinkState*>leg.link).owner
                from_client = leg.side == 0
                leave(r)
                if link is None:
                    continue
                try:
                    link.handler(up, from_client)
                except Exception:
                    sys.excepthook(*sys.exc_info())
                    link.abandon()
        finally:
            r.delivering = False

    def forget_verdicts(self):
        """Empty the verdict cache: nothing decided before is used again."""
        enter(&self.st)
        cache_clear(&self.st)
        graveyard_empty(&self.st)
        leave(&self.st)

    @property
    def upcalls(self):
        """How often C has asked Python since the start."""
        return self.st.upcalls

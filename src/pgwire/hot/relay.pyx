"""The worker's event set, and the sessions linked in it: what Python starts, is asked by, and answers.

``Reactor.turn`` handles everything that is ready in C without the GIL, then tells Python what needs it. A ``Link`` joins
two legs after both logins. Its handler is called with a set of UP_* bits; it may answer at once or later.

Never add: protocol meaning (:mod:`pgwire.hot.agent_side`, :mod:`pgwire.hot.server_side`), or a decision.
"""

import os
import sys

from cpython.ref cimport Py_INCREF
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close as c_close

from pgwire.hot.agent_side cimport agent_process, refuse_next
from pgwire.hot.framing cimport FRAME_WHOLE, Message, client_frame, name_length, server_frame
from pgwire.hot.journal cimport Journal
from pgwire.hot.leg cimport (
    UP_ADMIT, UP_BROKEN, UP_COLD, UP_DESCRIBE, UP_FILTER, UP_GONE, UP_SETTLED, Leg, LegState, ReactorState,
    emit_copy, leg_hold, leg_push, leg_recv, leg_room, leg_shut, leg_up, leg_update,
)
from pgwire.hot.link cimport LinkState, PAUSE_DESCRIBE, PAUSE_FILTER, WAIT_ADMIT, WAIT_DRAIN, WAIT_ROOM, WAIT_SETTLE, OUTSTANDING, finish, meant_portal, to_client_copy
from pgwire.hot.masking cimport MaskPlan, PlanState
from pgwire.hot.pipeline cimport (
    portal_values,
    ALLOWED, MASKED, SETTLES, Entry, Named, Plan, Portal, Stmt, cache_clear, cache_put, graveyard_empty, names_clear, names_drop, names_find,
    names_put, entry_named, plan_add, portal_release, queue_at, queue_pop, stmt_new, stmt_release,
)
from pgwire.hot.server_side cimport server_process
from pgwire.hot.tls cimport tls_has_pending
from pgwire.hot.wire cimport load16, load32, store32

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void* ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_wait(int epfd, epoll_event* events, int n, int timeout)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int EPOLL_CLOEXEC, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR

ADMIT = UP_ADMIT
DESCRIBE = UP_DESCRIBE
FILTER = UP_FILTER
SETTLED = UP_SETTLED
GONE = UP_GONE
BROKEN = UP_BROKEN

cdef enum:
    BATCH = 128
    SHARED = 65536
    READS = 4             # of one leg in a row, so that no leg starves the others


cdef inline uint64_t _now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000 + <uint64_t>t.tv_nsec // 1000


cdef void _gone(LegState* leg) noexcept nogil:
    # the end of a leg is told once; a descriptor that only says so again is taken out of the set
    cdef epoll_event ev
    if not leg.gone:
        leg.gone = True
        leg_up(leg, UP_GONE)
    if leg.registered:
        epoll_ctl(leg.reactor.epfd, EPOLL_CTL_DEL, leg.fd, &ev)
        leg.registered = False


cdef void _pump(LinkState* k, LegState* leg) noexcept nogil:
    # What a leg holds is used as far as it can be; then it is read again if nothing stands in the way.
    cdef LegState* peer = k.server if leg == k.client else k.client
    cdef size_t used
    cdef bint client = leg == k.client
    if leg.held_len and not k.ended and peer.out_len == 0 and (k.wait == 0 if client else k.pause == 0):
        used = agent_process(k, leg.held, leg.held_len) if client else server_process(k, leg.held, leg.held_len)
        leg_hold(leg, leg.held + used, leg.held_len - used)
    _arm(k, leg)


cdef void _arm(LinkState* k, LegState* leg) noexcept nogil:
    cdef LegState* peer = k.server if leg == k.client else k.client
    leg.reading = not k.ended and peer.out_len == 0 and (k.wait == 0 if leg == k.client else k.pause == 0)
    leg_update(leg)


cdef void _follow(LinkState* k) noexcept nogil:
    # After the server's word: does it end what the client's next message waits for?
    if (k.wait == WAIT_DRAIN and k.pending_names == 0 and k.pending_portals == 0) or (k.wait == WAIT_ROOM and k.queue.count < OUTSTANDING // 2) or \
            (k.wait == WAIT_DRAIN and k.queue.count == 0):
        k.wait = 0
        _pump(k, k.client)


cdef void _readable(LinkState* k, LegState* leg) noexcept nogil:
    cdef LegState* peer = k.server if leg == k.client else k.client
    cdef bint client = leg == k.client
    cdef ReactorState* r = k.reactor
    cdef ssize_t got
    cdef size_t used, room
    cdef int reads = 0
    cdef uint8_t* buf
    while leg.reading and not k.ended:
        if leg.held_len:
            room = leg.held_len if leg.held_len > 16384 else 16384
            if room > 1048576:
                room = 1048576
            if leg_room(leg, room) < 0:
                leg.broken = True
                break
            got = leg_recv(leg, leg.held + leg.held_len, room)
            if got <= 0:
                break
            leg.held_len += <size_t>got
            used = agent_process(k, leg.held, leg.held_len) if client else server_process(k, leg.held, leg.held_len)
            leg_hold(leg, leg.held + used, leg.held_len - used)
        else:
            room = r.shared_cap
            buf = r.shared
            got = leg_recv(leg, buf, room)
            if got <= 0:
                break
            used = agent_process(k, buf, <size_t>got) if client else server_process(k, buf, <size_t>got)
            if leg_hold(leg, buf + used, <size_t>got - used) < 0:
                leg.broken = True
                break
        leg.reading = not k.ended and peer.out_len == 0 and (k.wait == 0 if client else k.pause == 0)
        if not client:
            _follow(k)
        reads += 1
        if leg.ssl != NULL:
            if tls_has_pending(leg.ssl):
                continue
            if reads < READS:
                continue
            break
        if <size_t>got < room or reads >= READS:
            break
    else:
        got = 1
    if got == 0:
        leg.eof = True
        leg.reading = False
        _gone(leg)
        return
    if got == -2 or leg.broken:
        leg.broken = True
        leg.reading = False
        _gone(leg)
        return
    _arm(k, leg)
    leg_update(peer)


cdef void _ready(LegState* leg, uint32_t events) noexcept nogil:
    cdef LinkState* k = <LinkState*>leg.link
    cdef LegState* peer
    cdef epoll_event ev
    if leg.cold or k == NULL:
        # one call; whoever waits arms it again
        if leg.registered:
            epoll_ctl(leg.reactor.epfd, EPOLL_CTL_DEL, leg.fd, &ev)
            leg.registered = False
        leg_up(leg, UP_COLD)
        return
    peer = k.server if leg == k.client else k.client
    if events & EPOLLOUT and leg.out_len:
        leg_push(leg)
        if leg.out_len == 0:
            _pump(k, peer)
            if peer.reading and peer.ssl != NULL and tls_has_pending(peer.ssl):
                _readable(k, peer)
            if peer == k.server:
                _follow(k)
    if events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP) and leg.reading:
        _readable(k, leg)
    elif events & (EPOLLHUP | EPOLLERR):
        _gone(leg)
        return
    elif events & EPOLLRDHUP and not leg.gone:
        leg.gone = True
        leg_up(leg, UP_GONE)
    leg_update(leg)


cdef class Reactor:
    """One worker's event set. Register ``fileno()`` for reading with the event loop and call ``turn`` when it is ready.

    ``journal`` and ``recorder`` are the open journals that statements and recordings go to.
    """

    def __cinit__(self, Journal journal, Journal recorder):
        memset(&self.st, 0, sizeof(ReactorState))
        self.st.epfd = epoll_create1(EPOLL_CLOEXEC)
        if self.st.epfd < 0:
            raise OSError(errno, os.strerror(errno))
        self.st.shared = <uint8_t*>malloc(SHARED)
        if self.st.shared == NULL:
            raise MemoryError
        self.st.shared_cap = SHARED
        self.st.now_us = _now()
        self.st.seed = int.from_bytes(os.urandom(8), "little")
        self.journal = journal
        self.recorder = recorder
        self.st.journal = <void*>journal.st
        self.st.recorder = <void*>recorder.st

    def __dealloc__(self):
        cache_clear(&self.st)
        graveyard_empty(&self.st)
        free(self.st.cache)
        free(self.st.queue)
        free(self.st.shared)
        if self.st.epfd >= 0:
            c_close(self.st.epfd)

    def _state(self):
        return <size_t>&self.st

    def fileno(self):
        """The descriptor that is readable when ``turn`` has something to do."""
        return self.st.epfd

    def turn(self):
        """Handle everything that is ready, then call the handlers that are asked for."""
        cdef epoll_event events[BATCH]
        cdef int i, n
        with nogil:
            n = epoll_wait(self.st.epfd, events, BATCH, 0)
            self.st.now_us = _now()
            for i in range(n):
                _ready(<LegState*>events[i].data.ptr, events[i].events)
        if self.st.queue_len or self.st.graveyard != NULL:
            self.deliver()

    cdef deliver(self):
        cdef size_t i = 0
        cdef LegState* leg
        cdef uint32_t up
        if self.delivering:
            return
        self.delivering = True
        try:
            while i < self.st.queue_len:
                leg = <LegState*>self.st.queue[i]
                i += 1
                if leg == NULL:
                    continue
                up = leg.up
                leg.up = 0
                leg.queued = False
                owner = <object>leg.owner
                try:
                    if leg.link == NULL:
                        waiter = (<Leg>owner).waiter
                        if waiter is not None:
                            waiter()
                    else:
                        (<Link>(<LinkState*>leg.link).owner).handler(up & ~<uint32_t>UP_COLD, leg.side == 0)
                except Exception:
                    sys.excepthook(*sys.exc_info())
                    if leg.link != NULL:
                        (<LinkState*>leg.link).ended = True
        finally:
            self.st.queue_len = 0
            self.delivering = False
        graveyard_empty(&self.st)

    def forget_verdicts(self):
        """Empty the verdict cache: nothing decided before is used again."""
        cache_clear(&self.st)
        graveyard_empty(&self.st)


cdef class Link:
    """Two legs joined. ``handler(bits, from_client)`` is told what is wanted; see the constants of this module.

    ``session`` is the journal's session number; ``statement_bytes`` what is recorded of one statement, 0 for nothing;
    ``max_statement`` the longest statement text in bytes.
    """

    def __cinit__(self, Reactor reactor, Leg client, Leg server, uint64_t session, handler, size_t statement_bytes=0, uint32_t max_statement=16777216):
        memset(&self.st, 0, sizeof(LinkState))
        self.reactor = reactor
        self.client_leg = client
        self.server_leg = server
        self.handler = handler
        self.st.owner = <void*>self
        self.st.client = &client.st
        self.st.server = &server.st
        self.st.reactor = &reactor.st
        self.st.session = session
        self.st.max_statement = max_statement
        self.st.status = c'I'
        self.st.recording = statement_bytes > 0
        self.st.record_limit = self.st.record_left = statement_bytes

    def __dealloc__(self):
        cdef LinkState* k = &self.st
        self._unlink()
        while k.queue.count:
            queue_pop(k.reactor, &k.queue)
        free(k.queue.items)
        names_clear(k.reactor, &k.statements, False)
        names_clear(k.reactor, &k.portals, True)
        stmt_release(k.reactor, k.admitted)
        free(k.filtered)
        free(k.told)

    cdef _unlink(self):
        if self.client_leg is not None:
            self.client_leg.st.link = NULL
            self.client_leg.st.cold = True
        if self.server_leg is not None:
            self.server_leg.st.link = NULL
            self.server_leg.st.cold = True

    cdef _after(self):
        if self.reactor.st.queue_len or self.reactor.st.graveyard != NULL:
            self.reactor.deliver()

    def start(self):
        """From now on the reactor drives both legs."""
        cdef LegState* c = self.st.client
        cdef LegState* s = self.st.server
        c.side = 0
        s.side = 1
        c.link = s.link = <void*>&self.st
        c.cold = s.cold = False
        self.started = True
        self.reactor.st.now_us = _now()
        _pump(&self.st, c)
        _pump(&self.st, s)
        if c.ssl != NULL and c.reading and tls_has_pending(c.ssl):
            _readable(&self.st, c)
        if s.ssl != NULL and s.reading and tls_has_pending(s.ssl):
            _readable(&self.st, s)
        self._after()

    def set_policy(self, uint64_t key, bint scrub):
        """``key`` names what verdicts depend on; ``scrub``: errors and notices are shown to Python first."""
        self.st.key = key
        self.st.scrub = scrub

    def request(self):
        """What waits for a decision: (kind, text, name, portal, parameters, formats, reason to refuse or None).

        ``kind`` is b"Q", b"P", b"E" or b"F". None when nothing waits.
        """
        cdef LegState* c = self.st.client
        cdef Message m
        cdef Portal* p
        cdef ssize_t n, n2
        cdef Named** at
        if self.st.wait != WAIT_ADMIT or client_frame(c.held, c.held_len, &m) != FRAME_WHOLE:
            return None
        problem = None
        if self.st.failed_audit:
            problem = "audit"
        if m.kind == c'Q':
            return b"Q", (<const char*>m.body)[:m.n - 1], "", "", (), (), problem
        if m.kind == c'P':
            n = name_length(m.body, m.n)
            n2 = name_length(m.body + n + 1, m.n - n - 1)
            return b"P", (<const char*>m.body + n + 1)[:n2], (<const char*>m.body)[:n].decode("utf-8", "replace"), "", (), (), problem
        if m.kind == c'E':
            n = name_length(m.body, m.n)
            name = (<const char*>m.body)[:n].decode("utf-8", "replace")
            p = meant_portal(&self.st, m.body, n)
            if p == NULL or p.stmt == NULL:
                return b"E", b"", "", name, (), (), "portal"
            return b"E", (<const char*>p.stmt.text)[:p.stmt.text_len], "", name, *portal_values(p), problem
        if m.kind == c'F':
            return b"F", b"%d" % load32(m.body), "", "", (), (), problem
        return None

    def admit(self, bytes text, bint allowed, bint masked, bint cacheable, bint settles):
        """Send the waiting message on. ``allowed``: it may also run without being asked for again (a prepared text)."""
        cdef Stmt* s
        if self.st.wait != WAIT_ADMIT:
            return
        if self.st.stale:
            self._anew()
            return
        s = stmt_new(&self.reactor.st, self.st.key, <const uint8_t*><const char*>text, len(text))
        if s == NULL:
            raise MemoryError
        s.flags = (ALLOWED if allowed else 0) | (MASKED if masked else 0) | (SETTLES if settles else 0)
        if cacheable and allowed and not settles:
            cache_put(&self.reactor.st, s)
        stmt_release(&self.reactor.st, self.st.admitted)
        self.st.admitted = s
        self.st.failed_audit = False
        self.st.wait = 0
        self.reactor.st.now_us = _now()
        _pump(&self.st, self.st.client)
        self._after()

    def refuse(self, bytes error):
        """The waiting message is not sent; its sender gets ``error``, an ErrorResponse."""
        cdef LegState* c = self.st.client
        cdef int n
        if self.st.wait != WAIT_ADMIT:
            return
        if self.st.stale:
            self._anew()
            return
        self.st.failed_audit = False
        self.reactor.st.now_us = _now()
        n = refuse_next(&self.st, c.held, c.held_len, <const uint8_t*><const char*>error, len(error))
        if n > 0:
            leg_hold(c, c.held + n, c.held_len - n)
        self.st.wait = 0
        _pump(&self.st, c)
        leg_update(self.st.server)
        self._after()

    cdef _anew(self):
        # An error has come since: the waiting message may be skipped now, or mean something else. It is looked at again.
        self.st.stale = False
        self.st.wait = 0
        self.reactor.st.now_us = _now()
        _pump(&self.st, self.st.client)
        self._after()

    def settled(self):
        """Whether the statement that settles has succeeded."""
        return bool(self.st.settled_ok)

    def resume(self):
        """The policy follows what was settled: the client's next message may come."""
        if self.st.wait == WAIT_SETTLE:
            self.st.wait = 0
        _pump(&self.st, self.st.client)
        self._after()

    def describe_request(self):
        """Which rows need a plan: (text, index, row description body); None when none does."""
        cdef Message m
        cdef Entry* e
        cdef Stmt* s
        if self.st.pause != PAUSE_DESCRIBE or server_frame(self.st.server.held, self.st.server.held_len, &m) != FRAME_WHOLE:
            return None
        e = queue_at(&self.st.queue, 0)
        s = e.stmt if e.kind == c'Q' else e.portal.stmt
        return (<const char*>s.text)[:s.text_len], e.index if e.kind == c'Q' else 0, (<const char*>m.body)[:m.n]

    def set_plan(self, MaskPlan plan):
        """The plan that was asked for; None: nothing of these rows is masked."""
        cdef Message m
        cdef Entry* e
        cdef Stmt* s
        cdef Plan* p
        if self.st.pause != PAUSE_DESCRIBE or server_frame(self.st.server.held, self.st.server.held_len, &m) != FRAME_WHOLE:
            return
        e = queue_at(&self.st.queue, 0)
        s = e.stmt if e.kind == c'Q' else e.portal.stmt
        p = plan_add(s, e.index if e.kind == c'Q' else 0, m.body, m.n)
        if p == NULL:
            raise MemoryError
        if plan is not None:
            Py_INCREF(plan)
            p.object = <void*>plan
            p.state = plan.st
        self._unpause()

    def filter_request(self):
        """The message to clean: (kind, body); None when none waits."""
        cdef Message m
        if self.st.pause != PAUSE_FILTER or server_frame(self.st.server.held, self.st.server.held_len, &m) != FRAME_WHOLE:
            return None
        return bytes([m.kind]), (<const char*>m.body)[:m.n]

    def filtered(self, bytes message):
        """The message, cleaned and whole; empty bytes: nothing of it passes."""
        if self.st.pause != PAUSE_FILTER:
            return
        free(self.st.filtered)
        self.st.filtered = <uint8_t*>malloc(len(message) or 1)
        if self.st.filtered == NULL:
            raise MemoryError
        memcpy(self.st.filtered, <const char*>message, len(message))
        self.st.filtered_len = len(message)
        self.st.has_filtered = True
        self._unpause()

    cdef _unpause(self):
        self.st.pause = 0
        _pump(&self.st, self.st.server)
        if self.st.server.reading and self.st.server.ssl != NULL and tls_has_pending(self.st.server.ssl):
            _readable(&self.st, self.st.server)
        _follow(&self.st)
        leg_update(self.st.client)
        self._after()

    def define_name(self, bytes name, bytes text):
        """SQL's PREPARE has given ``name`` to ``text``: it may be bound, and is asked for when it is executed."""
        cdef void* old
        cdef Stmt* s = stmt_new(&self.reactor.st, self.st.key, <const uint8_t*><const char*>text, len(text))
        if s == NULL or names_put(&self.st.statements, <const uint8_t*><const char*>name, len(name), s, &old) < 0:
            raise MemoryError
        stmt_release(&self.reactor.st, <Stmt*>old)

    def forget_name(self, bytes name):
        """SQL's DEALLOCATE has dropped ``name``; None: all names."""
        if name is None:
            names_clear(&self.reactor.st, &self.st.statements, False)
        else:
            stmt_release(&self.reactor.st, <Stmt*>names_drop(&self.st.statements, <const uint8_t*><const char*>name, len(name)))

    def tell_client(self, bytes message):
        """Put a whole message between the server's messages to the client."""
        cdef uint8_t* more
        if self.st.server.stream_left == 0:
            to_client_copy(&self.st, <const uint8_t*><const char*>message, len(message))
            leg_push(self.st.client)
            leg_update(self.st.client)
            return
        more = <uint8_t*>realloc(self.st.told, self.st.told_len + len(message))
        if more == NULL:
            raise MemoryError
        memcpy(more + self.st.told_len, <const char*>message, len(message))
        self.st.told = more
        self.st.told_len += len(message)

    def end(self, bytes error):
        """Nothing passes any more; ``error`` is the client's last message. Both legs are Python's again."""
        self.st.ended = True
        if error and self.st.server.stream_left == 0 and not self.st.client.broken:
            to_client_copy(&self.st, <const uint8_t*><const char*>error, len(error))
        leg_push(self.st.client)
        self._finish_outstanding()
        self._unlink()

    cdef _finish_outstanding(self):
        # what has no outcome yet gets one: the session ended first
        cdef size_t i
        cdef Entry* e
        for i in range(self.st.queue.count):
            e = queue_at(&self.st.queue, i)
            if e.begin:
                memcpy(e.sqlstate, <const char*>b"08006", 6)
                finish(&self.st, e, 4)

    @property
    def problem(self):
        """(SQLSTATE, why) when the session can't go on."""
        if self.st.problem == NULL:
            return None
        return (<bytes>self.st.sqlstate).decode(), (<bytes>self.st.problem).decode()

    @property
    def waiting(self):
        """Whether the client's next message waits for a decision."""
        return self.st.wait == WAIT_ADMIT

    @property
    def quit(self):
        """The client has said goodbye."""
        return bool(self.st.quit)

    @property
    def told_why(self):
        """The server has told the client itself why it ends."""
        return bool(self.st.fatal)

    @property
    def status(self):
        """The transaction status last told by the server: I, T or E."""
        return chr(self.st.status)

    @property
    def statements(self):
        """How many statements were sent to the server."""
        return self.st.statements_run

    @property
    def outstanding(self):
        """How many replies are awaited."""
        return self.st.queue.count

    @property
    def audit_failed(self):
        """The journal did not take a record since the last time this was asked."""
        return bool(self.st.failed_audit)

"""The sessions linked in a reactor: what Python starts, is asked by, and answers.

A ``Link`` joins two legs after both logins. Its handler is called with a set of UP_* bits in the event loop's thread; it
may answer at once or later. Every method takes the reactor's lock for as long as it touches the link.

Never add: protocol meaning (:mod:`pgwire.hot.agent_side`, :mod:`pgwire.hot.server_side`), or a decision.
"""

from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from pgwire.hot.agent_side cimport refuse_next
from pgwire.hot.budget cimport Budget
from pgwire.hot.framing cimport FRAME_WHOLE, Message, client_frame, name_length, server_frame
from pgwire.hot.guard cimport guard_kept, guard_time_up
from pgwire.hot.leg cimport (
    UP_ADMIT, UP_BROKEN, UP_DESCRIBE, UP_FILTER, UP_GONE, UP_SETTLED, Leg, LegState, ReactorState, enter, leave, leg_hold, leg_join, leg_part, leg_push,
    leg_update,
)
from pgwire.hot.link cimport PAUSE_DESCRIBE, PAUSE_FILTER, WAIT_ADMIT, WAIT_SETTLE, finish, meant_portal, running_entry, send_ahead, to_client_copy
from pgwire.hot.masking cimport MaskPlan
from pgwire.hot.naming cimport define_cursor, define_name, forget_cursor, forget_name, meaning
from pgwire.hot.pipeline cimport (
    ALLOWED, COPIES_IN, MASKED, SETTLES, Entry, Guard, Named, Plan, Portal, Stmt, cache_put, guard_new, guard_release, names_clear, names_drop, names_find, names_put, plan_add,
    portal_new, portal_release, portal_values, portals_since, queue_at, queue_pop, shape_new, stmt_keep, stmt_new, stmt_release, stmt_sends,
)
from pgwire.hot.reactor cimport Reactor, clock, follow, pump
from pgwire.hot.wire cimport load32

ADMIT = UP_ADMIT
DESCRIBE = UP_DESCRIBE
FILTER = UP_FILTER
SETTLED = UP_SETTLED
GONE = UP_GONE
BROKEN = UP_BROKEN


cdef object _read_name(bytes name):
    # None: it is not UTF-8
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return None


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
        self.st.synced = True
        self.st.recording = statement_bytes > 0
        self.st.record_limit = self.st.record_left = statement_bytes

    def __dealloc__(self):
        cdef LinkState* k = &self.st
        if k.reactor == NULL:
            return
        enter(k.reactor)
        self._unlink()
        while k.queue.count:
            queue_pop(k.reactor, &k.queue)
        free(k.queue.items)
        names_clear(k.reactor, &k.statements, False)
        names_clear(k.reactor, &k.portals, True)
        stmt_release(k.reactor, k.admitted)
        free(k.filtered)
        free(k.told)
        free(k.changed)
        leave(k.reactor)

    cdef _unlink(self):
        for leg in (self.client_leg, self.server_leg):
            if leg is not None and (<Leg>leg).st.link == <void*>&self.st:
                leg_part(&(<Leg>leg).st)
                (<Leg>leg).st.link = NULL

    cdef _after(self):
        if self.reactor.st.queue_len or self.reactor.st.graveyard != NULL:
            self.reactor.deliver()

    def start(self):
        """From now on the reactor drives both legs. Raises MemoryError."""
        cdef LegState* c = self.st.client
        cdef LegState* s = self.st.server
        cdef int failed
        enter(self.st.reactor)
        failed = leg_join(c) < 0 or leg_join(s) < 0
        if not failed:
            c.side = 0
            s.side = 1
            c.link = s.link = <void*>&self.st
            clock(self.st.reactor)
            pump(&self.st, c)
            pump(&self.st, s)
        leave(self.st.reactor)
        if failed:
            raise MemoryError
        self._after()

    def set_policy(self, uint64_t key, bint scrub, Budget budget=None, bint typed=False):
        """``key`` names what verdicts depend on; ``scrub``: errors and notices are shown to Python first; ``budget``: what
        statements that need no asking are taken from; ``typed``: the types that Parse tells are wanted."""
        enter(self.st.reactor)
        self.st.key = key
        self.st.scrub = scrub
        self.st.typed = typed
        self.budget = budget
        self.st.budget = &budget.st if budget is not None else NULL
        leave(self.st.reactor)

    def request(self):
        """What waits for a decision: (kind, text, name, portal, parameters, formats, types, reason to refuse or None).

        ``kind`` is b"Q", b"P", b"E" or b"F". None when nothing waits.
        """
        enter(self.st.reactor)
        try:
            return self._request()
        finally:
            leave(self.st.reactor)

    cdef _request(self):
        cdef LegState* c = self.st.client
        cdef Message m
        cdef Portal* p
        cdef ssize_t n, n2
        if self.st.wait != WAIT_ADMIT or client_frame(c.held, c.held_len, &m) != FRAME_WHOLE:
            return None
        problem = None
        if self.st.failed_audit:
            problem = "audit"
        if m.kind == c'Q':
            return b"Q", (<const char*>m.body)[:m.n - 1], "", "", (), (), (), problem
        if m.kind == c'P':
            n = name_length(m.body, m.n)
            n2 = name_length(m.body + n + 1, m.n - n - 1)
            name = _read_name((<const char*>m.body)[:n])
            return b"P", (<const char*>m.body + n + 1)[:n2], name or "", "", (), (), (), "name" if name is None else problem
        if m.kind == c'E':
            n = name_length(m.body, m.n)
            name = _read_name((<const char*>m.body)[:n])
            if name is None:
                return b"E", b"", "", "", (), (), (), "name"
            p = meant_portal(&self.st, m.body, n)
            if p == NULL or p.stmt == NULL:
                return b"E", b"", "", name, (), (), (), "portal"
            return b"E", (<const char*>p.stmt.text)[:p.stmt.text_len], "", name, *portal_values(p), problem
        if m.kind == c'F':
            return b"F", b"%d" % load32(m.body), "", "", (), (), (), problem
        return None

    def admit(self, bytes text, bint allowed, bint masked, bint cacheable, bint settles, bint any_literals=False, bint copies_in=False, kept=None, bytes sends=None, bytes ahead=b"", uint32_t replies=0):
        """Send the waiting message on. ``allowed``: it may also run without being asked for again (a prepared text).

        ``cacheable``: the same text needs no asking any more; ``any_literals``: nor does one that differs only in literals.
        ``copies_in``: it reads rows from the client (COPY FROM STDIN). ``kept`` is what holds while it runs: see ``guard_new``.
        ``sends`` goes to the server in place of a Query's or Parse's text; before it ``ahead``, of whose ``replies`` nobody hears.
        """
        cdef ReactorState* r = self.st.reactor
        cdef Guard* guard = guard_new(kept) if kept is not None else NULL
        cdef Stmt* s
        cdef Stmt* shape = NULL
        cdef bint lost = False
        enter(r)
        if self.st.wait == WAIT_ADMIT:
            clock(r)
            if self.st.stale:
                self._anew()
            else:
                s = stmt_new(r, self.st.key, <const uint8_t*><const char*>text, len(text))
                lost = s == NULL or (sends is not None and not stmt_sends(s, <const uint8_t*><const char*>sends, len(sends)))
                lost = lost or (replies and not send_ahead(&self.st, <const uint8_t*><const char*>ahead, len(ahead), replies))
                if not lost:
                    s.flags = (ALLOWED if allowed else 0) | (MASKED if masked else 0) | (SETTLES if settles else 0) | (COPIES_IN if copies_in else 0)
                    s.guard = guard
                    guard = NULL
                    if cacheable and allowed and not settles:
                        if any_literals:
                            shape = shape_new(r, self.st.key, <const uint8_t*><const char*>text, len(text))
                        if shape != NULL:
                            shape.flags = s.flags
                            stmt_keep(shape, s.guard)
                            cache_put(r, shape)
                            s.shape = shape
                        else:
                            cache_put(r, s)
                    stmt_release(r, self.st.admitted)
                    self.st.admitted = s
                    self.st.failed_audit = False
                    self.st.wait = 0
                    pump(&self.st, self.st.client)
        leave(r)
        guard_release(guard)
        if lost:
            raise MemoryError
        self._after()

    def refuse(self, bytes error):
        """The waiting message is not sent; its sender gets ``error``, an ErrorResponse."""
        cdef LegState* c = self.st.client
        cdef int n
        enter(self.st.reactor)
        if self.st.wait == WAIT_ADMIT:
            clock(self.st.reactor)
            if self.st.stale:
                self._anew()
            else:
                self.st.failed_audit = False
                n = refuse_next(&self.st, c.held, c.held_len, <const uint8_t*><const char*>error, len(error))
                if n > 0:
                    leg_hold(c, c.held + n, c.held_len - n)
                self.st.wait = 0
                pump(&self.st, c)
                leg_update(self.st.server)
        leave(self.st.reactor)
        self._after()

    cdef void _anew(self) noexcept:
        # An error has come since: the waiting message may be skipped now, or mean something else. It is looked at again.
        self.st.stale = False
        self.st.wait = 0
        pump(&self.st, self.st.client)

    def settled(self):
        """Whether the statement that settles has succeeded."""
        return bool(self.st.settled_ok)

    def settled_results(self):
        """How many of its results were complete."""
        return self.st.settled_results

    def resume(self):
        """The policy follows what was settled: the client's next message may come."""
        enter(self.st.reactor)
        self.st.settling = False
        if self.st.wait == WAIT_SETTLE:
            self.st.wait = 0
        clock(self.st.reactor)
        pump(&self.st, self.st.client)
        leave(self.st.reactor)
        self._after()

    def freeze(self):
        """From now on nothing of the client moves, until ``thaw``; what runs on the server runs on."""
        enter(self.st.reactor)
        self.st.frozen = True
        pump(&self.st, self.st.client)
        leave(self.st.reactor)

    def thaw(self):
        """The client's messages move again."""
        enter(self.st.reactor)
        self.st.frozen = False
        clock(self.st.reactor)
        pump(&self.st, self.st.client)
        leave(self.st.reactor)
        self._after()

    def describe_request(self):
        """Which rows need a plan: (text, index, row description body); None when none does."""
        enter(self.st.reactor)
        try:
            return self._describe_request()
        finally:
            leave(self.st.reactor)

    cdef _describe_request(self):
        cdef Message m
        cdef Entry* e
        cdef Stmt* s
        if self.st.pause != PAUSE_DESCRIBE or server_frame(self.st.server.held, self.st.server.held_len, &m) != FRAME_WHOLE:
            return None
        e = queue_at(&self.st.queue, 0)
        s = e.stmt if e.kind == c'Q' else e.portal.stmt
        text = (<const char*>s.sample)[:s.sample_len] if s.sample != NULL else (<const char*>s.text)[:s.text_len]
        return text, e.index if e.kind == c'Q' else 0, (<const char*>m.body)[:m.n]

    def set_plan(self, MaskPlan plan):
        """The plan that was asked for; None: nothing of these rows is masked."""
        enter(self.st.reactor)
        try:
            self._set_plan(plan)
        finally:
            leave(self.st.reactor)
        self._after()

    cdef _set_plan(self, MaskPlan plan):
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
        enter(self.st.reactor)
        try:
            if self.st.pause != PAUSE_FILTER or server_frame(self.st.server.held, self.st.server.held_len, &m) != FRAME_WHOLE:
                return None
            return bytes([m.kind]), (<const char*>m.body)[:m.n]
        finally:
            leave(self.st.reactor)

    def filtered(self, bytes message):
        """The message, cleaned and whole; empty bytes: nothing of it passes."""
        cdef uint8_t* clean = <uint8_t*>malloc(len(message) or 1)
        if clean == NULL:
            raise MemoryError
        memcpy(clean, <const char*>message, len(message))
        enter(self.st.reactor)
        if self.st.pause == PAUSE_FILTER:
            free(self.st.filtered)
            self.st.filtered = clean
            self.st.filtered_len = len(message)
            self.st.has_filtered = True
            self._unpause()
        else:
            free(clean)
        leave(self.st.reactor)
        self._after()

    cdef void _unpause(self) noexcept:
        self.st.pause = 0
        clock(self.st.reactor)
        pump(&self.st, self.st.server)
        follow(&self.st)
        leg_update(self.st.client)

    def define_name(self, bytes name, bytes text):
        """SQL's PREPARE has given ``name`` to ``text``: it may be bound, and is asked for when it is executed."""
        define_name(&self.st, name, text)

    def define_cursor(self, bytes name, bytes text, bint holds):
        """SQL's DECLARE has opened ``name`` over ``text``; ``holds``: it outlives a commit."""
        define_cursor(&self.st, name, text, holds)

    def forget_name(self, bytes name):
        """SQL's DEALLOCATE has dropped ``name``; None: all names but the unnamed statement's."""
        forget_name(&self.st, name)

    def forget_cursor(self, bytes name):
        """SQL's CLOSE has dropped ``name``; None: all cursors and portals but the one that said so, the unnamed."""
        forget_cursor(&self.st, name)

    def mark(self):
        """The number of the newest portal: what ``forget_since`` takes."""
        return self.st.serial

    def forget_since(self, uint64_t mark):
        """A savepoint was rolled back to: what was opened after ``mark`` is gone."""
        enter(self.st.reactor)
        portals_since(self.st.reactor, &self.st.portals, mark)
        leave(self.st.reactor)

    def named(self, bint cursor, bytes name):
        """What a statement's or a cursor's name stands for now: (text, whether SQL declared it), or None."""
        return meaning(&self.st, cursor, name)

    def tell_client(self, bytes message):
        """Put a whole message between the server's messages to the client."""
        cdef uint8_t* more
        cdef bint lost = False
        enter(self.st.reactor)
        if self.st.server.stream_left == 0:
            to_client_copy(&self.st, <const uint8_t*><const char*>message, len(message))
            leg_push(self.st.client)
            leg_update(self.st.client)
        else:
            more = <uint8_t*>realloc(self.st.told, self.st.told_len + len(message))
            lost = more == NULL
            if not lost:
                memcpy(more + self.st.told_len, <const char*>message, len(message))
                self.st.told = more
                self.st.told_len += len(message)
        leave(self.st.reactor)
        if lost:
            raise MemoryError

    def abandon(self):
        """Its handler has failed: nothing passes any more."""
        self.st.ended = True

    def end(self, bytes error):
        """Nothing passes any more; ``error`` is the client's last message. Both legs are Python's again."""
        enter(self.st.reactor)
        self.st.ended = True
        clock(self.st.reactor)
        if error and self.st.server.stream_left == 0 and not self.st.client.broken:
            to_client_copy(&self.st, <const uint8_t*><const char*>error, len(error))
        leg_push(self.st.client)
        self._finish_outstanding()
        self._unlink()
        leave(self.st.reactor)

    cdef void _finish_outstanding(self) noexcept:
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
    def goodbye(self):
        """The client has said goodbye, maybe behind messages that still have to be served."""
        cdef const uint8_t* p = self.st.client.held
        cdef size_t off = 0
        cdef Message m
        cdef bint said = self.st.quit
        enter(self.st.reactor)
        m.kind = 0
        while off < self.st.client.held_len and client_frame(p + off, self.st.client.held_len - off, &m) == FRAME_WHOLE:
            off += m.total
            said = said or m.kind == c'X'
        said = said and not self.st.ended
        leave(self.st.reactor)
        return bool(said)

    @property
    def at_rest(self):
        """Whether the server has done all it was told, outside a transaction and at a sync point, and its leg holds nothing more."""
        cdef LinkState* k = &self.st
        cdef LegState* s = k.server
        cdef bint rest
        enter(k.reactor)
        rest = k.synced and k.queue.count == 0 and k.status == c'I' and k.problem == NULL and not k.fatal
        rest = rest and not (k.copying or k.barrier or k.unsure or k.held_ready or k.pause or k.skipping or k.settling or k.frozen)
        rest = rest and not (s.broken or s.eof or s.gone or s.hung_up or s.held_len or s.out_len or s.span_len or s.stream_left) and s.fd >= 0
        leave(k.reactor)
        return bool(rest)

    @property
    def changes(self):
        """The ParameterStatus messages that the server sent since the start; None: they were too many to keep."""
        return None if self.st.changed_lost else (<const char*>self.st.changed)[:self.st.changed_len]

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
    def asked(self):
        """How often Python was asked for this session."""
        return self.st.asked

    @property
    def outstanding(self):
        """How many replies are awaited."""
        return self.st.queue.count

    @property
    def running(self):
        """The receipt of the statement whose replies come now; 0: none."""
        cdef uint64_t receipt
        cdef Entry* e
        enter(self.st.reactor)
        e = running_entry(&self.st)
        receipt = e.begin if e != NULL else 0
        leave(self.st.reactor)
        return receipt

    @property
    def kept(self):
        """(receipt, milliseconds or 0, whether its rows were too many) of the statement whose replies come now, or None."""
        return guard_kept(&self.st)

    def time_up(self, uint64_t receipt):
        """A statement is about to be cancelled because its time is up: its client is told so. False: it runs no more."""
        return guard_time_up(&self.st, receipt)

"""From the agent to the server: every message is understood, decided, journaled, and only then sent on.

What can't be decided here waits for Python: the message stays where it is (``WAIT_ADMIT``), and nothing behind it moves.
A name is taken from the tables only where the server's word about it can't change any more, so what is decided is what
the server will run.

Never add: a decision. Verdicts come from Python and from the cache.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy

from pgwire.hot.budget cimport budget_take
from pgwire.hot.guard cimport guard_begin
from pgwire.hot.framing cimport FRAME_BAD, FRAME_PART, Message, client_body_ok, client_frame, name_length
from pgwire.hot.journal cimport JournalState, journal_has_room
from pgwire.hot.leg cimport UP_ADMIT, UP_GONE, emit, emit_copy, leg_push, leg_up
from pgwire.hot.link cimport (
    COPY_ENDED, COPY_EXPECTED, COPY_REFUSED, COPY_RUNNING, OUTSTANDING, WAIT_ADMIT, WAIT_COPY, WAIT_DRAIN, WAIT_EMPTY, WAIT_END, WAIT_GUARD, WAIT_ROOM, WAIT_SETTLE,
    begin, flush_server, link_break, record, send_instead,
)
from pgwire.hot.pipeline cimport (
    ALLOWED, ANSWER, COPIES_IN, COPYING, GUARD_OPEN, MASKED, MASKING, SETTLES, SETTLING, SWALLOW, UNSURE, Entry, Portal, Stmt, Named, cache_find, entry_name,
    entry_named, names_find, portal_new, queue_at, queue_push, stmt_like, stmt_release, stmt_types,
)
from pgwire.hot.wire cimport load16, load32, store32

cdef enum:
    LARGEST_BIND = 64 * 1024 * 1024


cdef bint _wait(LinkState* k, int what) noexcept nogil:
    # False: the message stays. A verdict is asked for only when the server has answered everything: what the message
    # means then is what it means to the server, and no error can come in between that makes the server skip it.
    if what == WAIT_ADMIT and k.queue.count:
        what = WAIT_EMPTY
    k.wait = what
    if what == WAIT_ADMIT:
        leg_up(k.client, UP_ADMIT)
    else:
        flush_server(k)
    return False


cdef bint wait_over(LinkState* k) noexcept nogil:
    # After the server's word: does it end what the client's next message waits for?
    if k.wait == WAIT_DRAIN:
        return (k.pending_names == 0 and k.pending_portals == 0) or k.queue.count == 0
    if k.wait == WAIT_ROOM:
        return k.queue.count < OUTSTANDING // 2
    if k.wait == WAIT_GUARD:
        return not k.guarding
    if k.wait == WAIT_EMPTY:
        return k.queue.count == 0
    if k.wait == WAIT_COPY:
        return (k.copying == 0 or k.copying == COPY_RUNNING) and not k.barrier
    return False


cdef Entry* _push(LinkState* k, uint8_t kind) noexcept nogil:
    cdef Entry* e = queue_push(k.reactor, &k.queue, kind)
    if e == NULL:
        link_break(k, b"53200", b"out of memory")
        return NULL
    if kind == c'P' or kind == c'C':
        k.pending_names += 1
    elif kind == c'B' or kind == c'c':
        k.pending_portals += 1
    return e


cdef Stmt* _statement(LinkState* k, const uint8_t* name, size_t n, bint* unsettled) noexcept nogil:
    # The statement behind a name as the server will see it when it comes to it; NULL: there is none.
    cdef size_t i
    cdef Entry* e
    cdef bint own = True
    cdef Named** at
    unsettled[0] = False
    if k.pending_names:
        i = k.queue.count
        while i:
            i -= 1
            e = queue_at(&k.queue, i)
            if e.kind == c'S':
                own = False
            elif n == 0 and e.kind == c'Q':      # it drops the unnamed statement
                unsettled[0] = not own
                return NULL
            elif (e.kind == c'P' or e.kind == c'C') and entry_named(e, name, n):
                if own:
                    return e.stmt if e.disposition != ANSWER else NULL
                unsettled[0] = True
                return NULL
    at = names_find(&k.statements, name, n)
    return <Stmt*>at[0].what if at[0] != NULL else NULL


cdef Portal* _portal(LinkState* k, const uint8_t* name, size_t n, bint* unsettled) noexcept nogil:
    cdef size_t i
    cdef Entry* e
    cdef bint own = True
    cdef Named** at
    unsettled[0] = False
    if k.pending_portals:
        i = k.queue.count
        while i:
            i -= 1
            e = queue_at(&k.queue, i)
            if e.kind == c'S':
                own = False
            elif (e.kind == c'B' or e.kind == c'c') and entry_named(e, name, n):
                if own:
                    return e.portal
                unsettled[0] = True
                return NULL
    at = names_find(&k.portals, name, n)
    return <Portal*>at[0].what if at[0] != NULL else NULL


cdef void _forward(LinkState* k, const uint8_t* raw, size_t n) noexcept nogil:
    emit(k.server, raw, n)


cdef bint _journal(
    LinkState* k, uint8_t protocol, uint16_t flags, const uint8_t* text, size_t text_len, const uint8_t* values, size_t n, uint64_t* seq,
) noexcept nogil:
    seq[0] = begin(k, protocol, flags, text, text_len, values, n)
    if seq[0] == 0:
        k.failed_audit = True
        return False
    return True


cdef bint _journal_parsed(LinkState* k) noexcept nogil:
    # The Parse that waits for its record gets it. False: nothing may be sent, and the session ends.
    cdef Stmt* s = k.parsed
    k.parsed = NULL
    if s == NULL or begin(k, c'P', 0, s.text, s.text_len, NULL, 0):
        return True
    k.server.span_len = k.server.out_len = 0
    link_break(k, b"58030", b"the audit log can't be written")
    return False


cdef void _used(LinkState* k) noexcept nogil:
    if k.admitted != NULL:
        stmt_release(k.reactor, k.admitted)
        k.admitted = NULL


cdef Stmt* _decided(LinkState* k, const uint8_t* text, size_t n) noexcept nogil:
    # The statement with its verdict, or NULL: it has to be asked for.
    cdef Stmt* s
    if k.admitted != NULL:
        if k.admitted.text_len == n and memcmp(k.admitted.text, text, n) == 0:
            return k.admitted
        _used(k)
    s = cache_find(k.reactor, k.key, text, n)
    return s if s != NULL and s.flags & ALLOWED else NULL


cdef bint _run(
    LinkState* k, uint8_t kind, uint16_t flags, Stmt* s, Portal* portal, const uint8_t* text, size_t text_len, const uint8_t* values, size_t n,
) noexcept nogil:
    # Journal and queue one statement that is about to be sent, by its own text; False: it must not be.
    cdef uint64_t seq
    cdef Entry* e
    cdef bint counts = s.guard != NULL and kind != c'F' and (s.guard.most_rows >= 0 or s.guard.most_affected >= 0)
    cdef bint wraps = counts and kind == c'Q' and s.guard.wraps
    if wraps and k.queue.count:
        return _wait(k, WAIT_EMPTY)              # then it is known whether there is a transaction
    wraps = wraps and k.status == c'I'
    if k.budget != NULL and k.admitted == NULL and not budget_take(k.budget, k.reactor.now_us):
        return _wait(k, WAIT_ADMIT)
    if not _journal(k, kind, flags, text, text_len, values, n, &seq):
        return _wait(k, WAIT_ADMIT)
    if wraps and not guard_begin(k):
        return False
    e = _push(k, kind)
    if e == NULL:
        return False
    e.stmt = s
    s.refs += 1
    if counts:
        e.guard = GUARD_OPEN
        e.wrapped = wraps
        k.guarding = True
    if s.guard != NULL and s.guard.record >= 0 and <size_t>s.guard.record < k.record_left:
        k.record_left = <size_t>s.guard.record
    if portal != NULL:
        e.portal = portal
        portal.refs += 1
    e.begin = seq
    e.started = k.reactor.now_us
    if s.flags & MASKED:
        e.flags |= MASKING
    if s.flags & SETTLES:
        e.flags |= SETTLING
        k.settling = True
    if s.flags & COPIES_IN:
        e.flags |= COPYING
        k.copying = COPY_EXPECTED
    return True


cdef bint _query(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    cdef Stmt* s = _decided(k, m.body, m.n - 1)
    if s == NULL:
        return _wait(k, WAIT_ADMIT)
    if not _run(k, c'Q', 0, s, NULL, m.body, m.n - 1, NULL, 0):
        return False
    k.unflushed = False
    if s.sends != NULL:
        send_instead(k, s, c'Q', m.body, 0, raw, 0)
    else:
        _forward(k, raw, m.total)
    _used(k)
    return True


cdef bint _parse(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    cdef size_t name = name_length(m.body, m.n)
    cdef const uint8_t* text = m.body + name + 1
    cdef size_t n = name_length(text, m.n - name - 1)
    cdef Stmt* s = _decided(k, text, n)
    cdef Entry* e
    cdef uint64_t seq
    cdef bint late
    cdef const uint8_t* types
    cdef bint told
    if s == NULL:
        return _wait(k, WAIT_ADMIT)
    if not _journal_parsed(k):
        return False
    late = journal_has_room(<JournalState*>k.reactor.journal, n)
    if not late and not _journal(k, c'P', 0, text, n, NULL, 0, &seq):
        return _wait(k, WAIT_ADMIT)
    e = _push(k, c'P')
    if e == NULL:
        return False
    entry_name(e, m.body, name)
    types = text + n + 3
    told = k.typed and load16(text + n + 1) > 0
    if s.sample != NULL or told:
        e.stmt = stmt_like(k.reactor, s if s.shape == NULL else s.shape, text, n)
        if e.stmt == NULL or (told and not stmt_types(e.stmt, types, m.body + m.n - types)):
            link_break(k, b"53200", b"out of memory")
            return False
    else:
        e.stmt = s
        s.refs += 1
    if late:
        k.parsed = e.stmt                    # the queue holds it for as long as this pass lasts
    k.unflushed = True
    if s.sends != NULL:
        send_instead(k, s, c'P', m.body, name + 1, text + n + 1, m.body + m.n - text - n - 1)
    else:
        _forward(k, raw, m.total)
    _used(k)
    return True


cdef bint _bind(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    cdef size_t portal = name_length(m.body, m.n)
    cdef const uint8_t* name = m.body + portal + 1
    cdef size_t n = name_length(name, m.n - portal - 1)
    cdef const uint8_t* values = name + n + 1
    cdef const uint8_t* end = m.body + m.n
    cdef const uint8_t* q = values
    cdef uint32_t i, count, length
    cdef bint unsettled
    cdef Stmt* s = _statement(k, name, n, &unsettled)
    cdef Entry* e
    cdef Portal* made
    if unsettled:
        return _wait(k, WAIT_DRAIN)
    q += 2 + 2 * <size_t>load16(q)
    count = load16(q)
    q += 2
    for i in range(count):
        length = load32(q)
        q += 4
        if length != 0xFFFFFFFFU:
            q += length
    made = portal_new(s, q, end - q, values, q - values)
    if made == NULL:
        link_break(k, b"53200", b"out of memory")
        return False
    k.serial += 1
    made.serial = k.serial
    e = _push(k, c'B')
    if e == NULL:
        return False
    entry_name(e, m.body, portal)
    e.portal = made
    k.unflushed = True
    _forward(k, raw, m.total)
    return True


cdef bint _describe(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    cdef Portal* portal = NULL
    cdef bint unsettled = False
    cdef Entry* e
    if m.body[0] == c'P':
        portal = _portal(k, m.body + 1, m.n - 2, &unsettled)
        if unsettled:
            return _wait(k, WAIT_DRAIN)
    e = _push(k, c'd' if m.body[0] == c'P' else c'D')
    if e == NULL:
        return False
    if portal != NULL:
        e.portal = portal
        portal.refs += 1
        portal.described = True
    k.unflushed = True
    _forward(k, raw, m.total)
    return True


cdef bint _execute(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    cdef size_t n = name_length(m.body, m.n)
    cdef bint unsettled
    cdef Portal* portal = _portal(k, m.body, n, &unsettled)
    cdef Stmt* s
    cdef Entry* e
    cdef bint parsed
    cdef uint8_t head[6]
    if unsettled:
        return _wait(k, WAIT_DRAIN)
    if portal == NULL or portal.stmt == NULL:
        _used(k)
        return _wait(k, WAIT_ADMIT)          # nothing known to run: it is refused
    s = portal.stmt
    parsed = s == k.parsed                   # its record is that of the Parse too, which goes with it
    if k.admitted != NULL and (k.admitted.text_len != s.text_len or memcmp(k.admitted.text, s.text, s.text_len) != 0):
        _used(k)
    if k.admitted != NULL:
        s = k.admitted
    elif not s.flags & ALLOWED or s.key != k.key:
        s = cache_find(k.reactor, k.key, s.text, s.text_len)
        if s == NULL or not s.flags & ALLOWED:
            return _wait(k, WAIT_ADMIT)
    if s != portal.stmt:
        if s.sample != NULL:
            s = stmt_like(k.reactor, s, portal.stmt.text, portal.stmt.text_len)
            if s == NULL:
                link_break(k, b"53200", b"out of memory")
                return False
        else:
            s.refs += 1
        stmt_release(k.reactor, portal.stmt)
        portal.stmt = s
        portal.plan = NULL
        portal.described = False
        portal.no_rows = False
    if s.flags & MASKED and not portal.described:
        e = _push(k, c'd')
        if e == NULL:
            return False
        e.disposition = SWALLOW
        e.portal = portal
        portal.refs += 1
        portal.described = True
        head[0] = c'D'
        store32(head + 1, <uint32_t>(4 + 1 + n + 1))
        head[5] = c'P'
        emit_copy(k.server, head, 6)
        emit_copy(k.server, m.body, n + 1)
    if not _run(k, c'E', 1 if parsed else 0, s, portal, s.text, s.text_len, portal.values, portal.values_len):
        return False
    if parsed:
        k.parsed = NULL
    _used(k)
    k.unflushed = True
    _forward(k, raw, m.total)
    return True


cdef bint _close(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    cdef Entry* e = _push(k, c'C' if m.body[0] == c'S' else c'c')
    if e == NULL:
        return False
    entry_name(e, m.body + 1, m.n - 2)
    k.unflushed = True
    _forward(k, raw, m.total)
    return True


cdef bint _function(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    cdef char oid[16]
    cdef int digits = snprintf(oid, sizeof(oid), "%u", load32(m.body))
    if k.admitted != NULL and (k.admitted.text_len != <size_t>digits or memcmp(k.admitted.text, oid, digits) != 0):
        _used(k)
    if k.admitted == NULL:
        return _wait(k, WAIT_ADMIT)
    if not _run(k, c'F', 0, k.admitted, NULL, k.admitted.text, k.admitted.text_len, m.body, m.n):
        return False
    _used(k)
    k.unflushed = False
    _forward(k, raw, m.total)
    return True


cdef bint _copy_kind(uint8_t kind) noexcept nogil:
    return kind == c'd' or kind == c'c' or kind == c'f' or kind == c'S' or kind == c'H'


cdef bint _while_copying(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    # The server reads rows. It drops Sync and Flush; if it has failed by now it obeys Sync, so it decides.
    cdef Entry* e
    if m.kind == c'd':
        _forward(k, raw, m.total)
    elif m.kind == c'c' or m.kind == c'f':
        k.copying = COPY_ENDED
        k.unflushed = True
        _forward(k, raw, m.total)
    elif m.kind == c'S':
        e = _push(k, c'S')
        if e == NULL:
            return False
        e.flags |= UNSURE
        k.unsure += 1
        _forward(k, raw, m.total)
    elif m.kind != c'H':
        # The server would fail the COPY and lose its place in the stream. It may have failed already, and would then take
        # this message as usual; so it is not sent before the server has said which.
        k.copying = COPY_REFUSED
        k.copy_refused = m.kind
        emit_copy(k.server, <const uint8_t*><const char*>b"f\0\0\0\x1dpgleash: unexpected data\0", 30)
        return _wait(k, WAIT_COPY)
    return True


cdef bint _message(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    # True: used; False: it stays, and k.wait or k.ended says why
    cdef uint8_t kind = m.kind
    if k.copying == COPY_RUNNING:
        return _while_copying(k, m, raw)
    if k.copying or k.barrier:
        return _wait(k, WAIT_COPY)
    if k.guarding:
        return _wait(k, WAIT_GUARD)
    if kind == c'X':
        k.quit = True
        if k.queue.count:
            # the server does first what was sent before, and tells of it what it would have told
            k.wait = WAIT_END
            _forward(k, raw, m.total)
            return True
        k.ended = True
        k.client.gone = True                     # said now: that it closes its end is no news
        leg_up(k.client, UP_GONE)
        return True
    if kind == c'd' or kind == c'c' or kind == c'f':
        return True                              # outside COPY the server drops these, and so do we
    if k.skipping and kind != c'S':
        _used(k)
        return True
    if kind == c'H':
        k.unflushed = False
        _forward(k, raw, m.total)
        return True
    if kind == c'S':
        if _push(k, c'S') == NULL:
            return False
        k.skipping = False
        k.unflushed = False
        _forward(k, raw, m.total)
        return True
    if k.settling:
        return _wait(k, WAIT_SETTLE)
    if k.queue.count >= OUTSTANDING:
        return _wait(k, WAIT_ROOM)
    if kind == c'Q':
        return _query(k, m, raw)
    if kind == c'P':
        return _parse(k, m, raw)
    if kind == c'B':
        return _bind(k, m, raw)
    if kind == c'D':
        return _describe(k, m, raw)
    if kind == c'E':
        return _execute(k, m, raw)
    if kind == c'C':
        return _close(k, m, raw)
    if kind == c'F':
        return _function(k, m, raw)
    link_break(k, b"08P01", b"invalid frontend message type")
    return False


cdef size_t agent_process(LinkState* k, const uint8_t* p, size_t n) noexcept nogil:
    # Uses whole messages from p[0:n]; answers the bytes used. Everything to be sent has been pushed on return.
    cdef size_t off = 0, take
    cdef bint copying = k.copying == COPY_RUNNING             # what is copied in stands nowhere else; statements stand in the journal
    cdef Message m
    cdef int r
    while off < n and k.wait == 0 and not k.ended:
        if k.client.stream_left:
            take = n - off if n - off < k.client.stream_left else k.client.stream_left
            if not k.drop_stream:
                _forward(k, p + off, take)
            k.client.stream_left -= take
            off += take
            continue
        r = client_frame(p + off, n - off, &m)
        if k.copying == COPY_RUNNING and not _copy_kind(p[off]):
            m.kind = p[off]                      # the server says so without waiting for the rest of it
            _while_copying(k, &m, p + off)
            break
        if r == FRAME_BAD:
            link_break(k, b"08P01", b"invalid message from the client")
            break
        if m.total:
            if (m.kind == c'Q' or m.kind == c'P') and m.total > k.max_statement:
                link_break(k, b"54000", b"the statement is longer than this gateway accepts")
                break
            if m.total > LARGEST_BIND and m.kind != c'd':
                link_break(k, b"54000", b"the message is longer than this gateway accepts")
                break
            if m.kind == c'd' and r == FRAME_PART:
                if (k.copying and k.copying != COPY_RUNNING) or k.barrier:
                    _wait(k, WAIT_COPY)
                    break
                k.drop_stream = k.copying == 0
                k.client.stream_left = m.total
                continue
        if r == FRAME_PART:
            if k.copying and k.copying != COPY_RUNNING:
                _wait(k, WAIT_COPY)              # its first byte may be enough by then
            break
        if not client_body_ok(&m):
            if k.skipping and m.kind != c'S' and m.kind != c'X':
                off += m.total                   # the server does not look at what it skips
                continue
            if k.queue.count and k.copying == 0 and not k.barrier:
                _wait(k, WAIT_EMPTY)             # it may skip it yet
                break
            link_break(k, b"08P01", b"malformed message from the client")
            break
        if not _message(k, &m, p + off):
            break
        off += m.total
    if copying:
        record(k, c'>', p, off)
    if _journal_parsed(k):
        leg_push(k.server)
    return off


cdef int refuse_next(LinkState* k, const uint8_t* p, size_t n, const uint8_t* answer, size_t answer_len) noexcept nogil:
    # In place of the next message goes one that the server certainly refuses, so that both sides stay in the same state;
    # what it says is replaced by the answer. 0: done and the message's length is to be skipped; -1: no message here.
    cdef Message m
    cdef Entry* e
    cdef bint unnamed
    if client_frame(p, n, &m) != 1:
        return -1
    unnamed = m.kind == c'P' and m.body[0] == 0
    e = _push(k, m.kind if m.kind == c'Q' or m.kind == c'F' or unnamed else c'r')
    if e == NULL:
        return -1
    e.disposition = ANSWER
    e.started = k.reactor.now_us
    e.answer = <uint8_t*>malloc(answer_len)
    if e.answer == NULL:
        link_break(k, b"53200", b"out of memory")
        return -1
    memcpy(e.answer, answer, answer_len)
    e.answer_len = answer_len
    k.unflushed = m.kind != c'Q' and m.kind != c'F'
    if m.kind == c'Q':
        emit_copy(k.server, <const uint8_t*><const char*>b"Q\0\0\0\x0crefused\0", 13)
    elif m.kind == c'F':
        # function 0 does not exist; a Query would drop the unnamed statement
        emit_copy(k.server, <const uint8_t*><const char*>b"F\0\0\0\x0e\0\0\0\0\0\0\0\0\0\0", 15)
    elif unnamed:
        # as any Parse of the unnamed statement, it drops the one before
        entry_name(e, m.body, 0)
        emit_copy(k.server, <const uint8_t*><const char*>b"P\0\0\0\x10\0refused!\0\0\0", 17)
    else:
        emit_copy(k.server, <const uint8_t*><const char*>b"P\0\0\0\x17pgleash\0refused!\0\0\0", 24)
    _used(k)
    leg_push(k.server)
    return <int>m.total

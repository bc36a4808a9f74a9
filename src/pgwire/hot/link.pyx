"""What both directions of a session share: its end, its journal records, its recording, its queue's counters.

Never add: what one message kind means; that is :mod:`pgwire.hot.agent_side` and :mod:`pgwire.hot.server_side`.
"""

from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from pgwire.hot.journal cimport JOURNAL_BEGIN, JOURNAL_CHUNK, JOURNAL_END, JournalBegin, JournalChunk, JournalEnd, JournalState, journal_append
from pgwire.hot.leg cimport UP_BROKEN, emit, emit_copy, leg_push, leg_up
from pgwire.hot.pipeline cimport MASKING, SWALLOW, Entry, Named, Portal, Stmt, entry_named, names_find, queue_at, queue_pop, queue_push
from pgwire.hot.wire cimport store32


cdef enum:
    CHANGES = 1024               # bytes of ParameterStatus messages that are kept of one session


cdef void link_break(LinkState* k, const char* sqlstate, const char* why) noexcept nogil:
    if k.ended:
        return
    k.ended = True
    k.sqlstate = sqlstate
    k.problem = why
    leg_up(k.client, UP_BROKEN)


cdef void record(LinkState* k, uint8_t direction, const uint8_t* p, size_t n) noexcept nogil:
    # one CHUNK; when the statement's allowance is used up one last CHUNK says so
    cdef JournalChunk head
    if not k.recording or n == 0 or k.record_cut:
        return
    memset(&head, 0, sizeof(head))
    head.direction = direction
    if n > k.record_left:
        n = k.record_left
        head.flags = 1
        k.record_cut = True
    k.record_left -= n
    journal_append(<JournalState*>k.reactor.recorder, JOURNAL_CHUNK, 0, k.session, <const char*>&head, sizeof(head), <const char*>p, n, NULL, 0, k.reactor.real_us)


cdef void tape_flush(LinkState* k) noexcept nogil:
    if k.tape_len:
        record(k, c'<', k.tape, k.tape_len)
        k.tape_len = 0


cdef void to_client(LinkState* k, const uint8_t* p, size_t n) noexcept nogil:
    if k.recording and not k.record_cut:
        if k.tape_len and k.tape + k.tape_len == p:
            k.tape_len += n
        else:
            tape_flush(k)
            k.tape = p
            k.tape_len = n
    emit(k.client, p, n)


cdef void to_client_copy(LinkState* k, const uint8_t* p, size_t n) noexcept nogil:
    tape_flush(k)
    record(k, c'<', p, n)
    emit_copy(k.client, p, n)


cdef uint64_t begin(LinkState* k, uint8_t protocol, uint16_t flags, const uint8_t* text, size_t text_len, const uint8_t* values, size_t n) noexcept nogil:
    # The receipt; 0 means that the statement must not be sent.
    cdef JournalBegin b
    cdef uint64_t seq
    memset(&b, 0, sizeof(b))
    b.protocol = protocol
    b.flags = flags
    b.text_len = <uint32_t>text_len
    b.params_len = <uint32_t>n
    seq = journal_append(<JournalState*>k.reactor.journal, JOURNAL_BEGIN, 0, k.session, <const char*>&b, sizeof(b), <const char*>text, text_len, <const char*>values, n, k.reactor.real_us)
    if seq:
        k.statements_run += protocol != c'P'
    return seq


cdef void finish(LinkState* k, Entry* e, uint32_t flags) noexcept nogil:
    cdef JournalEnd j
    cdef uint64_t took
    if e.begin == 0:
        return
    memset(&j, 0, sizeof(j))
    j.begin_sequence = e.begin
    j.rows = e.rows
    j.bytes = e.bytes
    took = k.reactor.now_us - e.started
    j.duration_us = <uint32_t>took if took < 0xFFFFFFFFU else 0xFFFFFFFFU
    if e.sqlstate[0] == 0:
        memcpy(j.sqlstate, b"00000", 5)
    else:
        memcpy(j.sqlstate, e.sqlstate, 5)
    j.flags = <uint8_t>(flags | (1 if e.flags & MASKING else 0))
    if journal_append(<JournalState*>k.reactor.journal, JOURNAL_END, 0, k.session, <const char*>&j, sizeof(j), NULL, 0, NULL, 0, k.reactor.real_us) == 0:
        k.failed_audit = True
    e.begin = 0


cdef void flush_server(LinkState* k) noexcept nogil:
    # The server answers what it has: something waits for its word.
    if k.unflushed:
        emit_copy(k.server, <const uint8_t*><const char*>b"H\0\0\0\4", 5)
        k.unflushed = False


cdef void keep_change(LinkState* k, const uint8_t* raw, size_t n) noexcept nogil:
    # Who wants to use the server's connection again asks whether everything is as it was.
    cdef uint8_t* more = NULL
    if k.changed_lost:
        return
    if k.changed_len + n <= CHANGES:
        more = <uint8_t*>realloc(k.changed, k.changed_len + n)
    if more == NULL:
        free(k.changed)
        k.changed = NULL
        k.changed_len = 0
        k.changed_lost = True
        return
    memcpy(more + k.changed_len, raw, n)
    k.changed = more
    k.changed_len += n


cdef void pop(LinkState* k) noexcept nogil:
    cdef Entry* e = queue_at(&k.queue, 0)
    if e.kind == c'P' or e.kind == c'C':
        k.pending_names -= 1
    elif e.kind == c'B' or e.kind == c'c':
        k.pending_portals -= 1
    k.synced = False                             # only a ReadyForQuery may say otherwise
    queue_pop(k.reactor, &k.queue)


cdef Entry* running_entry(LinkState* k) noexcept nogil:
    """The statement whose outcome comes next; NULL: none. What only prepares it may still be before it."""
    cdef size_t i
    for i in range(k.queue.count):
        if queue_at(&k.queue, i).begin:
            return queue_at(&k.queue, i)
    return NULL


cdef Portal* meant_portal(LinkState* k, const uint8_t* name, size_t n) noexcept nogil:
    """The portal that the client means by a name now: the newest one sent for, else the one that there is; NULL: none."""
    cdef Entry* e
    cdef size_t i = k.queue.count
    cdef Named** at
    while i:
        i -= 1
        e = queue_at(&k.queue, i)
        if (e.kind == c'B' or e.kind == c'c') and entry_named(e, name, n):
            return e.portal
    at = names_find(&k.portals, name, n)
    return <Portal*>at[0].what if at[0] != NULL else NULL


cdef void send_instead(LinkState* k, Stmt* s, uint8_t kind, const uint8_t* name, size_t name_len, const uint8_t* tail, size_t tail_len) noexcept nogil:
    # The message with another text: name, text, tail.
    cdef uint8_t head[5]
    head[0] = kind
    store32(head + 1, <uint32_t>(4 + name_len + s.sends_len + 1 + tail_len))
    emit_copy(k.server, head, 5)
    emit_copy(k.server, name, name_len)
    emit_copy(k.server, s.sends, s.sends_len)
    emit_copy(k.server, <const uint8_t*><const char*>b"\0", 1)
    emit_copy(k.server, tail, tail_len)


cdef bint send_ahead(LinkState* k, const uint8_t* p, size_t n, uint32_t replies) noexcept nogil:
    # Messages of the gateway's own, ahead of the one that waits; what the server replies to them is nobody's.
    cdef Entry* e = queue_push(k.reactor, &k.queue, c'i')
    if e == NULL or emit_copy(k.server, p, n) < 0:
        return False
    e.disposition = SWALLOW
    e.index = replies
    leg_push(k.server)
    return True

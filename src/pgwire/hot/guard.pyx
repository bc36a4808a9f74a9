"""Statements whose rows are counted: those returned, and those affected as the command tag tells them.

What is too many must fail, and what it did must not stay. PostgreSQL commits before it tells the tag where a simple query is its
own transaction; so such a query gets a transaction of ours (BEGIN, and COMMIT or ROLLBACK behind it), whose replies the client does
not see, and its last CommandComplete waits for the COMMIT. Inside a transaction, and in the extended protocol, where Sync commits,
a statement that the server certainly refuses makes the transaction fail. Meanwhile nothing of the client is sent on.

Never add: a decision about what may be counted; what the tag does not tell is refused before it is sent.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from pgwire.hot.leg cimport emit_copy, enter, leave, leg_push
from pgwire.hot.link cimport link_break, pop, running_entry, to_client_copy
from pgwire.hot.pipeline cimport (
    COPIES_IN, GUARD_BEGIN, GUARD_COMMIT, GUARD_FAIL, GUARD_OPEN, GUARD_OVER, SWALLOW, Guard, queue_at, queue_push,
)
from pgwire.hot.wire cimport store32


cdef Entry* _own(LinkState* k, uint8_t what) noexcept nogil:
    cdef Entry* e = queue_push(k.reactor, &k.queue, c'g')
    if e == NULL:
        link_break(k, b"53200", b"out of memory")
        return NULL
    e.guard = what
    e.disposition = SWALLOW
    return e


cdef bint guard_begin(LinkState* k) noexcept nogil:
    # a transaction for the query that is sent next
    if _own(k, GUARD_BEGIN) == NULL:
        return False
    emit_copy(k.server, <const uint8_t*><const char*>b"Q\0\0\0\x0aBEGIN\0", 11)
    return True


cdef int64_t _counted(const uint8_t* tag, size_t n, bint copied) noexcept nogil:
    # the rows that a command tag says were written; 0: it is no write
    cdef int64_t count = 0
    cdef size_t i = n
    if not (
        (n > 7 and (memcmp(tag, <const char*>b"INSERT ", 7) == 0 or memcmp(tag, <const char*>b"UPDATE ", 7) == 0
                    or memcmp(tag, <const char*>b"DELETE ", 7) == 0))
        or (n > 6 and memcmp(tag, <const char*>b"MERGE ", 6) == 0) or (copied and n > 5 and memcmp(tag, <const char*>b"COPY ", 5) == 0)
    ):
        return 0
    while i and tag[i - 1] != c' ':
        i -= 1
    while i < n and c'0' <= tag[i] <= c'9':
        count = count * 10 + (tag[i] - c'0')
        i += 1
    return count


cdef void _tell(LinkState* k, Entry* e, int which, uint64_t number) noexcept nogil:
    # The error, with the number in the place of each U+E000; from now on nothing of the statement passes.
    cdef Guard* g = e.stmt.guard
    cdef const uint8_t* p = g.answers[which]
    cdef size_t n = g.lengths[which], i = 0, made = 0
    cdef char digits[24]
    cdef int count = snprintf(digits, sizeof(digits), "%llu", <unsigned long long>number)
    cdef uint8_t* to = <uint8_t*>malloc(n * 8 + 64)
    e.guard = GUARD_OVER
    memcpy(e.sqlstate, <const char*>b"53400", 6)
    if to == NULL:
        link_break(k, b"53200", b"out of memory")
        return
    while i < n:
        if i + 2 < n and p[i] == 0xEE and p[i + 1] == 0x80 and p[i + 2] == 0x80:
            memcpy(to + made, digits, count)
            made += count
            i += 3
        else:
            to[made] = p[i]
            made += 1
            i += 1
    store32(to + 1, <uint32_t>(made - 1))
    to_client_copy(k, to, made)
    free(to)
    free(e.answer)
    e.answer = NULL
    e.answer_len = 0


cdef void guard_show(LinkState* k, Entry* e) noexcept nogil:
    # the CommandComplete that was held back: another message follows it
    if e.answer != NULL:
        to_client_copy(k, e.answer, e.answer_len)
        free(e.answer)
        e.answer = NULL
        e.answer_len = 0


cdef bint guard_rows(LinkState* k, Entry* e) noexcept nogil:
    # One more row: whether it may pass.
    if e.guard == GUARD_OVER:
        return False
    cdef uint64_t rows = e.rows + (e.portal.fetched if e.portal != NULL else 0)
    guard_show(k, e)
    if e.stmt.guard.most_rows >= 0 and rows >= <uint64_t>e.stmt.guard.most_rows:
        _tell(k, e, 0, rows + 1)
        return False
    return True


cdef void _fail(LinkState* k, Entry* e) noexcept nogil:
    # Behind an Execute: what the server refuses, so that it skips to the next Sync and takes back what was done.
    cdef Entry* r = queue_push(k.reactor, &k.queue, c'r')
    if r == NULL:
        link_break(k, b"53200", b"out of memory")
        return
    r.disposition = SWALLOW
    r.guard = GUARD_FAIL
    _succeed(k, r)
    emit_copy(k.server, <const uint8_t*><const char*>b"P\0\0\0\x17pgleash\0refused!\0\0\0H\0\0\0\4", 29)
    leg_push(k.server)
    k.unflushed = False


cdef bint guard_complete(LinkState* k, Entry* e, Message* m, const uint8_t* raw) noexcept nogil:
    # A result has ended. True: nothing more is to be done about it. An Execute that is over has had its end recorded by then.
    cdef int64_t most = e.stmt.guard.most_affected
    cdef uint8_t* kept
    if e.guard == GUARD_OPEN and most >= 0:
        if m.kind == c'C':
            e.affected += <uint64_t>_counted(m.body, m.n - 1, e.stmt.flags & COPIES_IN)
        if e.affected > <uint64_t>most or m.kind == c's':       # suspended: its tag may never come
            if e.kind == c'Q':
                guard_show(k, e)
            _tell(k, e, 1, e.affected if m.kind == c'C' else e.rows)
    if e.kind != c'Q':
        if e.guard == GUARD_OVER:
            _fail(k, e)
            return True
        if e.portal != NULL:
            e.portal.fetched += e.rows
        return False
    if m.kind == c'C':
        e.index += 1
    e.plan = NULL
    if e.guard == GUARD_OVER:
        return True
    guard_show(k, e)
    kept = <uint8_t*>malloc(m.total)
    if kept == NULL:
        link_break(k, b"53200", b"out of memory")
        return True
    memcpy(kept, raw, m.total)
    e.answer = kept
    e.answer_len = m.total
    return True


cdef void _succeed(LinkState* k, Entry* ours) noexcept nogil:
    # Our own entry, the only one behind the counted statement's, takes its place: the outcome is told when that is certain.
    cdef Entry* e = queue_at(&k.queue, 0)        # pushing may have moved it
    if k.queue.count != 2:
        link_break(k, b"08P01", b"messages were sent behind a statement whose rows are counted")
        return
    ours.begin = e.begin
    ours.started = e.started
    ours.rows = e.rows
    ours.bytes = e.bytes
    ours.index = e.index
    ours.flags = e.flags
    ours.stmt, e.stmt = e.stmt, NULL
    ours.answer, e.answer = e.answer, NULL
    ours.answer_len = e.answer_len
    memcpy(ours.sqlstate, e.sqlstate, 8)
    pop(k)


cdef bint guard_ready(LinkState* k, Entry* e, uint8_t status) noexcept nogil:
    # A counted query has ended. True: its ReadyForQuery is not told yet, and our own query behind it has taken its place.
    cdef Entry* ours
    cdef bint over = e.guard == GUARD_OVER, wrapped = e.wrapped
    if (not wrapped and (not over or status != c'T')) or (wrapped and status == c'I'):
        guard_show(k, e)
        return False
    ours = _own(k, GUARD_FAIL if over or status == c'E' else GUARD_COMMIT)
    if ours == NULL:
        return True
    _succeed(k, ours)
    if not wrapped:
        emit_copy(k.server, <const uint8_t*><const char*>b"Q\0\0\0\x0crefused\0", 13)
    elif ours.guard == GUARD_FAIL:
        emit_copy(k.server, <const uint8_t*><const char*>b"Q\0\0\0\x0dROLLBACK\0", 14)
    else:
        emit_copy(k.server, <const uint8_t*><const char*>b"Q\0\0\0\x0bCOMMIT\0", 12)
    leg_push(k.server)
    return True


cdef object guard_kept(LinkState* k):
    cdef Entry* e
    found = None
    enter(k.reactor)
    e = running_entry(k)
    if e != NULL and e.stmt != NULL and e.stmt.guard != NULL:
        found = e.begin, e.stmt.guard.timeout_ms, e.guard == GUARD_OVER
    leave(k.reactor)
    return found


cdef bint guard_time_up(LinkState* k, uint64_t receipt) except -1:
    cdef Entry* e
    cdef bint runs
    enter(k.reactor)
    e = running_entry(k)
    runs = e != NULL and e.begin == receipt and e.stmt != NULL and e.stmt.guard != NULL
    if runs:
        e.timed = True
    leave(k.reactor)
    return runs

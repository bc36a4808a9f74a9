"""From the server to the agent: each reply belongs to the first outstanding entry; rows that need a mask get it here.

A reply that does not fit what is outstanding ends the session: then nobody knows whose rows these are. Rows of a masked
statement without a plan never pass.

Never add: a decision about a column. Plans come from Python.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy

from pgwire.hot.fields cimport our_copy_fail, parameter_kept, state_of
from pgwire.hot.framing cimport FRAME_BAD, FRAME_PART, Message, name_length, row_run, server_frame
from pgwire.hot.guard cimport guard_complete, guard_ready, guard_rows, guard_show
from pgwire.hot.leg cimport UP_DESCRIBE, UP_FILTER, UP_SETTLED, LegState, ReactorState, emit_copy, leg_push, leg_up, out_room, spill
from pgwire.hot.link cimport COPY_ENDED, COPY_EXPECTED, COPY_REFUSED, COPY_RUNNING, WAIT_ADMIT, PAUSE_DESCRIBE, PAUSE_FILTER, finish, keep_change, link_break, pop, record, tape_flush, to_client, to_client_copy
from pgwire.hot.masking cimport MASK_BAD, MASK_FULL, PlanState, mask_bound, mask_run
from pgwire.hot.pipeline cimport (
    ANSWER, COPYING, GUARD_BEGIN, GUARD_COMMIT, GUARD_OVER, MASKING, SETTLING, SKIPPED, SWALLOW, UNSURE, Entry, Plan, Portal, Stmt, names_drop, names_put, plan_find,
    portal_release, portals_end, queue_at, queue_push, stmt_release,
)
from pgwire.hot.wire cimport load16, load32, store32

cdef enum:
    STREAMED = 16384                 # a row at least this long passes as it comes
    LARGEST = 64 * 1024 * 1024       # what must be seen whole may be this long
    HANDLED = 1
    STAYS = 0

cdef const uint8_t* _lit(const char* s) noexcept nogil:
    return <const uint8_t*>s


cdef bint _out_of_step(LinkState* k) noexcept nogil:
    link_break(k, b"08P01", b"the server's reply does not fit what was asked")
    return STAYS


cdef void _settled(LinkState* k, Entry* e, bint succeeded) noexcept nogil:
    # the client's next message goes on waiting until Python has drawn the consequences
    k.settled_ok = succeeded
    k.settled_epoch = k.epoch
    k.settled_results = e.index + (e.kind == c'E' and succeeded)
    leg_up(k.client, UP_SETTLED)


cdef void _end(LinkState* k, Entry* e, uint32_t flags) noexcept nogil:
    # a statement has its outcome
    finish(k, e, flags)
    if e.guard:
        k.guarding = False
    if e.flags & COPYING:
        e.flags &= <uint8_t>~COPYING
        k.copying = 0
    if e.kind == c'd' and e.portal != NULL and e.portal.plan == NULL:
        e.portal.described = False               # it has failed, or was skipped
    if e.flags & SETTLING:
        e.flags &= <uint8_t>~SETTLING
        _settled(k, e, e.sqlstate[0] == 0 and not flags)


cdef void _copied(LinkState* k, Entry* e) noexcept nogil:
    # A COPY that ended well has read every Sync sent while it ran; in a Query another one may follow.
    k.queue.count -= k.unsure
    k.unsure = 0
    k.copying = COPY_EXPECTED if e.kind == c'Q' else 0


cdef void _barrier(LinkState* k, bint skips) noexcept nogil:
    # Which of the Syncs sent while a COPY ran has the server read as part of it, before it failed? Another Sync and a Close
    # that does nothing tell: all ReadyForQuery before the CloseComplete are theirs, but the last, which is the barrier's.
    if queue_push(k.reactor, &k.queue, c'b') == NULL:
        link_break(k, b"53200", b"out of memory")
        return
    k.barrier = True
    k.barrier_skips = skips
    k.held_ready = 0
    emit_copy(k.server, _lit(b"S\0\0\0\4C\0\0\0\x0eP pgleash\0H\0\0\0\4"), 25)
    leg_push(k.server)
    k.unflushed = False


cdef void _barrier_passed(LinkState* k) noexcept nogil:
    cdef size_t left = 0
    cdef bint none
    while k.queue.count and queue_at(&k.queue, 0).kind != c'b':
        left += 1
        pop(k)
    pop(k)
    none = left == k.unsure
    k.unsure = 0
    k.barrier = False
    if k.barrier_skips and none:
        k.skipping = True                        # it read them all: without ours it would still skip


cdef void _lost(LinkState* k) noexcept nogil:
    # as the server words it, and ends for it
    cdef char text[160]
    cdef int n = snprintf(text + 5, sizeof(text) - 5, "SERROR%cVERROR%cC08P01%cMunexpected message type 0x%02X during COPY from stdin%c", 0, 0, 0, <int>k.copy_refused, 0)
    text[5 + n] = 0
    text[0] = c'E'
    store32(<uint8_t*>text + 1, <uint32_t>(n + 5))
    to_client_copy(k, <const uint8_t*>text, n + 6)
    link_break(k, b"08P01", b"terminating connection because protocol synchronization was lost")


cdef void _emit(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    if k.has_filtered:
        to_client_copy(k, k.filtered, k.filtered_len)
    else:
        to_client(k, raw, m.total)


cdef bint _error(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    cdef Entry* e
    cdef char state[8]
    cdef bint fatal
    cdef size_t i
    cdef bint synced = False
    cdef bint copied
    state_of(m.body, m.n, state, &fatal)
    if fatal or k.queue.count == 0:
        _emit(k, m, raw)
        k.fatal = k.fatal or fatal
        return HANDLED
    e = queue_at(&k.queue, 0)
    if e.kind == c'i':
        link_break(k, b"08006", b"the server refused what the gateway told it")    # nobody knows what it skips now
        return STAYS
    k.stale = k.wait == WAIT_ADMIT
    k.undone = True
    copied = e.flags & COPYING and k.copying != COPY_EXPECTED
    if copied and k.copying == COPY_REFUSED and our_copy_fail(m):
        _lost(k)
        return STAYS
    if e.disposition == ANSWER:
        to_client_copy(k, e.answer, e.answer_len)
    elif e.guard == GUARD_BEGIN:
        return _out_of_step(k)
    elif e.guard == GUARD_OVER or (e.disposition == SWALLOW and e.guard and e.guard != GUARD_COMMIT):
        pass                                     # it was told already why it fails
    elif e.timed and memcmp(state, _lit(b"57014"), 5) == 0:
        to_client_copy(k, e.stmt.guard.answers[2], e.stmt.guard.lengths[2])
    else:
        if e.guard and e.kind == c'Q':
            guard_show(k, e)
        _emit(k, m, raw)
    if e.sqlstate[0] == 0:
        memcpy(e.sqlstate, state, 6)
    if e.kind == c'Q' or e.kind == c'F' or e.kind == c'S' or e.kind == c'b' or e.kind == c'g':
        if e.flags & COPYING:
            e.flags &= <uint8_t>~COPYING
            k.copying = 0
            if k.unsure:
                _barrier(k, False)
        return HANDLED                       # ReadyForQuery ends it
    if e.kind == c'P' and e.name_len == 0:
        stmt_release(k.reactor, <Stmt*>names_drop(&k.statements, e.name, 0))
    _end(k, e, 0)
    pop(k)
    if copied and k.unsure:
        _barrier(k, True)
        return HANDLED
    # the server skips to the next Sync
    for i in range(k.queue.count):
        if queue_at(&k.queue, i).kind == c'S':
            synced = True
            break
    while k.queue.count and queue_at(&k.queue, 0).kind != c'S':
        e = queue_at(&k.queue, 0)
        memcpy(e.sqlstate, state, 6)             # what made the server skip it
        _end(k, e, 2)
        pop(k)
    if not synced:
        k.skipping = True
    return HANDLED


cdef bint _ready(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    cdef Entry* e
    cdef uint8_t ready[6]
    if m.n != 1 or k.queue.count == 0:
        return _out_of_step(k)
    e = queue_at(&k.queue, 0)
    if k.barrier and (e.kind == c'S' or e.kind == c'b'):
        if k.held_ready:
            if e.kind == c'b':
                return _out_of_step(k)
            memcpy(ready, _lit(b"Z\0\0\0\5"), 5)
            ready[5] = k.held_ready
            to_client_copy(k, ready, 6)
            pop(k)
        k.held_ready = k.status = m.body[0]
        return HANDLED
    if e.kind != c'Q' and e.kind != c'F' and e.kind != c'S' and e.kind != c'g':
        return _out_of_step(k)
    if e.guard == GUARD_BEGIN:
        if m.body[0] != c'T':
            return _out_of_step(k)
        pop(k)
        return HANDLED
    if e.disposition == ANSWER and e.sqlstate[0] == 0:
        return _out_of_step(k)
    k.status = m.body[0]
    if e.kind == c'Q':
        # a Query drops the unnamed statement, and the unnamed portal if anything ran
        stmt_release(k.reactor, <Stmt*>names_drop(&k.statements, e.name, 0))
        if e.index:
            portal_release(k.reactor, <Portal*>names_drop(&k.portals, e.name, 0))
        if e.guard and guard_ready(k, e, k.status):
            return HANDLED
    if e.kind != c'S':
        _end(k, e, 0)
    pop(k)
    k.synced = True
    if k.status == c'I':
        portals_end(k.reactor, &k.portals, k.undone)
        k.ended_undone = k.undone
        k.epoch += 1
    if k.status != c'E':
        k.undone = False
    to_client(k, raw, m.total)
    if k.recording:
        tape_flush(k)
        k.record_left = k.record_limit
        k.record_cut = False
    return HANDLED


cdef bint _row_description(LinkState* k, Entry* e, Message* m, const uint8_t* raw) noexcept nogil:
    cdef Stmt* s = NULL
    cdef Plan* plan
    cdef uint32_t index = 0
    if e.kind == c'Q':
        if e.disposition == ANSWER:
            return _out_of_step(k)
        if e.guard == GUARD_OVER:
            return HANDLED
        if e.guard:
            guard_show(k, e)
        if e.flags & MASKING:
            s = e.stmt
            index = e.index
    elif e.kind == c'd':
        if e.portal != NULL and e.portal.stmt != NULL and e.portal.stmt.flags & 2:
            s = e.portal.stmt
    elif e.kind != c'D':
        return _out_of_step(k)
    if s != NULL:
        plan = plan_find(s, index, m.body, m.n)
        if plan == NULL:
            k.pause = PAUSE_DESCRIBE
            leg_up(k.server, UP_DESCRIBE)
            return STAYS
        if e.kind == c'Q':
            e.plan = plan
        else:
            e.portal.plan = plan
    if e.disposition != SWALLOW:
        to_client(k, raw, m.total)
    if e.kind != c'Q':
        pop(k)
    return HANDLED


cdef bint _complete(LinkState* k, Entry* e, Message* m, const uint8_t* raw) noexcept nogil:
    # CommandComplete, EmptyQueryResponse, PortalSuspended: a result has ended
    if k.copying and e.flags & COPYING and k.copying != COPY_EXPECTED:
        if k.copying != COPY_ENDED:
            return _out_of_step(k)
        _copied(k, e)
    if m.n >= 7 and memcmp(m.body, _lit(b"COMMIT"), 7) == 0:
        k.undone = False
    elif m.n >= 9 and memcmp(m.body, _lit(b"ROLLBACK"), 9) == 0:
        k.undone = True
    if e.kind == c'g':
        if e.guard == GUARD_COMMIT:
            guard_show(k, e)                     # what it said before the transaction ended
        return HANDLED
    if e.guard:
        if guard_complete(k, e, m, raw):
            return HANDLED
    if e.kind == c'Q' and e.disposition != ANSWER and m.kind != c's':
        e.index += m.kind == c'C'                # an empty query has run nothing
        e.plan = NULL
        to_client(k, raw, m.total)
        return HANDLED
    if e.kind != c'E':
        return _out_of_step(k)
    to_client(k, raw, m.total)
    _end(k, e, 0)
    pop(k)
    return HANDLED


cdef bint _confirmed(LinkState* k, Entry* e, Message* m, const uint8_t* raw) noexcept nogil:
    # ParseComplete, BindComplete, CloseComplete: a name changes its meaning now
    cdef void* old = NULL
    if m.n != 0:
        return _out_of_step(k)
    if k.barrier and m.kind == c'3' and k.held_ready:
        _barrier_passed(k)
        return HANDLED
    if e.disposition == ANSWER:
        return _out_of_step(k)
    if m.kind == c'1' and e.kind == c'P':
        e.stmt.refs += 1
        if names_put(&k.statements, e.name, e.name_len, e.stmt, &old) < 0:
            link_break(k, b"53200", b"out of memory")
            return STAYS
        stmt_release(k.reactor, <Stmt*>old)
    elif m.kind == c'2' and e.kind == c'B':
        e.portal.refs += 1
        if names_put(&k.portals, e.name, e.name_len, e.portal, &old) < 0:
            link_break(k, b"53200", b"out of memory")
            return STAYS
        portal_release(k.reactor, <Portal*>old)
    elif m.kind == c'3' and e.kind == c'C':
        stmt_release(k.reactor, <Stmt*>names_drop(&k.statements, e.name, e.name_len))
    elif m.kind == c'3' and e.kind == c'c':
        portal_release(k.reactor, <Portal*>names_drop(&k.portals, e.name, e.name_len))
    else:
        return _out_of_step(k)
    to_client(k, raw, m.total)
    pop(k)
    return HANDLED


cdef bint _copy_in(LinkState* k, Entry* e, Message* m, const uint8_t* raw) noexcept nogil:
    if (e.kind != c'Q' and e.kind != c'E') or e.disposition == ANSWER or e.guard == GUARD_OVER:
        return _out_of_step(k)
    if e.guard:
        guard_show(k, e)
    if k.queue.count != 1:
        # Nobody knew that it would read rows. What was sent behind can't be called back, and the server takes it as rows:
        # every later answer would be taken for another statement's.
        link_break(k, b"08P01", b"messages were sent behind COPY FROM STDIN before its data")
        return STAYS
    e.flags |= COPYING
    k.copying = COPY_RUNNING
    to_client(k, raw, m.total)
    return HANDLED


cdef bint _message(LinkState* k, Message* m, const uint8_t* raw) noexcept nogil:
    cdef uint8_t kind = m.kind
    cdef Entry* e
    if kind == c'N' or kind == c'A':
        _emit(k, m, raw)
        return HANDLED
    if kind == c'S':
        if not parameter_kept(k, m):
            return STAYS
        keep_change(k, raw, m.total)
        to_client(k, raw, m.total)
        return HANDLED
    if kind == c'E':
        return _error(k, m, raw)
    if k.queue.count == 0:
        return _out_of_step(k)
    if kind == c'Z':
        return _ready(k, m, raw)
    e = queue_at(&k.queue, 0)
    if e.kind == c'i' and (kind == c'1' or kind == c'2' or kind == c'3' or kind == c'C'):
        e.index -= 1                             # to what the gateway itself has sent
        if e.index == 0:
            pop(k)
        return HANDLED
    if kind == c'T':
        return _row_description(k, e, m, raw)
    if kind == c'C' or kind == c'I' or kind == c's':
        return _complete(k, e, m, raw)
    if kind == c'1' or kind == c'2' or kind == c'3':
        return _confirmed(k, e, m, raw)
    if kind == c't':
        if e.kind != c'D':
            return _out_of_step(k)
        to_client(k, raw, m.total)
        return HANDLED
    if kind == c'n':
        if e.kind != c'D' and e.kind != c'd':
            return _out_of_step(k)
        if e.portal != NULL:
            e.portal.no_rows = True
            e.portal.described = True
        if e.disposition != SWALLOW:
            to_client(k, raw, m.total)
        pop(k)
        return HANDLED
    if kind == c'G':
        return _copy_in(k, e, m, raw)
    if kind == c'H' or kind == c'd' or kind == c'c':
        if e.kind != c'Q' and e.kind != c'E':
            return _out_of_step(k)
        if e.flags & MASKING:
            link_break(k, b"42501", b"COPY of masked data is refused")
            return STAYS
        if e.guard and kind == c'H':
            guard_show(k, e)
        if e.guard and (not guard_rows(k, e) if kind == c'd' else e.guard == GUARD_OVER):
            return HANDLED
        if kind == c'd':
            e.rows += 1
            e.bytes += m.total
        to_client(k, raw, m.total)
        return HANDLED
    if kind == c'V':
        if e.kind != c'F':
            return _out_of_step(k)
        to_client(k, raw, m.total)
        return HANDLED
    return _out_of_step(k)


cdef PlanState* _plan(LinkState* k, bint* ok) noexcept nogil:
    # The mask for the rows that come now; ok False: they may not pass
    cdef Entry* e
    cdef Plan* plan
    ok[0] = False
    if k.queue.count == 0:
        return NULL
    e = queue_at(&k.queue, 0)
    if (e.kind != c'Q' and e.kind != c'E') or e.disposition == ANSWER:
        return NULL
    if not e.flags & MASKING:
        ok[0] = True
        return NULL
    plan = e.plan if e.kind == c'Q' else (e.portal.plan if e.portal != NULL else NULL)
    if plan == NULL:
        return NULL
    ok[0] = True
    return plan.state


cdef uint8_t* _room(LinkState* k, size_t bound, size_t* room) noexcept nogil:
    # Where masked rows are written: the reactor's scratch, from which they are sent as they lie; a row too long for that
    # goes into the leg's own buffer. NULL: no memory.
    cdef ReactorState* r = k.reactor
    cdef LegState* c = k.client
    if bound <= r.scratch_cap:
        if r.scratch_cap - r.scratch_used < bound + c.span_len:
            leg_push(c)
            r.scratch_used = 0
        if c.span_len and c.span + c.span_len != r.scratch + r.scratch_used:
            memcpy(r.scratch + r.scratch_used, c.span, c.span_len)
            c.span = r.scratch + r.scratch_used
            r.scratch_used += c.span_len
        room[0] = r.scratch_cap - r.scratch_used
        return r.scratch + r.scratch_used
    if spill(c) < 0 or out_room(c, bound) < 0:
        return NULL
    room[0] = c.out_cap - c.out_off - c.out_len
    return c.out + c.out_off + c.out_len


cdef size_t _masked_rows(LinkState* k, PlanState* plan, const uint8_t* p, size_t n, size_t first) noexcept nogil:
    # Masks the whole rows at the start of p[0:n], of which the first has `first` bytes; answers the bytes used.
    cdef Entry* e = queue_at(&k.queue, 0)
    cdef size_t used = 0, consumed, produced, room = 0
    cdef uint64_t rows
    cdef int r = MASK_FULL
    cdef uint8_t* to
    tape_flush(k)
    while r == MASK_FULL:
        to = _room(k, mask_bound(plan, first), &room)
        if to == NULL:
            link_break(k, b"53200", b"out of memory")
            return used
        consumed = produced = 0
        rows = 0
        r = mask_run(plan, p + used, n - used, &consumed, to, room, &produced, &rows)
        record(k, c'<', to, produced)
        if to == k.reactor.scratch + k.reactor.scratch_used:
            k.reactor.scratch_used += produced
            if k.client.span_len:
                k.client.span_len += produced
            else:
                k.client.span = to
                k.client.span_len = produced
        else:
            k.client.out_len += produced
        e.rows += rows
        e.bytes += consumed
        used += consumed
        if r == MASK_FULL:
            if consumed == 0 and room > 2 * LARGEST:
                r = MASK_BAD
            elif n - used >= 5:
                first = <size_t>load32(p + used + 1) + 1
    if r == MASK_BAD:
        link_break(k, b"08P01", b"a row does not fit its description")
    return used


cdef size_t server_process(LinkState* k, const uint8_t* p, size_t n) noexcept nogil:
    # Uses whole messages from p[0:n] (long rows also in parts); answers the bytes used. All is pushed on return.
    cdef size_t off = 0, take, used
    cdef uint64_t rows
    cdef Message m
    cdef int r
    cdef bint ok
    cdef PlanState* plan
    cdef Entry* e
    k.reactor.scratch_used = 0
    while off < n and k.pause == 0 and not k.ended:
        if k.server.stream_left:
            take = n - off if n - off < k.server.stream_left else k.server.stream_left
            if not k.drop_rows:
                to_client(k, p + off, take)
            k.server.stream_left -= take
            off += take
            continue
        r = server_frame(p + off, n - off, &m)
        if r == FRAME_BAD:
            link_break(k, b"08P01", b"invalid message from the server")
            break
        if m.total == 0:
            break
        if m.kind == c'D':
            plan = _plan(k, &ok)
            if not ok:
                link_break(k, b"08P01", b"rows came that nothing allows to pass")
                break
            e = queue_at(&k.queue, 0)
            k.drop_rows = False
            if e.guard and not guard_rows(k, e):
                k.drop_rows = True
                k.server.stream_left = m.total
                continue
            if plan != NULL:
                if r == FRAME_PART:
                    if m.total > LARGEST:
                        link_break(k, b"54000", b"a masked row is longer than this gateway accepts")
                    break
                used = _masked_rows(k, plan, p + off, m.total if e.guard else n - off, m.total)
                off += used
                if used == 0:
                    break
                continue
            if r == FRAME_PART and m.total < STREAMED:
                break
            if r == FRAME_PART:
                e.rows += 1
                e.bytes += m.total
                k.server.stream_left = m.total
                continue
            take = row_run(p + off, m.total if e.guard else n - off, &rows)
            e.rows += rows
            e.bytes += take
            to_client(k, p + off, take)
            off += take
            continue
        if r == FRAME_PART:
            if m.kind == c'd' and m.total >= STREAMED:
                _plan(k, &ok)
                e = queue_at(&k.queue, 0)
                k.drop_rows = e.guard and not guard_rows(k, e)
                if not ok or e.flags & MASKING:
                    link_break(k, b"08P01", b"rows came that nothing allows to pass")
                    break
                e.rows += 1
                e.bytes += m.total
                k.server.stream_left = m.total
                continue
            if m.total > LARGEST:
                link_break(k, b"54000", b"the server's message is longer than this gateway accepts")
            break
        if k.scrub and not k.has_filtered and (m.kind == c'E' or m.kind == c'N' or m.kind == c'A'):
            k.pause = PAUSE_FILTER
            leg_up(k.server, UP_FILTER)
            break
        if not _message(k, &m, p + off):
            break
        if k.has_filtered:
            k.has_filtered = False
            free(k.filtered)
            k.filtered = NULL
        off += m.total
    if k.told_len and k.server.stream_left == 0:
        to_client_copy(k, k.told, k.told_len)
        free(k.told)
        k.told = NULL
        k.told_len = 0
    tape_flush(k)
    leg_push(k.client)
    return off

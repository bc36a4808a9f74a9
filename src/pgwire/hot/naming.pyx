"""What SQL does to a session's names: PREPARE, DECLARE, DEALLOCATE and CLOSE, told by Python once the server has confirmed them.

Never add: names that protocol messages give; the server's replies change those (:mod:`pgwire.hot.server_side`).
"""

from libc.stdint cimport uint8_t
from libc.string cimport memset

from pgwire.hot.leg cimport enter, leave
from pgwire.hot.pipeline cimport (
    Named, Portal, Stmt, names_clear, names_drop, names_find, names_put, portal_new, portal_release, stmt_new, stmt_release,
)


cdef int define_name(LinkState* k, bytes name, bytes text) except -1:
    """SQL's PREPARE has given ``name`` to ``text``: it may be bound, and is asked for when it is executed."""
    cdef void* old
    cdef Stmt* s
    cdef bint kept
    enter(k.reactor)
    s = stmt_new(k.reactor, k.key, <const uint8_t*><const char*>text, len(text))
    kept = s != NULL and names_put(&k.statements, <const uint8_t*><const char*>name, len(name), s, &old) == 0
    if kept:
        stmt_release(k.reactor, <Stmt*>old)
    leave(k.reactor)
    if not kept:
        raise MemoryError
    return 0


cdef int define_cursor(LinkState* k, bytes name, bytes text, bint holds) except -1:
    """SQL's DECLARE has opened ``name`` over ``text``; ``holds``: it outlives a commit."""
    cdef void* old = NULL
    cdef uint8_t none[4]
    cdef Portal* p = NULL
    cdef Stmt* s
    cdef bint kept, over
    memset(none, 0, 4)
    enter(k.reactor)
    over = k.epoch != k.settled_epoch
    if over and (k.ended_undone or not holds):     # it has ended with its transaction
        portal_release(k.reactor, <Portal*>names_drop(&k.portals, <const uint8_t*><const char*>name, len(name)))
        leave(k.reactor)
        return 0
    s = stmt_new(k.reactor, k.key, <const uint8_t*><const char*>text, len(text))
    if s != NULL:
        p = portal_new(s, none, 2, none, 4)
        stmt_release(k.reactor, s)
    kept = p != NULL and names_put(&k.portals, <const uint8_t*><const char*>name, len(name), p, &old) == 0
    if kept:
        k.serial += 1
        p.serial = k.serial
        p.declared = True
        p.holds = holds
        p.committed = over
        portal_release(k.reactor, <Portal*>old)
    leave(k.reactor)
    if not kept:
        raise MemoryError
    return 0


cdef int forget_name(LinkState* k, bytes name) except -1:
    """SQL's DEALLOCATE has dropped ``name``; None: all names but the unnamed statement's."""
    cdef Named** at
    cdef Stmt* unnamed = NULL
    cdef void* old
    enter(k.reactor)
    if name is None:
        at = names_find(&k.statements, NULL, 0)
        if at[0] != NULL:
            unnamed = <Stmt*>at[0].what
            unnamed.refs += 1
        names_clear(k.reactor, &k.statements, False)
        if unnamed != NULL and names_put(&k.statements, NULL, 0, unnamed, &old) < 0:
            stmt_release(k.reactor, unnamed)
    else:
        stmt_release(k.reactor, <Stmt*>names_drop(&k.statements, <const uint8_t*><const char*>name, len(name)))
    leave(k.reactor)
    return 0


cdef int forget_cursor(LinkState* k, bytes name) except -1:
    """SQL's CLOSE has dropped ``name``; None: all cursors and portals but the one that said so, the unnamed."""
    cdef Named** at
    cdef Portal* unnamed = NULL
    cdef void* old
    enter(k.reactor)
    if name is None:
        at = names_find(&k.portals, NULL, 0)
        if at[0] != NULL:
            unnamed = <Portal*>at[0].what
            unnamed.refs += 1
        names_clear(k.reactor, &k.portals, True)
        if unnamed != NULL and names_put(&k.portals, NULL, 0, unnamed, &old) < 0:
            portal_release(k.reactor, unnamed)
    else:
        portal_release(k.reactor, <Portal*>names_drop(&k.portals, <const uint8_t*><const char*>name, len(name)))
    leave(k.reactor)
    return 0


cdef object meaning(LinkState* k, bint cursor, bytes name):
    """What a statement's or a cursor's name stands for now: (text, whether SQL declared it), or None."""
    cdef Named** at
    cdef Portal* p
    cdef Stmt* s = NULL
    cdef bint declared = True
    enter(k.reactor)
    try:
        at = names_find(&k.portals if cursor else &k.statements, <const uint8_t*><const char*>name, len(name))
        if at[0] == NULL:
            return None
        if cursor:
            p = <Portal*>at[0].what
            s = p.stmt
            declared = p.declared
        else:
            s = <Stmt*>at[0].what
        return ((<const char*>s.text)[:s.text_len], bool(declared)) if s != NULL else None
    finally:
        leave(k.reactor)

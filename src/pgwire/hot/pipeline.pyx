"""The tables of a session: outstanding replies, prepared statements, portals; and the verdict cache of a worker.

A ``Stmt`` is a text with what was decided of it and the mask plans made for it. It is shared by reference count between
the cache (text and policy key -> Stmt), names and portals. A *shape* is a Stmt for all texts that differ only in literals,
where the policy has said that literals can't matter; a text of its own then points to it for its plans. Names are changed by :mod:`pgwire.hot.relay` only when the
server confirms them.

Never add: wire reading, or a decision.
"""

from cpython.ref cimport Py_DECREF, PyObject
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from pgwire.hot.canonical cimport LONGEST, canonical_form
from pgwire.hot.wire cimport hash_bytes, load16, load32

cdef enum:
    BUCKETS = 4096            # of the verdict cache
    QUEUE = 8                 # entries of a queue at first
    SPARE = 64                # queues of that size kept for the next link that needs one
    CACHED = 16384            # statements before old ones make room


cdef Stmt* stmt_new(ReactorState* r, uint64_t key, const uint8_t* text, size_t n) noexcept nogil:
    # one block: the statement and its text
    cdef Stmt* s = <Stmt*>malloc(sizeof(Stmt) + n)
    if s == NULL:
        return NULL
    memset(s, 0, sizeof(Stmt))
    s.text = <uint8_t*>s + sizeof(Stmt)
    memcpy(s.text, text, n)
    s.text_len = n
    s.refs = 1
    s.key = key
    s.hash = hash_bytes(r.seed ^ key, text, n)
    return s


cdef void stmt_release(ReactorState* r, Stmt* s) noexcept nogil:
    # the last reference to plans goes to the graveyard: they are Python objects, given back where the GIL is held
    if s == NULL:
        return
    s.refs -= 1
    if s.refs:
        return
    if s.shape != NULL:
        stmt_release(r, s.shape)
        s.shape = NULL
    guard_release(s.guard)
    free(s.types)
    free(s.sends)
    s.guard = NULL
    s.types = NULL
    s.sends = NULL
    if s.plans == NULL:
        free(s.sample)
        free(s)
        return
    s.next = <Stmt*>r.graveyard
    r.graveyard = s


cdef Guard* guard_new(object kept) except? NULL:
    # (most rows, most affected, milliseconds, bytes recorded, wraps, three ErrorResponses), where None means nothing
    cdef Guard* g = <Guard*>calloc(1, sizeof(Guard))
    cdef bytes answer
    if g == NULL:
        raise MemoryError
    g.refs = 1
    g.most_rows = -1 if kept[0] is None else kept[0]
    g.most_affected = -1 if kept[1] is None else kept[1]
    g.timeout_ms = kept[2] or 0
    g.record = -1 if kept[3] is None else kept[3]
    g.wraps = kept[4]
    for i in range(3):
        answer = kept[5 + i]
        g.answers[i] = <uint8_t*>malloc(len(answer) or 1)
        if g.answers[i] == NULL:
            guard_release(g)
            raise MemoryError
        memcpy(g.answers[i], <const char*>answer, len(answer))
        g.lengths[i] = len(answer)
    return g


cdef void guard_release(Guard* g) noexcept nogil:
    cdef int i
    if g == NULL:
        return
    g.refs -= 1
    if g.refs == 0:
        for i in range(3):
            free(g.answers[i])
        free(g)


cdef bint stmt_types(Stmt* s, const uint8_t* types, size_t n) noexcept nogil:
    s.types = <uint8_t*>malloc(n)
    if s.types == NULL:
        return False
    memcpy(s.types, types, n)
    s.types_len = n
    return True


cdef void graveyard_empty(ReactorState* r):
    cdef Stmt* s = <Stmt*>r.graveyard
    cdef Stmt* next_s
    cdef Plan* p
    cdef Plan* next_p
    r.graveyard = NULL
    while s != NULL:
        next_s = s.next
        p = s.plans
        while p != NULL:
            next_p = p.next
            if p.object != NULL:
                Py_DECREF(<object>p.object)
            free(p.key)
            free(p)
            p = next_p
        free(s.sample)
        free(s)
        s = next_s


cdef bint stmt_sends(Stmt* s, const uint8_t* text, size_t n) noexcept nogil:
    s.sends = <uint8_t*>malloc(n if n else 1)
    if s.sends == NULL:
        return False
    memcpy(s.sends, text, n)
    s.sends_len = n
    return True


cdef Stmt* stmt_like(ReactorState* r, Stmt* shape, const uint8_t* text, size_t n) noexcept nogil:
    # a text whose verdict is its shape's
    cdef Stmt* s = stmt_new(r, shape.key, text, n)
    if s != NULL:
        s.flags = shape.flags
        s.shape = shape
        shape.refs += 1
        stmt_keep(s, shape.guard)
    return s


cdef void stmt_keep(Stmt* s, Guard* g) noexcept nogil:
    s.guard = g
    if g != NULL:
        g.refs += 1


cdef Stmt* shape_new(ReactorState* r, uint64_t key, const uint8_t* text, size_t n) noexcept nogil:
    # what stands for every text that differs from this one only in literals; NULL: it has no canonical form
    cdef ssize_t length = canonical_form(text, n, r.form, LONGEST)
    cdef Stmt* s
    if length < 0:
        return NULL
    s = stmt_new(r, key, r.form, <size_t>length)
    if s == NULL:
        return NULL
    s.sample = <uint8_t*>malloc(n if n else 1)
    if s.sample == NULL:
        stmt_release(r, s)
        return NULL
    memcpy(s.sample, text, n)
    s.sample_len = n
    return s


cdef Stmt* _find(void** table, uint64_t h, uint64_t key, const uint8_t* text, size_t n) noexcept nogil:
    cdef Stmt* s = <Stmt*>table[h & (BUCKETS - 1)]
    while s != NULL:
        if s.hash == h and s.key == key and s.text_len == n and memcmp(s.text, text, n) == 0:
            return s
        s = s.next
    return NULL


cdef Stmt* cache_find(ReactorState* r, uint64_t key, const uint8_t* text, size_t n) noexcept nogil:
    # The verdict on this very text, or the one that its canonical form shares; the latter has a sample.
    cdef Stmt* s
    cdef ssize_t length
    if r.cache_count:
        s = _find(r.cache, hash_bytes(r.seed ^ key, text, n), key, text, n)
        if s != NULL:
            return s
    if r.shapes_count:
        length = canonical_form(text, n, r.form, LONGEST)
        if length >= 0:
            return _find(r.shapes, hash_bytes(r.seed ^ key, r.form, <size_t>length), key, r.form, <size_t>length)
    return NULL


cdef void cache_put(ReactorState* r, Stmt* s) noexcept nogil:
    cdef bint shape = s.sample != NULL
    cdef void** table = r.shapes if shape else r.cache
    cdef size_t* count = &r.shapes_count if shape else &r.cache_count
    cdef size_t b = s.hash & (BUCKETS - 1)
    if table == NULL or _find(table, s.hash, s.key, s.text, s.text_len) != NULL:
        return
    while count[0] >= CACHED:
        r.cache_hand = (r.cache_hand + 1) & (BUCKETS - 1)
        count[0] -= _empty(r, table, r.cache_hand)
    s.refs += 1
    s.next = <Stmt*>table[b]
    table[b] = s
    count[0] += 1


cdef size_t _empty(ReactorState* r, void** table, size_t b) noexcept nogil:
    cdef Stmt* s = <Stmt*>table[b]
    cdef Stmt* following
    cdef size_t n = 0
    table[b] = NULL
    while s != NULL:
        following = s.next
        s.next = NULL
        stmt_release(r, s)
        s = following
        n += 1
    return n


cdef int cache_make(ReactorState* r) noexcept nogil:
    # -1: no memory
    r.cache = <void**>calloc(BUCKETS, sizeof(void*))
    r.shapes = <void**>calloc(BUCKETS, sizeof(void*))
    r.form = <uint8_t*>malloc(LONGEST)
    return 0 if r.cache != NULL and r.shapes != NULL and r.form != NULL else -1


cdef void cache_clear(ReactorState* r) noexcept nogil:
    cdef size_t i
    for i in range(BUCKETS):
        if r.cache != NULL:
            _empty(r, r.cache, i)
        if r.shapes != NULL:
            _empty(r, r.shapes, i)
    r.cache_count = r.shapes_count = 0


cdef Plan* plan_find(Stmt* s, uint32_t index, const uint8_t* key, size_t n) noexcept nogil:
    cdef Plan* p = s.shape.plans if s.shape != NULL else s.plans
    while p != NULL:
        if p.index == index and p.key_len == n and memcmp(p.key, key, n) == 0:
            return p
        p = p.next
    return NULL


cdef Plan* plan_add(Stmt* s, uint32_t index, const uint8_t* key, size_t n) noexcept nogil:
    cdef Plan* p = <Plan*>calloc(1, sizeof(Plan))
    if s.shape != NULL:
        s = s.shape
    if p == NULL:
        return NULL
    p.key = <uint8_t*>malloc(n if n else 1)
    if p.key == NULL:
        free(p)
        return NULL
    memcpy(p.key, key, n)
    p.key_len = n
    p.index = index
    p.next = s.plans
    s.plans = p
    return p


cdef Portal* portal_new(Stmt* s, const uint8_t* formats, size_t fn, const uint8_t* values, size_t vn) noexcept nogil:
    # one block: the portal, its formats, its parameter values
    cdef Portal* p = <Portal*>malloc(sizeof(Portal) + fn + vn)
    if p == NULL:
        return NULL
    memset(p, 0, sizeof(Portal))
    p.refs = 1
    p.stmt = s
    if s != NULL:
        s.refs += 1
        if s.types != NULL:
            p.prepared = s
            s.refs += 1
    p.formats = <uint8_t*>p + sizeof(Portal)
    p.formats_len = fn
    memcpy(p.formats, formats, fn)
    p.values = p.formats + fn
    p.values_len = vn
    memcpy(p.values, values, vn)
    return p


cdef void portal_release(ReactorState* r, Portal* p) noexcept nogil:
    if p == NULL:
        return
    p.refs -= 1
    if p.refs == 0:
        stmt_release(r, p.stmt)
        stmt_release(r, p.prepared)
        free(p)


cdef void queues_free(ReactorState* r) noexcept nogil:
    cdef void* items
    while r.spare_queues != NULL:
        items = r.spare_queues
        r.spare_queues = (<void**>items)[0]
        free(items)
    r.spare_queues_count = 0


cdef Entry* queue_push(ReactorState* r, Queue* q, uint8_t kind) noexcept nogil:
    # A link that waits for nothing has no queue: the blocks go round among those that do.
    cdef Entry* items
    cdef Entry* e
    cdef size_t i, cap
    if q.cap == 0 and r.spare_queues != NULL:
        q.items = <Entry*>r.spare_queues
        r.spare_queues = (<void**>r.spare_queues)[0]
        r.spare_queues_count -= 1
        q.cap = QUEUE
        q.head = 0
    if q.count == q.cap:
        cap = q.cap * 2 if q.cap else QUEUE
        items = <Entry*>malloc(cap * sizeof(Entry))
        if items == NULL:
            return NULL
        for i in range(q.count):
            memcpy(&items[i], &q.items[(q.head + i) & (q.cap - 1)], sizeof(Entry))
        free(q.items)
        q.items = items
        q.cap = cap
        q.head = 0
    e = &q.items[(q.head + q.count) & (q.cap - 1)]
    q.count += 1
    memset(e, 0, sizeof(Entry) - NAME - 1)
    e.kind = kind
    return e


cdef Entry* queue_at(Queue* q, size_t i) noexcept nogil:
    return &q.items[(q.head + i) & (q.cap - 1)]


cdef void queue_pop(ReactorState* r, Queue* q) noexcept nogil:
    cdef Entry* e = &q.items[q.head]
    stmt_release(r, e.stmt)
    portal_release(r, e.portal)
    free(e.answer)
    e.stmt = NULL
    e.portal = NULL
    e.answer = NULL
    q.head = (q.head + 1) & (q.cap - 1)
    q.count -= 1
    if q.count:
        return
    if q.cap == QUEUE and r.spare_queues_count < SPARE:
        (<void**>q.items)[0] = r.spare_queues
        r.spare_queues = q.items
        r.spare_queues_count += 1
    else:
        free(q.items)
    q.items = NULL
    q.cap = q.head = 0


cdef void entry_name(Entry* e, const uint8_t* name, size_t n) noexcept nogil:
    if n > NAME:
        n = NAME
    e.name_len = <uint8_t>n
    memcpy(e.name, name, n)


cdef bint entry_named(Entry* e, const uint8_t* name, size_t n) noexcept nogil:
    if n > NAME:
        n = NAME
    return e.name_len == n and memcmp(e.name, name, n) == 0


cdef Named* _no_name = NULL


cdef int _names_grow(Names* t) noexcept nogil:
    # Few sessions have many names: four buckets first, then four times as many whenever they are full.
    cdef uint32_t size = t.size * 4 if t.size else 4
    cdef Named** buckets = <Named**>calloc(size, sizeof(Named*))
    cdef Named* at
    cdef Named* following
    cdef uint32_t i
    if buckets == NULL:
        return -1
    for i in range(t.size):
        at = t.buckets[i]
        while at != NULL:
            following = at.next
            at.next = buckets[at.hash & (size - 1)]
            buckets[at.hash & (size - 1)] = at
            at = following
    free(t.buckets)
    t.buckets = buckets
    t.size = size
    return 0


cdef Named** names_find(Names* t, const uint8_t* name, size_t n) noexcept nogil:
    cdef uint64_t h
    cdef Named** at
    if n == 0:
        return &t.first
    if n > NAME:
        n = NAME
    if t.buckets == NULL:
        return &_no_name
    h = hash_bytes(0, name, n)
    at = &t.buckets[h & (t.size - 1)]
    while at[0] != NULL:
        if at[0].hash == h and at[0].len == n and memcmp(at[0].name, name, n) == 0:
            return at
        at = &at[0].next
    return at


cdef int names_put(Names* t, const uint8_t* name, size_t n, void* what, void** old) noexcept nogil:
    cdef Named** at = names_find(t, name, n)
    cdef Named* new
    old[0] = NULL
    if at[0] != NULL:
        old[0] = at[0].what
        at[0].what = what
        return 0
    if n == 0:
        t.unnamed.what = what
        t.first = &t.unnamed
        return 0
    if n > NAME:
        n = NAME
    if t.count == t.size:
        if _names_grow(t) < 0:
            return -1
        at = names_find(t, name, n)
    new = <Named*>malloc(sizeof(Named))
    if new == NULL:
        return -1
    new.next = NULL
    new.hash = hash_bytes(0, name, n)
    new.len = <uint8_t>n
    memcpy(new.name, name, n)
    new.what = what
    at[0] = new
    t.count += 1
    return 0


cdef void* names_drop(Names* t, const uint8_t* name, size_t n) noexcept nogil:
    cdef Named** at = names_find(t, name, n)
    cdef Named* gone = at[0]
    cdef void* what
    if gone == NULL:
        return NULL
    what = gone.what
    at[0] = gone.next
    if n:
        free(gone)
        t.count -= 1
    return what


cdef void names_clear(ReactorState* r, Names* t, bint portals) noexcept nogil:
    cdef uint32_t i
    cdef Named* at
    cdef Named* following
    if t.first != NULL:
        t.first = NULL
        if portals:
            portal_release(r, <Portal*>t.unnamed.what)
        else:
            stmt_release(r, <Stmt*>t.unnamed.what)
    for i in range(t.size):
        at = t.buckets[i]
        t.buckets[i] = NULL
        while at != NULL:
            following = at.next
            if portals:
                portal_release(r, <Portal*>at.what)
            else:
                stmt_release(r, <Stmt*>at.what)
            free(at)
            at = following
    free(t.buckets)
    t.buckets = NULL
    t.size = t.count = 0


cdef void _portals_filter(ReactorState* r, Names* t, uint64_t serial, bint ending, bint undone) noexcept nogil:
    # drops the portals made after `serial`; at a transaction's end those WITH HOLD stay, unless it is undone
    cdef size_t i
    cdef Named** at
    cdef Named* gone
    cdef Portal* p
    if t.first != NULL:
        p = <Portal*>t.unnamed.what
        if p.serial <= serial or (ending and p.holds and (p.committed or not undone)):
            p.committed = p.committed or ending
        else:
            t.first = NULL
            portal_release(r, p)
    if t.count == 0:
        return
    for i in range(t.size):
        at = &t.buckets[i]
        while at[0] != NULL:
            p = <Portal*>at[0].what
            if p.serial <= serial or (ending and p.holds and (p.committed or not undone)):
                p.committed = p.committed or ending
                at = &at[0].next
                continue
            gone = at[0]
            at[0] = gone.next
            portal_release(r, p)
            free(gone)
            t.count -= 1


cdef void portals_end(ReactorState* r, Names* t, bint undone) noexcept nogil:
    # the transaction is over
    _portals_filter(r, t, 0, True, undone)


cdef void portals_since(ReactorState* r, Names* t, uint64_t serial) noexcept nogil:
    # a savepoint was rolled back to
    _portals_filter(r, t, serial, False, False)


cdef object portal_values(Portal* p):
    # Bind's parameter part as (values, formats, types): a format for each, and the types that Parse told
    cdef const uint8_t* q = p.values
    cdef uint32_t codes = load16(q), i, count, length
    given = [load16(q + 2 + 2 * i) for i in range(codes)]
    q += 2 + 2 * codes
    count = load16(q)
    q += 2
    values = []
    for i in range(count):
        length = load32(q)
        q += 4
        if length == 0xFFFFFFFFU:
            values.append(None)
        else:
            values.append((<const char*>q)[:length])
            q += length
    if codes == 0:
        formats = (0,) * count
    elif codes == 1:
        formats = (given[0],) * count
    else:
        formats = tuple(given)
    types = ()
    if p.prepared != NULL:
        types = tuple([load32(p.prepared.types + 4 * i) for i in range(p.prepared.types_len // 4)])
    return tuple(values), formats, types

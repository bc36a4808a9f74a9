# What a session has in flight and what it has prepared: entries, statements, portals, and the cache of verdicts.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from pgwire.hot.leg cimport ReactorState
from pgwire.hot.masking cimport PlanState

cdef enum:
    NAME = 63                 # PostgreSQL cuts names to NAMEDATALEN - 1 bytes

    ALLOWED = 1               # Stmt.flags: may run, no question asked
    MASKED = 2                # rows need a plan
    SETTLES = 4               # the judge wants to know how it ended
    COPIES_IN = 8             # it reads rows from the client (COPY FROM STDIN)

    FORWARD = 0               # Entry.disposition
    SWALLOW = 1
    ANSWER = 2

    UNSURE = 8                # Entry.flags: a Sync that the server may have read as part of COPY
    COPYING = 16              # the statement reads rows from the client
    SETTLING = 32
    MASKING = 64
    SKIPPED = 128

    GUARD_OPEN = 1            # Entry.guard: its rows are counted
    GUARD_OVER = 2            # ... and were too many: nothing more of it passes
    GUARD_BEGIN = 3           # ours (kind g): BEGIN before a counted statement
    GUARD_COMMIT = 4          # ... COMMIT behind it; `answer` is its last CommandComplete
    GUARD_FAIL = 5            # ... what makes the server's transaction fail, or takes it back

cdef struct Guard:            # what is kept while a statement runs
    uint32_t refs
    uint32_t timeout_ms       # 0: none
    int64_t most_rows         # of one result; -1: any number
    int64_t most_affected     # by one message; -1: any number
    int64_t record            # bytes of the result that are recorded; -1: as many as of others
    bint wraps                # outside a transaction it gets one of its own, so that it can be made to fail
    uint8_t* answers[3]       # ErrorResponses: too many rows, too many affected, out of time
    size_t lengths[3]

cdef struct Plan:
    Plan* next
    PlanState* state
    void* object
    uint32_t index            # which result of the statement
    uint8_t* key              # its row description
    size_t key_len

cdef struct Stmt:
    Stmt* next
    uint32_t refs
    uint32_t flags
    uint64_t hash
    uint64_t key
    uint8_t* text             # exact; of a shape: its canonical form
    size_t text_len
    uint8_t* sample           # of a shape: the text that was judged
    size_t sample_len
    Stmt* shape               # whose plans serve this text too
    Guard* guard              # NULL: nothing is kept
    uint8_t* types            # OIDs that Parse told of its parameters, where rules look at their values
    size_t types_len
    uint8_t* sends            # what the server gets in place of the text; NULL: the text itself
    size_t sends_len
    Plan* plans

cdef struct Portal:
    uint32_t refs
    Stmt* stmt
    Stmt* prepared            # what Bind was given, if it has types
    Plan* plan
    bint no_rows
    bint described
    bint declared             # SQL made it (DECLARE), and has been judged as run
    bint holds                # WITH HOLD: it outlives a commit
    bint committed            # ... and has
    uint64_t fetched          # rows of it that were counted, before this Execute
    uint64_t serial           # portals are numbered in the order of their making
    size_t formats_len
    uint8_t* formats          # Bind's result formats, as sent
    size_t values_len
    uint8_t* values           # Bind's parameter part, as sent

cdef struct Entry:
    uint8_t kind              # i(nserted by the gateway) Q P B D d(describe portal) E C c(close portal) S F r(refused) b(barrier behind a failed COPY) g(ours: see guard)
    uint8_t disposition
    uint8_t flags
    uint8_t name_len
    uint32_t index            # results of this statement that have ended
    Stmt* stmt
    Portal* portal
    Plan* plan                # of the result that is running
    uint8_t* answer
    size_t answer_len
    uint64_t begin
    uint64_t started
    uint64_t rows
    uint64_t bytes
    uint64_t affected
    uint8_t guard
    bint wrapped              # a BEGIN of ours is before it
    bint timed                # its time is up, and it is being cancelled
    char sqlstate[8]
    uint8_t name[NAME + 1]

cdef struct Named:
    Named* next
    uint64_t hash
    uint8_t len
    uint8_t name[NAME]
    void* what

cdef struct Names:
    Named* first              # the unnamed one: &unnamed or none
    Named** buckets           # none until there is a name
    uint32_t size             # how many buckets: a power of two
    uint32_t count            # in the buckets
    Named unnamed

cdef struct Queue:
    Entry* items
    size_t cap
    size_t head
    size_t count

cdef Stmt* stmt_new(ReactorState* r, uint64_t key, const uint8_t* text, size_t n) noexcept nogil
cdef void stmt_release(ReactorState* r, Stmt* s) noexcept nogil
cdef bint stmt_sends(Stmt* s, const uint8_t* text, size_t n) noexcept nogil
cdef Stmt* stmt_like(ReactorState* r, Stmt* shape, const uint8_t* text, size_t n) noexcept nogil
cdef Guard* guard_new(object kept) except? NULL
cdef void stmt_keep(Stmt* s, Guard* g) noexcept nogil
cdef void guard_release(Guard* g) noexcept nogil
cdef bint stmt_types(Stmt* s, const uint8_t* types, size_t n) noexcept nogil
cdef Stmt* shape_new(ReactorState* r, uint64_t key, const uint8_t* text, size_t n) noexcept nogil
cdef Stmt* cache_find(ReactorState* r, uint64_t key, const uint8_t* text, size_t n) noexcept nogil
cdef void cache_put(ReactorState* r, Stmt* s) noexcept nogil
cdef int cache_make(ReactorState* r) noexcept nogil
cdef void cache_clear(ReactorState* r) noexcept nogil
cdef Plan* plan_find(Stmt* s, uint32_t index, const uint8_t* key, size_t n) noexcept nogil
cdef Plan* plan_add(Stmt* s, uint32_t index, const uint8_t* key, size_t n) noexcept nogil
cdef Portal* portal_new(Stmt* s, const uint8_t* formats, size_t fn, const uint8_t* values, size_t vn) noexcept nogil
cdef void portal_release(ReactorState* r, Portal* p) noexcept nogil
cdef Entry* queue_push(ReactorState* r, Queue* q, uint8_t kind) noexcept nogil
cdef Entry* queue_at(Queue* q, size_t i) noexcept nogil
cdef void queues_free(ReactorState* r) noexcept nogil
cdef void queue_pop(ReactorState* r, Queue* q) noexcept nogil
cdef void entry_name(Entry* e, const uint8_t* name, size_t n) noexcept nogil
cdef bint entry_named(Entry* e, const uint8_t* name, size_t n) noexcept nogil
cdef Named** names_find(Names* t, const uint8_t* name, size_t n) noexcept nogil
cdef int names_put(Names* t, const uint8_t* name, size_t n, void* what, void** old) noexcept nogil
cdef void* names_drop(Names* t, const uint8_t* name, size_t n) noexcept nogil
cdef void names_clear(ReactorState* r, Names* t, bint portals) noexcept nogil
cdef void portals_end(ReactorState* r, Names* t, bint undone) noexcept nogil
cdef void portals_since(ReactorState* r, Names* t, uint64_t serial) noexcept nogil
cdef void graveyard_empty(ReactorState* r)
cdef object portal_values(Portal* p)

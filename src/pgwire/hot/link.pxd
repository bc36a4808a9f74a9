# Two legs and everything between them: what is outstanding, named, waited for, journaled and recorded.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from pgwire.hot.budget cimport BudgetState
from pgwire.hot.leg cimport LegState, ReactorState
from pgwire.hot.pipeline cimport Entry, Names, Plan, Portal, Queue, Stmt

cdef enum:
    WAIT_ADMIT = 1       # the client's next message waits for a decision
    WAIT_DRAIN = 2       # ... for the server's word on a name
    WAIT_SETTLE = 3      # ... for the end of a statement that changes what it means
    WAIT_ROOM = 4        # ... for replies: too much is outstanding
    WAIT_EMPTY = 5       # ... for all replies: it is judged by what holds when the server comes to it
    WAIT_COPY = 6        # ... for the server's word on a COPY FROM STDIN
    WAIT_GUARD = 8       # ... for the end of a statement whose rows are counted
    WAIT_END = 7         # there is none: the client has said goodbye, and the server ends when it has done the rest

    PAUSE_DESCRIBE = 1   # the server's next message waits for a mask plan
    PAUSE_FILTER = 2     # ... for its cleaned form

    COPY_EXPECTED = 1    # a COPY FROM STDIN is sent, and not answered yet
    COPY_RUNNING = 2     # the server reads its rows
    COPY_ENDED = 3       # the client has said that there are no more
    COPY_REFUSED = 4     # the client sent what can't come now; the server was told to stop

    OUTSTANDING = 16384

cdef struct LinkState:
    LegState* client
    LegState* server
    ReactorState* reactor
    uint64_t session
    uint64_t key
    bint scrub
    BudgetState* budget      # NULL: statements are not counted
    bint recording
    bint ended
    bint quit                # the client said Terminate
    bint fatal               # the server said why it ends
    bint failed_audit
    const char* problem      # why the session can't go on, for the client (protocol violation) ...
    const char* sqlstate     # ... with this code
    uint32_t max_statement
    int wait
    int pause
    bint frozen              # nothing of the client moves: a cancel is on its way and may hit only what runs now
    void* owner
    Queue queue
    size_t pending_names     # Parse and Close entries outstanding
    size_t pending_portals   # Bind and Close entries outstanding
    Names statements
    Names portals
    uint8_t status
    bint skipping            # the server skips until Sync, and none is under way
    uint8_t copying          # COPY_*: where a COPY FROM STDIN is; 0: there is none
    uint8_t copy_refused     # the kind of the message that made us stop it
    size_t unsure            # Syncs sent while it ran
    bint barrier             # which of them the server has read as part of it is being found out
    bint barrier_skips       # ... and an error made the server skip to a Sync
    uint8_t held_ready       # the status of a ReadyForQuery that may be the barrier's own; 0: none
    bint undone              # the transaction that ends next is rolled back
    bint ended_undone        # the last one was
    uint64_t epoch           # transactions ended until now
    uint64_t settled_epoch   # ... when the statement that settles had its outcome
    uint64_t serial          # portals made until now
    uint32_t settled_results # results that the statement which settles has completed
    bint drop_stream
    bint settling
    bint settled_ok
    bint guarding            # a statement runs whose rows are counted: nothing is sent behind it
    bint drop_rows           # what comes in parts from the server is dropped
    bint typed               # rules look at bound values: types are remembered
    bint tell_status
    bint unflushed
    Stmt* parsed             # the text of a Parse that is not journaled yet: an Execute in the same pass will say it, else the pass's end
    bint synced              # nothing is outstanding behind the server's last ReadyForQuery
    uint8_t* changed         # the ParameterStatus messages of this session, as they came
    size_t changed_len
    bint changed_lost        # ... and they were too many to keep
    Stmt* admitted           # the verdict on the client's waiting message, and on no other
    bint stale               # an error came while that message waited: what is decided on it counts no more
    uint8_t* filtered
    size_t filtered_len
    bint has_filtered
    uint8_t* told
    size_t told_len
    uint64_t statements_run
    uint64_t asked           # how often Python was called for this session
    size_t record_limit
    size_t record_left
    bint record_cut
    const uint8_t* tape      # bytes to the client not recorded yet; they lie together
    size_t tape_len

cdef void link_break(LinkState* k, const char* sqlstate, const char* why) noexcept nogil
cdef void record(LinkState* k, uint8_t direction, const uint8_t* p, size_t n) noexcept nogil
cdef void tape_flush(LinkState* k) noexcept nogil
cdef uint64_t begin(LinkState* k, uint8_t protocol, uint16_t flags, const uint8_t* text, size_t text_len, const uint8_t* values, size_t n) noexcept nogil
cdef void finish(LinkState* k, Entry* e, uint32_t flags) noexcept nogil
cdef void to_client(LinkState* k, const uint8_t* p, size_t n) noexcept nogil
cdef void to_client_copy(LinkState* k, const uint8_t* p, size_t n) noexcept nogil
cdef void flush_server(LinkState* k) noexcept nogil
cdef void keep_change(LinkState* k, const uint8_t* raw, size_t n) noexcept nogil
cdef void pop(LinkState* k) noexcept nogil
cdef Entry* running_entry(LinkState* k) noexcept nogil
cdef Portal* meant_portal(LinkState* k, const uint8_t* name, size_t n) noexcept nogil
cdef void send_instead(LinkState* k, Stmt* s, uint8_t kind, const uint8_t* name, size_t name_len, const uint8_t* tail, size_t tail_len) noexcept nogil
cdef bint send_ahead(LinkState* k, const uint8_t* p, size_t n, uint32_t replies) noexcept nogil

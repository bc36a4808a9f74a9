# The C face of the journal: what relay.pyx fills and calls. docs/audit-format.md describes the bytes.
# Never add here: anything that needs the interpreter, or a record type that docs/audit-format.md does not name.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass


cdef enum JournalType:
    JOURNAL_EVENT = 1    # JSON payload: any control-plane event
    JOURNAL_BEGIN = 2    # JournalBegin + text + parameters: a statement about to be sent
    JOURNAL_END = 3      # JournalEnd: the statement's outcome
    JOURNAL_CHUNK = 4    # JournalChunk + whole wire messages (recordings)
    JOURNAL_SEAL = 5     # last record of a segment; written by the journal itself only


cdef enum:
    JOURNAL_HEADER_BYTES = 40
    JOURNAL_SEGMENT_HEADER_BYTES = 96
    JOURNAL_HASH_BYTES = 32
    JOURNAL_MAX_PAYLOAD = 0x40000000


cdef packed struct JournalBegin:         # 16 bytes
    uint8_t protocol                     # 'Q' simple, 'E' extended, 'F' function call
    uint8_t reserved
    uint16_t flags                       # bit 0: its Parse was sent in the same moment and has no record of its own
    uint32_t text_len
    uint32_t params_len
    uint32_t reserved2


cdef packed struct JournalEnd:           # 36 bytes
    uint64_t begin_sequence
    uint64_t rows
    uint64_t bytes
    uint32_t duration_us
    char sqlstate[5]
    uint8_t flags                        # bit 0: at least one cell was masked
    uint16_t reserved


cdef packed struct JournalChunk:         # 8 bytes
    uint8_t direction                    # '>' client to gateway, '<' gateway to client
    uint8_t flags                        # bit 0: cut short here
    uint8_t reserved[6]


cdef struct JournalSegment:
    unsigned char* data                  # the mapping
    size_t size                          # bytes mapped
    size_t used                          # bytes written
    int fd
    uint32_t temporary                   # number of the temporary file's name while prepared
    JournalSegment* next                 # in the list of retired segments


ctypedef struct JournalState:
    JournalSegment* current
    JournalSegment* prepared             # exchanged atomically with prepare()
    JournalSegment* retired              # under `lock`
    uint32_t retired_count
    uint32_t temporaries
    uint64_t sequence                    # of the last record; 0 before the first
    uint64_t segment                     # number of the current segment
    uint64_t retry_us                    # do not try to make a segment before this time
    size_t segment_bytes
    int directory_fd
    int directory_dirty
    int chain
    int sealed                           # the current segment ends with SEAL and awaits its successor
    int failed                           # errno that ended this journal for good (failed fsync, closed); 0 while usable
    int error                            # errno of the last failed append
    unsigned char last_hash[32]          # chain hash of record `sequence`
    unsigned char link[32]               # what the next record is chained to
    unsigned char id[16]
    pthread_mutex_t lock                 # held by every append
    pthread_mutex_t side                 # held while segments are synced, cut and closed


# The sequence of the record written (the receipt, > 0), or 0: not written, and what it covers must not be forwarded.
# The payload is p1 + p2 + p3; a span of length 0 may be NULL. `now` is microseconds since 1970, 0 for the clock's word.
# Safe from any thread.
cdef uint64_t journal_append(
    JournalState* j, uint8_t type, uint16_t flags, uint64_t session,
    const char* p1, size_t n1, const char* p2, size_t n2, const char* p3, size_t n3, uint64_t now,
) noexcept nogil


# Whether a record of `n` bytes of payload certainly finds room without a new segment, and much more than that.
cdef bint journal_has_room(JournalState* j, size_t n) noexcept nogil


cdef class Journal:
    cdef JournalState* st
    cdef readonly str directory
    cdef object __weakref__

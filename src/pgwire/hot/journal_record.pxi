# Part of journal.pyx: records and segments in memory, without the interpreter. Included there and nowhere else.
# Never add here: an object, an exception, or a file that journal.pyx does not own.

cdef inline size_t _record_bytes(int chain, size_t payload) noexcept nogil:
    return JOURNAL_HEADER_BYTES + ((payload + 7) & ~(<size_t>7)) + (JOURNAL_HASH_BYTES if chain else 0)


cdef void _discard(JournalState* j, JournalSegment* seg) noexcept nogil:
    """Remove a prepared segment that will not be used."""
    cdef char name[32]
    snprintf(name, sizeof(name), "next-%u.tmp", seg.temporary)
    unlinkat(j.directory_fd, name, 0)
    munmap(seg.data, seg.size)
    c_close(seg.fd)
    free(seg)


cdef JournalSegment* _make(JournalState* j, size_t size, uint32_t temporary) noexcept nogil:
    """A preallocated, mapped temporary file; NULL with errno set. Blocks are reserved here, so writing to it can't meet ENOSPC."""
    cdef char name[32]
    cdef int code
    cdef void* where
    cdef JournalSegment* seg
    snprintf(name, sizeof(name), "next-%u.tmp", temporary)
    cdef int fd = openat(j.directory_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    if fd < 0:
        return NULL
    code = posix_fallocate(fd, 0, <long>size)
    if code == 0:
        where = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if where != MAP_FAILED:
            seg = <JournalSegment*>calloc(1, sizeof(JournalSegment))
            if seg != NULL:
                seg.data = <unsigned char*>where
                seg.size = size
                seg.fd = fd
                seg.temporary = temporary
                return seg
            munmap(where, size)
        code = errno
    c_close(fd)
    unlinkat(j.directory_fd, name, 0)
    (&errno)[0] = code
    return NULL


cdef uint64_t _write(
    JournalState* j, uint8_t type, uint16_t flags, uint64_t session, uint64_t now,
    const char* p1, size_t n1, const char* p2, size_t n2, const char* p3, size_t n3,
) noexcept nogil:
    """Write one record where the caller has made sure that it fits."""
    cdef JournalSegment* seg = j.current
    cdef unsigned char* at = seg.data + seg.used
    cdef RecordHeader* head = <RecordHeader*>at
    cdef size_t payload = n1 + n2 + n3
    cdef size_t covered = _record_bytes(0, payload)
    cdef size_t total = _record_bytes(j.chain, payload)
    cdef unsigned char* body = at + JOURNAL_HEADER_BYTES
    cdef unsigned char length[4]
    cdef uint32_t total32 = <uint32_t>total
    cdef unsigned char stage[32 + 1 + 7]
    head.version = 1
    head.type = type
    head.flags = flags
    head.payload_len = <uint32_t>payload
    head.sequence = j.sequence + 1
    head.time_us = now
    head.session = session
    if n1:
        memcpy(body, p1, n1)
    if n2:
        memcpy(body + n1, p2, n2)
    if n3:
        memcpy(body + n1 + n2, p3, n3)
    head.crc = pgj_crc32c(at + 8, covered - 8)
    if j.chain:
        # The hash covers the length, which is not in its place yet: it goes in front with the link.
        memcpy(stage, j.link, 32)
        memcpy(stage + 32, &total32, 4)
        pgj_sha_link(j.last_hash, TAG_RECORD, stage, 36, at + 4, covered - 4)
        memcpy(at + covered, j.last_hash, 32)
        memcpy(j.link, j.last_hash, 32)
    pgj_publish(at, total32)
    seg.used += total
    j.sequence += 1
    pgj_ahead(seg.data + seg.used, seg.data + seg.size)
    return j.sequence


cdef int _retire(JournalState* j, JournalSegment* seg) noexcept nogil:
    """Sync, cut to what is used, and close; 0 or errno. A failed fsync ends the journal: the pages may be gone already."""
    cdef int code = 0
    if fsync(seg.fd) != 0:
        code = errno
        j.failed = code
    munmap(seg.data, seg.size)
    ftruncate(seg.fd, <long>seg.used)
    # Nobody reads it soon: its pages serve the segments that come, which costs less than fresh ones each time.
    posix_fadvise(seg.fd, 0, 0, POSIX_FADV_DONTNEED)
    c_close(seg.fd)
    free(seg)
    return code


cdef int _rotate(JournalState* j, size_t need, uint64_t now) noexcept nogil:
    """Go on in a new segment that can take `need` bytes; 1, or 0 with j.error set and nothing lost."""
    cdef size_t size = (JOURNAL_SEGMENT_HEADER_BYTES + need + _record_bytes(j.chain, SEAL_PAYLOAD) + 4095) & ~(<size_t>4095)
    cdef char temporary[32]
    cdef char name[32]
    cdef SegmentHeader* head
    cdef JournalSegment* old
    cdef uint64_t number = j.segment + 1
    if size < j.segment_bytes:
        size = j.segment_bytes
    cdef JournalSegment* seg = pgj_exchange(j.prepared, NULL)
    if seg != NULL and seg.size < size:
        _discard(j, seg)
        seg = NULL
    if seg == NULL:
        if now < j.retry_us:
            return 0
        j.temporaries += 1
        seg = _make(j, size, j.temporaries)
        if seg == NULL:
            j.error = errno
            j.retry_us = now + RETRY_US
            return 0
    if j.current != NULL and not j.sealed:
        _write(j, JOURNAL_SEAL, 0, 0, now, <const char*>&number, SEAL_PAYLOAD, NULL, 0, NULL, 0)
        j.sealed = 1
    head = <SegmentHeader*>seg.data
    memset(head, 0, JOURNAL_SEGMENT_HEADER_BYTES)
    memcpy(head.magic, b"PGLEASHJ", 8)
    head.version = 1
    head.flags = 1 if j.chain else 0
    head.segment = number
    head.first_sequence = j.sequence + 1
    memcpy(head.id, j.id, 16)
    memcpy(head.previous, j.last_hash, 32)
    head.time_us = now
    head.crc = pgj_crc32c(seg.data, JOURNAL_SEGMENT_HEADER_BYTES - 4)
    snprintf(temporary, sizeof(temporary), "next-%u.tmp", seg.temporary)
    snprintf(name, sizeof(name), "%08llu.seg", <unsigned long long>number)
    if renameat(j.directory_fd, temporary, j.directory_fd, name) != 0:
        j.error = errno
        j.retry_us = now + RETRY_US
        _discard(j, seg)
        return 0
    pgj_sha_link(j.link, TAG_SEGMENT, NULL, 0, seg.data, JOURNAL_SEGMENT_HEADER_BYTES)
    seg.used = JOURNAL_SEGMENT_HEADER_BYTES
    old = j.current
    j.current = seg
    j.segment = number
    j.sealed = 0
    j.directory_dirty = 1
    j.retry_us = 0
    if old != NULL:
        old.next = j.retired
        j.retired = old
        j.retired_count += 1
    if j.retired_count > KEEP_RETIRED and pthread_mutex_trylock(&j.side) == 0:
        while j.retired != NULL:
            old = j.retired
            j.retired = old.next
            _retire(j, old)
        j.retired_count = 0
        pthread_mutex_unlock(&j.side)
    return 1


cdef uint64_t _append_locked(
    JournalState* j, uint8_t type, uint16_t flags, uint64_t session,
    const char* p1, size_t n1, const char* p2, size_t n2, const char* p3, size_t n3, uint64_t now,
) noexcept nogil:
    cdef size_t payload, total
    cdef JournalSegment* seg = j.current
    if j.failed:
        j.error = j.failed
        return 0
    if n1 > JOURNAL_MAX_PAYLOAD or n2 > JOURNAL_MAX_PAYLOAD or n3 > JOURNAL_MAX_PAYLOAD or n1 + n2 + n3 > JOURNAL_MAX_PAYLOAD:
        j.error = EMSGSIZE
        return 0
    payload = n1 + n2 + n3
    total = _record_bytes(j.chain, payload)
    if now == 0:
        now = pgj_now_us()
    if seg == NULL or j.sealed or seg.used + total + _record_bytes(j.chain, SEAL_PAYLOAD) > seg.size:
        if not _rotate(j, total, now):
            return 0
        if j.failed:
            j.error = j.failed
            return 0
    return _write(j, type, flags, session, now, p1, n1, p2, n2, p3, n3)


cdef uint64_t journal_append(
    JournalState* j, uint8_t type, uint16_t flags, uint64_t session,
    const char* p1, size_t n1, const char* p2, size_t n2, const char* p3, size_t n3, uint64_t now,
) noexcept nogil:
    cdef uint64_t receipt
    if j == NULL:
        return 0
    pthread_mutex_lock(&j.lock)
    receipt = _append_locked(j, type, flags, session, p1, n1, p2, n2, p3, n3, now)
    pthread_mutex_unlock(&j.lock)
    return receipt


cdef bint journal_has_room(JournalState* j, size_t n) noexcept nogil:
    cdef bint room
    pthread_mutex_lock(&j.lock)
    room = not j.failed and not j.sealed and j.current != NULL and j.current.used + 4 * n + 65536 < j.current.size
    pthread_mutex_unlock(&j.lock)
    return room


cdef size_t _whole(JournalState* j, const unsigned char* data, size_t size, size_t at) noexcept nogil:
    """The length of the record at `at` if it is whole by itself (length, version, CRC), else 0."""
    cdef const RecordHeader* head
    cdef size_t total
    if at + JOURNAL_HEADER_BYTES > size:
        return 0
    head = <const RecordHeader*>(data + at)
    total = head.length
    if head.version != 1 or total == 0 or at + total > size or head.payload_len > JOURNAL_MAX_PAYLOAD:
        return 0
    if total != _record_bytes(j.chain, head.payload_len):
        return 0
    if pgj_crc32c(data + at + 8, _record_bytes(0, head.payload_len) - 8) != head.crc:
        return 0
    return total


cdef size_t _walk(JournalState* j, const unsigned char* data, size_t size) noexcept nogil:
    """Follow the chain through a segment from its first record, keeping j's sequence and hashes; where the good records end."""
    cdef size_t at = JOURNAL_SEGMENT_HEADER_BYTES
    cdef size_t total
    cdef const RecordHeader* head
    cdef unsigned char expected[32]
    cdef unsigned char stage[40]
    while True:
        total = _whole(j, data, size, at)
        if total == 0 or j.sealed:
            return at
        head = <const RecordHeader*>(data + at)
        if head.sequence != j.sequence + 1:
            return at
        if j.chain:
            memcpy(stage, j.link, 32)
            memcpy(stage + 32, data + at, 4)
            pgj_sha_link(expected, TAG_RECORD, stage, 36, data + at + 4, total - JOURNAL_HASH_BYTES - 4)
            if memcmp(expected, data + at + total - JOURNAL_HASH_BYTES, 32) != 0:
                return at
            memcpy(j.last_hash, expected, 32)
            memcpy(j.link, expected, 32)
        j.sequence += 1
        if head.type == JOURNAL_SEAL:
            j.sealed = 1
        at += total


cdef size_t _next_whole(JournalState* j, const unsigned char* data, size_t size, size_t at) noexcept nogil:
    """Where a later whole record of this journal lies, or 0: what tells an altered middle from a torn end."""
    while at + JOURNAL_HEADER_BYTES <= size:
        if _whole(j, data, size, at) and (<const RecordHeader*>(data + at)).sequence > j.sequence:
            return at
        at += 8
    return 0

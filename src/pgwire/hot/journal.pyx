"""The journal: append-only, preallocated, memory-mapped segments of chained records.

A record that `journal_append` has given a receipt for survives the death of this process (it lies in the page cache of a shared
mapping); `sync` makes everything up to now survive the death of the machine. The length word of a record is stored last, with
release order, so a record is either whole or recognisably unfinished. The bytes are described in docs/audit-format.md; the reader
in control.audit.format is written separately from this file, on purpose.

Never add here: a coroutine, a policy word, the meaning of a payload, or a path on which a failed write still yields a receipt.
"""

import errno as _errno
import fcntl
import json
import os
import re

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EBADF, EEXIST, EMSGSIZE, ENOENT, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset


cdef extern from "journal_c.h":
    uint32_t pgj_crc32c(const unsigned char* p, size_t n) noexcept nogil
    void pgj_sha_link(unsigned char* out, unsigned char tag, const unsigned char* a, size_t na, const unsigned char* b, size_t nb) noexcept nogil
    const char* pgj_choose(int hardware, int library) noexcept nogil
    void pgj_ahead(const unsigned char* p, const unsigned char* end) noexcept nogil
    void pgj_publish(unsigned char* where, uint32_t length) noexcept nogil
    uint64_t pgj_now_us() noexcept nogil
    uint64_t pgj_mono_ns() noexcept nogil
    JournalSegment* pgj_exchange(JournalSegment* place, JournalSegment* value) noexcept nogil

cdef extern from "<fcntl.h>" nogil:
    int openat(int directory, const char* name, int flags, ...) noexcept
    int posix_fallocate(int fd, long offset, long length) noexcept
    int posix_fadvise(int fd, long offset, long length, int advice) noexcept
    int O_RDWR, O_CREAT, O_EXCL, O_CLOEXEC, POSIX_FADV_DONTNEED

cdef extern from "<stdio.h>" nogil:
    int renameat(int old_directory, const char* old, int new_directory, const char* new) noexcept

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd) noexcept
    int ftruncate(int fd, long length) noexcept
    int fsync(int fd) noexcept
    int fdatasync(int fd) noexcept
    int unlinkat(int directory, const char* name, int flags) noexcept

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* where, size_t length, int protection, int flags, int fd, long offset) noexcept
    int munmap(void* where, size_t length) noexcept
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void* MAP_FAILED

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attributes) noexcept
    int pthread_mutex_destroy(pthread_mutex_t* mutex) noexcept
    int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept
    int pthread_mutex_trylock(pthread_mutex_t* mutex) noexcept
    int pthread_mutex_unlock(pthread_mutex_t* mutex) noexcept


cdef packed struct RecordHeader:         # 40 bytes, docs/audit-format.md "Record"
    uint32_t length
    uint32_t crc
    uint8_t version
    uint8_t type
    uint16_t flags
    uint32_t payload_len
    uint64_t sequence
    uint64_t time_us
    uint64_t session

cdef packed struct SegmentHeader:        # 96 bytes, docs/audit-format.md "Segment header"
    char magic[8]
    uint32_t version
    uint32_t flags
    uint64_t segment
    uint64_t first_sequence
    unsigned char id[16]
    unsigned char previous[32]
    uint64_t time_us
    uint32_t reserved
    uint32_t crc

cdef uint64_t RETRY_US = 50000           # a failed attempt to make a segment is not repeated sooner than this
cdef enum:
    TAG_SEGMENT = 0x10
    TAG_RECORD = 0x11
    SEAL_PAYLOAD = 8
    KEEP_RETIRED = 2                     # more than this many segments awaiting sync(): the append closes them itself

SHA256_SOURCE = pgj_choose(1, 1).decode()   # which SHA-256 is used: "the processor", a library's name, or "built in"


class JournalLocked(OSError):
    """Another process (or another Journal of this one) has the directory."""


class JournalDamaged(OSError):
    """The last segment is not what this program left behind, crash or not; it is left untouched for an examination."""


include "journal_record.pxi"


def crc32c(const unsigned char[::1] data not None) -> int:
    """CRC-32C of the data, as stored in records."""
    if data.shape[0] == 0:
        return 0
    return pgj_crc32c(&data[0], <size_t>data.shape[0])


def _choose_sha(hardware: bool, library: bool) -> str:
    """For tests: allow or forbid the processor's instructions (CRC too) and libcrypto; what is used now."""
    return pgj_choose(hardware, library).decode()


cdef int _put_away(JournalState* st) noexcept nogil:
    """Retire finished segments; under `side`."""
    cdef JournalSegment* seg
    cdef JournalSegment* following
    cdef int code = 0
    pthread_mutex_lock(&st.lock)
    seg = st.retired
    st.retired = NULL
    st.retired_count = 0
    pthread_mutex_unlock(&st.lock)
    while seg != NULL:
        following = seg.next
        code = _retire(st, seg) or code
        seg = following
    return code


cdef object _error(JournalState* st, str what):
    code = st.error or st.failed
    return OSError(code, f"{what}: {os.strerror(code)}")


cdef class Journal:
    """An append-only journal in `directory` (made if missing, mode 0700), recovered to its last whole record.

    segment_bytes is the size of a segment file (at least 4096; a larger record gets a segment of its own size).
    With chain=False records carry no SHA-256 (recordings). Raises JournalLocked, JournalDamaged, or OSError.
    """

    def __cinit__(self):
        self.st = <JournalState*>calloc(1, sizeof(JournalState))
        if self.st == NULL:
            raise MemoryError
        self.st.directory_fd = -1
        self.st.failed = EBADF
        pthread_mutex_init(&self.st.lock, NULL)
        pthread_mutex_init(&self.st.side, NULL)

    def __init__(self, directory: str, segment_bytes: int, chain: bool = True) -> None:
        cdef JournalState* st = self.st
        if st.directory_fd >= 0:
            raise ValueError("a Journal is initialised once")
        if segment_bytes < 4096 or segment_bytes > JOURNAL_MAX_PAYLOAD:
            raise ValueError(f"segment_bytes is {segment_bytes}; it must lie between 4096 and {JOURNAL_MAX_PAYLOAD}")
        self.directory = os.fspath(directory)
        st.segment_bytes = (<size_t>segment_bytes + 4095) & ~(<size_t>4095)
        st.chain = 1 if chain else 0
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        st.directory_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(st.directory_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JournalLocked(
                    _errno.EWOULDBLOCK, f"the journal {self.directory} is already open in another process; one writer per directory"
                ) from None
            dropped = self._recover()
            st.failed = 0
            if dropped is not None:
                payload = json.dumps({"kind": "journal.recovered", **dropped}, sort_keys=True, separators=(",", ":"))
                self.append(JOURNAL_EVENT, payload.encode())
        except BaseException:
            self._release()
            raise

    def _recover(self):
        cdef JournalState* st = self.st
        cdef size_t end, later
        cdef bytes data
        cdef const unsigned char* bytes_at
        cdef const SegmentHeader* head
        for name in os.listdir(self.directory):
            if re.fullmatch(r"next-\d+\.tmp", name):
                os.unlink(os.path.join(self.directory, name))
        numbers = sorted(int(name.split(".")[0]) for name in os.listdir(self.directory) if re.fullmatch(r"\d{8,}\.seg", name))
        while numbers:
            last = max(numbers)
            path = os.path.join(self.directory, f"{last:08d}.seg")
            with open(path, "rb") as file:
                data = file.read()
            if len(data) >= JOURNAL_SEGMENT_HEADER_BYTES and data.strip(b"\0"):
                break
            if len(numbers) == 1 and data.strip(b"\0"):
                break
            os.unlink(path)              # made, but the machine died before its header was kept: nothing was ever acknowledged in it
            numbers.pop()
        if not numbers:
            memcpy(st.id, PyBytes_AS_STRING(os.urandom(16)), 16)
            if not _rotate(st, 0, pgj_now_us()):
                raise _error(st, f"cannot make the first segment of the journal {self.directory}")
            return None
        bytes_at = <const unsigned char*>PyBytes_AS_STRING(data)
        size = len(data)
        head = <const SegmentHeader*>bytes_at
        if size < JOURNAL_SEGMENT_HEADER_BYTES or data[:8] != b"PGLEASHJ" or pgj_crc32c(bytes_at, 92) != head.crc or head.segment != last:
            raise JournalDamaged(_errno.EILSEQ, f"the header of {path} is damaged; run 'pgleash audit verify', then move the directory away")
        if head.version != 1:
            raise JournalDamaged(_errno.EILSEQ, f"{path} has format version {head.version}; this program writes version 1")
        if (head.flags & 1) != st.chain:
            raise ValueError(f"the journal {self.directory} was made with chain={bool(head.flags & 1)}")
        memcpy(st.id, head.id, 16)
        memcpy(st.last_hash, head.previous, 32)
        st.segment = head.segment
        st.sequence = head.first_sequence - 1
        pgj_sha_link(st.link, TAG_SEGMENT, NULL, 0, bytes_at, JOURNAL_SEGMENT_HEADER_BYTES)
        end = _walk(st, bytes_at, size)
        rest = data[end:].rstrip(b"\0")
        dropped = None
        if rest or (end & 7) or size < end:
            why = self._torn(data, end, size)
            dropped = {"segment": int(st.segment), "offset": int(end), "dropped_bytes": len(rest), "last_sequence": int(st.sequence), "why": why}
        self._reopen(path, end, size)
        return dropped

    def _torn(self, bytes data, size_t end, size_t size):
        """Why what lies behind the last good record is an unfinished write; raises JournalDamaged if it is not."""
        cdef JournalState* st = self.st
        cdef const unsigned char* at = <const unsigned char*>PyBytes_AS_STRING(data)
        cdef size_t length, start, later, own
        length = int.from_bytes(data[end:end + 4], "little")
        own = int.from_bytes(data[end + 12:end + 16], "little")
        start = end + 8
        if length == 0 and own <= JOURNAL_MAX_PAYLOAD and end + _record_bytes(st.chain, own) <= size:
            start = end + _record_bytes(st.chain, own)
        later = _next_whole(st, at, size, start)
        damage = f"segment {st.segment} of {self.directory} is damaged at offset {end} (after record {st.sequence})"
        advice = "run 'pgleash audit verify'; the file was left as it is, move the directory away to start a new journal"
        if st.sealed:
            raise JournalDamaged(_errno.EILSEQ, f"{damage}: bytes follow the segment's seal; {advice}")
        if later:
            raise JournalDamaged(_errno.EILSEQ, f"{damage}: a whole record follows at offset {later}, so this is no torn end; {advice}")
        if length == 0:
            return "the length of the last record was never stored"
        if length > size - end:
            return "the last record ends behind the end of the file"
        if data[end + length - 1] == 0 and not data[end + length:].strip(b"\0"):
            return "the end of the last record was never stored"
        raise JournalDamaged(_errno.EILSEQ, f"{damage}: a record is complete but altered; {advice}")

    def _reopen(self, path, size_t end, size_t size):
        """Cut what is not whole, reserve the segment's room again and map it."""
        cdef JournalState* st = self.st
        cdef size_t room = st.segment_bytes if st.segment_bytes > end else (end + 4095) & ~(<size_t>4095)
        cdef int fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        cdef JournalSegment* seg
        cdef void* where
        cdef int code = 0
        if ftruncate(fd, <long>end) != 0:
            code = errno
        if code == 0:
            code = posix_fallocate(fd, 0, <long>room)
        if code == 0:
            where = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
            seg = <JournalSegment*>calloc(1, sizeof(JournalSegment))
            if where == MAP_FAILED or seg == NULL:
                code = errno
        if code != 0:
            os.close(fd)
            raise OSError(code, f"cannot continue the journal segment {path}: {os.strerror(code)}")
        seg.data = <unsigned char*>where
        seg.size = room
        seg.used = end
        seg.fd = fd
        st.current = seg

    def append(self, int type, bytes payload not None, session: int = 0, flags: int = 0) -> int:
        """Append one record (EVENT 1, BEGIN 2, END 3, CHUNK 4); its sequence. Raises OSError when it could not be kept."""
        if type < JOURNAL_EVENT or type > JOURNAL_CHUNK:
            raise ValueError(f"record type {type} is not written by callers")
        cdef uint64_t number = session
        cdef uint16_t bits = flags
        cdef const char* data = PyBytes_AS_STRING(payload)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(payload)
        cdef uint64_t receipt
        with nogil:
            receipt = journal_append(self.st, <uint8_t>type, bits, number, data, size, NULL, 0, NULL, 0, 0)
        if receipt == 0:
            raise _error(self.st, f"the journal {self.directory} did not keep the record")
        return receipt

    def head(self) -> tuple[int, bytes, int, int]:
        """(sequence of the last record, its chain hash, segment number, offset of the next record)."""
        cdef JournalState* st = self.st
        cdef uint64_t sequence, segment
        cdef size_t used
        cdef unsigned char last[32]
        with nogil:
            pthread_mutex_lock(&st.lock)
            sequence = st.sequence
            segment = st.segment
            used = st.current.used if st.current != NULL else 0
            memcpy(last, st.last_hash, 32)
            pthread_mutex_unlock(&st.lock)
        return sequence, (<char*>last)[:32], segment, used

    def prepare(self) -> bool:
        """Make the next segment now if there is none yet and put away finished ones; True if one was made.

        Call it from a thread or a timer: it may wait for the disk. Raises OSError when there is no room.
        """
        cdef JournalState* st = self.st
        cdef JournalSegment* seg = NULL
        cdef uint32_t number
        cdef int code
        with nogil:
            pthread_mutex_lock(&st.side)
            code = _put_away(st)
            if code == 0 and st.failed == 0 and st.prepared == NULL:
                pthread_mutex_lock(&st.lock)
                st.temporaries += 1
                number = st.temporaries
                pthread_mutex_unlock(&st.lock)
                seg = _make(st, st.segment_bytes, number)
                if seg == NULL:
                    code = errno
                else:
                    pgj_exchange(st.prepared, seg)
            pthread_mutex_unlock(&st.side)
        if code:
            raise OSError(code, f"cannot prepare the next segment of the journal {self.directory}: {os.strerror(code)}")
        return seg != NULL

    @property
    def wants(self) -> bool:
        """Whether ``prepare`` has something to do. Costs nothing."""
        return self.st.prepared == NULL or self.st.retired != NULL

    def sync(self) -> int:
        """Make every record appended before this call survive a power failure; the last such sequence.

        Raises OSError; after a failed fsync the journal accepts nothing more, since the kernel may have dropped the pages.
        """
        cdef JournalState* st = self.st
        cdef uint64_t sequence
        cdef JournalSegment* seg
        cdef int code, dirty
        with nogil:
            pthread_mutex_lock(&st.side)
            pthread_mutex_lock(&st.lock)
            sequence = st.sequence
            seg = st.current
            dirty = st.directory_dirty
            st.directory_dirty = 0
            code = st.failed
            pthread_mutex_unlock(&st.lock)
            if code == 0 and seg != NULL and fdatasync(seg.fd) != 0:
                code = errno
            if code == 0 and dirty and fsync(st.directory_fd) != 0:
                code = errno
            if code != 0:
                st.failed = code
            else:
                code = _put_away(st)
            pthread_mutex_unlock(&st.side)
        if code:
            raise OSError(code, f"the journal {self.directory} could not be synced and accepts nothing more: {os.strerror(code)}")
        return sequence

    def close(self) -> None:
        """Sync, cut the last segment to what is used, and let the directory go. Appending afterwards fails."""
        if self.st.directory_fd < 0:
            return
        try:
            if self.st.failed == 0:
                self.sync()
        finally:
            self._release()

    def _release(self):
        cdef JournalState* st = self.st
        cdef JournalSegment* seg
        pthread_mutex_lock(&st.side)
        pthread_mutex_lock(&st.lock)
        st.failed = st.failed or EBADF
        seg = pgj_exchange(st.prepared, NULL)
        if seg != NULL:
            _discard(st, seg)
        if st.current != NULL:
            st.current.next = st.retired
            st.retired = st.current
            st.current = NULL
        while st.retired != NULL:
            seg = st.retired
            st.retired = seg.next
            _retire(st, seg)
        if st.directory_fd >= 0:
            c_close(st.directory_fd)
            st.directory_fd = -1
        pthread_mutex_unlock(&st.lock)
        pthread_mutex_unlock(&st.side)

    def __dealloc__(self):
        cdef JournalSegment* seg
        if self.st == NULL:
            return
        # Not closed: the files stay as they are, as after a crash; recovery knows them.
        seg = self.st.prepared
        if seg != NULL:
            _discard(self.st, seg)
        if self.st.current != NULL:
            self.st.current.next = self.st.retired
            self.st.retired = self.st.current
        while self.st.retired != NULL:
            seg = self.st.retired
            self.st.retired = seg.next
            munmap(seg.data, seg.size)
            c_close(seg.fd)
            free(seg)
        if self.st.directory_fd >= 0:
            c_close(self.st.directory_fd)
        pthread_mutex_destroy(&self.st.lock)
        pthread_mutex_destroy(&self.st.side)
        free(self.st)

    @property
    def journal_id(self) -> bytes:
        """16 random bytes that name this journal for good."""
        return (<char*>self.st.id)[:16]

    @property
    def failed(self) -> bool:
        """True once the journal accepts nothing more (closed, or a failed fsync). No room is not failure: that passes."""
        return self.st.failed != 0

    @property
    def last_error(self) -> int:
        """errno of the last append that failed; 0 if none did."""
        return self.st.error

    def _bench(self, n: int, size: int) -> float:
        """Nanoseconds per append over n appends of `size` bytes each."""
        cdef uint64_t count = n, i, start, stop
        cdef uint64_t kept = 0
        cdef bytes payload = b"x" * size
        cdef const char* data = PyBytes_AS_STRING(payload)
        cdef size_t length = <size_t>size
        with nogil:
            start = pgj_mono_ns()
            for i in range(count):
                if journal_append(self.st, JOURNAL_EVENT, 0, 0, data, length, NULL, 0, NULL, 0, 0) != 0:
                    kept += 1
            stop = pgj_mono_ns()
        if kept != count:
            raise _error(self.st, "the benchmark's journal did not keep every record")
        return (stop - start) / <double>count

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


cdef extern from *:
    """
    #include <dlfcn.h>
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    #include <time.h>
    #if defined(__x86_64__)
    #include <nmmintrin.h>
    #endif

    /* ---- CRC-32C (Castagnoli), RFC 3720 B.4: hardware where the processor has it, a table otherwise ---- */
    static uint32_t pgj_crc_table[256];
    static int pgj_crc_hw = 0;

    static uint32_t pgj_crc_soft(const unsigned char *p, size_t n) {
        uint32_t c = 0xFFFFFFFFu;
        while (n--) c = pgj_crc_table[(c ^ *p++) & 0xFF] ^ (c >> 8);
        return ~c;
    }
    #if defined(__x86_64__)
    __attribute__((target("sse4.2")))
    static uint32_t pgj_crc_sse(const unsigned char *p, size_t n) {
        uint64_t c = 0xFFFFFFFFu, w;
        while (n >= 8) { memcpy(&w, p, 8); c = _mm_crc32_u64(c, w); p += 8; n -= 8; }
        while (n--) c = _mm_crc32_u8((uint32_t)c, *p++);
        return ~(uint32_t)c;
    }
    #endif
    static uint32_t pgj_crc32c(const unsigned char *p, size_t n) {
    #if defined(__x86_64__)
        if (pgj_crc_hw) return pgj_crc_sse(p, n);
    #endif
        return pgj_crc_soft(p, n);
    }

    /* ---- SHA-256 (FIPS 180-4): libcrypto's if it can be opened, else this one ---- */
    typedef struct { uint32_t h[8]; uint64_t total; unsigned char block[64]; size_t held; } pgj_sha_soft_ctx;
    static const uint32_t pgj_k[64] = {
        0x428a2f98,0x71374491,0xb5c0fbcf,0xe9b5dba5,0x3956c25b,0x59f111f1,0x923f82a4,0xab1c5ed5,
        0xd807aa98,0x12835b01,0x243185be,0x550c7dc3,0x72be5d74,0x80deb1fe,0x9bdc06a7,0xc19bf174,
        0xe49b69c1,0xefbe4786,0x0fc19dc6,0x240ca1cc,0x2de92c6f,0x4a7484aa,0x5cb0a9dc,0x76f988da,
        0x983e5152,0xa831c66d,0xb00327c8,0xbf597fc7,0xc6e00bf3,0xd5a79147,0x06ca6351,0x14292967,
        0x27b70a85,0x2e1b2138,0x4d2c6dfc,0x53380d13,0x650a7354,0x766a0abb,0x81c2c92e,0x92722c85,
        0xa2bfe8a1,0xa81a664b,0xc24b8b70,0xc76c51a3,0xd192e819,0xd6990624,0xf40e3585,0x106aa070,
        0x19a4c116,0x1e376c08,0x2748774c,0x34b0bcb5,0x391c0cb3,0x4ed8aa4a,0x5b9cca4f,0x682e6ff3,
        0x748f82ee,0x78a5636f,0x84c87814,0x8cc70208,0x90befffa,0xa4506ceb,0xbef9a3f7,0xc67178f2};
    #define PGJ_R(x, n) (((x) >> (n)) | ((x) << (32 - (n))))
    static void pgj_sha_block(uint32_t *h, const unsigned char *p) {
        uint32_t w[64], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], k = h[7];
        int i;
        for (i = 0; i < 16; i++, p += 4)
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        for (; i < 64; i++)
            w[i] = (PGJ_R(w[i-2], 17) ^ PGJ_R(w[i-2], 19) ^ (w[i-2] >> 10)) + w[i-7]
                 + (PGJ_R(w[i-15], 7) ^ PGJ_R(w[i-15], 18) ^ (w[i-15] >> 3)) + w[i-16];
        for (i = 0; i < 64; i++) {
            uint32_t t1 = k + (PGJ_R(e, 6) ^ PGJ_R(e, 11) ^ PGJ_R(e, 25)) + ((e & f) ^ (~e & g)) + pgj_k[i] + w[i];
            uint32_t t2 = (PGJ_R(a, 2) ^ PGJ_R(a, 13) ^ PGJ_R(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            k = g; g = f; f = e; e = d + t1; d = c; c = b; b = a; a = t1 + t2;
        }
        h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e; h[5] += f; h[6] += g; h[7] += k;
    }
    static int pgj_soft_init(void *v) {
        static const uint32_t start[8] = {0x6a09e667,0xbb67ae85,0x3c6ef372,0xa54ff53a,0x510e527f,0x9b05688c,0x1f83d9ab,0x5be0cd19};
        pgj_sha_soft_ctx *s = (pgj_sha_soft_ctx *)v;
        memcpy(s->h, start, 32); s->total = 0; s->held = 0;
        return 1;
    }
    static int pgj_soft_update(void *v, const void *data, size_t n) {
        pgj_sha_soft_ctx *s = (pgj_sha_soft_ctx *)v;
        const unsigned char *p = (const unsigned char *)data;
        s->total += n;
        while (n) {
            size_t take = 64 - s->held;
            if (take > n) take = n;
            memcpy(s->block + s->held, p, take);
            s->held += take; p += take; n -= take;
            if (s->held == 64) { pgj_sha_block(s->h, s->block); s->held = 0; }
        }
        return 1;
    }
    static int pgj_soft_final(unsigned char *out, void *v) {
        pgj_sha_soft_ctx *s = (pgj_sha_soft_ctx *)v;
        uint64_t bits = s->total * 8;
        unsigned char end[8], pad = 0x80, zero = 0;
        int i;
        for (i = 0; i < 8; i++) end[i] = (unsigned char)(bits >> (56 - 8 * i));
        pgj_soft_update(s, &pad, 1);
        while (s->held != 56) pgj_soft_update(s, &zero, 1);
        pgj_soft_update(s, end, 8);
        for (i = 0; i < 32; i++) out[i] = (unsigned char)(s->h[i / 4] >> (24 - 8 * (i % 4)));
        return 1;
    }
    static int (*pgj_sha_init)(void *) = pgj_soft_init;
    static int (*pgj_sha_update)(void *, const void *, size_t) = pgj_soft_update;
    static int (*pgj_sha_final)(unsigned char *, void *) = pgj_soft_final;

    static const char *pgj_choose(int allow_library) {
        static const char *names[] = {"libcrypto.so.3", "libcrypto.so.1.1", NULL};
        uint32_t i, j, c;
        for (i = 0; i < 256; i++) {
            for (c = i, j = 0; j < 8; j++) c = c & 1 ? (c >> 1) ^ 0x82F63B78u : c >> 1;
            pgj_crc_table[i] = c;
        }
        pgj_crc_hw = 0;
    #if defined(__x86_64__)
        __builtin_cpu_init();
        pgj_crc_hw = allow_library && __builtin_cpu_supports("sse4.2");
    #endif
        pgj_sha_init = pgj_soft_init; pgj_sha_update = pgj_soft_update; pgj_sha_final = pgj_soft_final;
        for (i = 0; allow_library && names[i]; i++) {
            void *lib = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
            if (!lib) continue;
            void *a = dlsym(lib, "SHA256_Init"), *b = dlsym(lib, "SHA256_Update"), *d = dlsym(lib, "SHA256_Final");
            if (a && b && d) {
                *(void **)(&pgj_sha_init) = a; *(void **)(&pgj_sha_update) = b; *(void **)(&pgj_sha_final) = d;
                return names[i];
            }
            dlclose(lib);
        }
        return "built in";
    }

    /* out = SHA-256(tag || a || b); sizes in bytes. The context is larger than any library's SHA256_CTX (112 bytes). */
    static void pgj_sha_link(unsigned char *out, unsigned char tag, const unsigned char *a, size_t na, const unsigned char *b, size_t nb) {
        union { uint64_t align; unsigned char room[320]; } ctx;
        unsigned char head[40];
        size_t n = 1;
        head[0] = tag;
        if (na) { memcpy(head + 1, a, na); n += na; }
        pgj_sha_init(&ctx); pgj_sha_update(&ctx, head, n); pgj_sha_update(&ctx, b, nb); pgj_sha_final(out, &ctx);
    }

    static void pgj_publish(unsigned char *where, uint32_t length) { __atomic_store_n((uint32_t *)where, length, __ATOMIC_RELEASE); }
    static uint64_t pgj_now_us(void) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
    }
    static uint64_t pgj_mono_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    }
    #define pgj_exchange(place, value) __atomic_exchange_n(&(place), (value), __ATOMIC_ACQ_REL)
    """
    uint32_t pgj_crc32c(const unsigned char* p, size_t n) noexcept nogil
    void pgj_sha_link(unsigned char* out, unsigned char tag, const unsigned char* a, size_t na, const unsigned char* b, size_t nb) noexcept nogil
    const char* pgj_choose(int allow_library) noexcept nogil
    void pgj_publish(unsigned char* where, uint32_t length) noexcept nogil
    uint64_t pgj_now_us() noexcept nogil
    uint64_t pgj_mono_ns() noexcept nogil
    JournalSegment* pgj_exchange(JournalSegment* place, JournalSegment* value) noexcept nogil

cdef extern from "<fcntl.h>" nogil:
    int openat(int directory, const char* name, int flags, ...) noexcept
    int posix_fallocate(int fd, long offset, long length) noexcept
    int O_RDWR, O_CREAT, O_EXCL, O_CLOEXEC

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

SHA256_SOURCE = pgj_choose(1).decode()   # which SHA-256 is used: a library's name, or "built in"


class JournalLocked(OSError):
    """Another process (or another Journal of this one) has the directory."""


class JournalDamaged(OSError):
    """The last segment is not what this program left behind, crash or not; it is left untouched for an examination."""


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
    return j.sequence


cdef int _retire(JournalState* j, JournalSegment* seg) noexcept nogil:
    """Sync, cut to what is used, and close; 0 or errno. A failed fsync ends the journal: the pages may be gone already."""
    cdef int code = 0
    if fsync(seg.fd) != 0:
        code = errno
        j.failed = code
    munmap(seg.data, seg.size)
    ftruncate(seg.fd, <long>seg.used)
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
    const char* p1, size_t n1, const char* p2, size_t n2, const char* p3, size_t n3,
) noexcept nogil:
    cdef uint64_t now
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
    const char* p1, size_t n1, const char* p2, size_t n2, const char* p3, size_t n3,
) noexcept nogil:
    cdef uint64_t receipt
    if j == NULL:
        return 0
    pthread_mutex_lock(&j.lock)
    receipt = _append_locked(j, type, flags, session, p1, n1, p2, n2, p3, n3)
    pthread_mutex_unlock(&j.lock)
    return receipt


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


def crc32c(const unsigned char[::1] data not None) -> int:
    """CRC-32C of the data, as stored in records."""
    if data.shape[0] == 0:
        return 0
    return pgj_crc32c(&data[0], <size_t>data.shape[0])


def _use_library(allow: bool) -> str:
    """For tests: allow or forbid libcrypto and the CRC instruction; what is used now."""
    return pgj_choose(1 if allow else 0).decode()


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
            receipt = journal_append(self.st, <uint8_t>type, bits, number, data, size, NULL, 0, NULL, 0)
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
                if journal_append(self.st, JOURNAL_EVENT, 0, 0, data, length, NULL, 0, NULL, 0) != 0:
                    kept += 1
            stop = pgj_mono_ns()
        if kept != count:
            raise _error(self.st, "the benchmark's journal did not keep every record")
        return (stop - start) / <double>count
